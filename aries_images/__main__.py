"""`python -m aries_images`: the command `aries-images`, from a checkout."""

from aries_images.cli import main

main()
