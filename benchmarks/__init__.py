"""How fast the worker is, side by side with others that do the same job, in one run: `python -m benchmarks`."""
