"""What holds for all tests."""

from hypothesis import settings

# How long one example takes says something about the machine's load, nothing about the code.
settings.register_profile("xenlab", deadline=None)
settings.load_profile("xenlab")
