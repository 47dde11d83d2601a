"""What is written of the contract for other languages, made from it: `python -m documents`."""
