"""Shared parts of the off-policy algorithms."""
