"""Observations to network inputs, and network outputs to actions."""
