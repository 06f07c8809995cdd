"""Options that add tokens or vectors to those of the network."""
