"""``python -m xenlab``: the same as the program ``xenlab``."""

from xenlab.cli.cli import main

main()
