"""Runs: executed, kept, followed, reported and audited."""
