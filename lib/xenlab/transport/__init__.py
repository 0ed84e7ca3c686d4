"""SSH and this machine itself: how commands and files get to a machine."""
