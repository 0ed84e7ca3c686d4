"""Platforms: the answers of each distribution to what a chapter asks for."""
