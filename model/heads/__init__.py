"""Heads on top of a tower."""
