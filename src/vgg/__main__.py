"""`python -m vgg` is `vgg`."""

from .cli import main

main()
