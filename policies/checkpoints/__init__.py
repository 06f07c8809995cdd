"""Checkpoints of every supported format."""
