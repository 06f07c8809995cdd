"""Checkpoint formats: how each is recognized, read and written."""
