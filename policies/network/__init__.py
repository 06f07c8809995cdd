"""The π0 and π0.5 networks, their low-rank updates and their extensions."""
