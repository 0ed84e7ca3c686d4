"""``python -m xenlab``: the same as the program ``xenlab``."""

from xenlab.cli import main

main()
