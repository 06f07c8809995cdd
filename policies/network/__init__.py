"""The π0 and π0.5 networks."""
