"""The program ``xenlab``."""
