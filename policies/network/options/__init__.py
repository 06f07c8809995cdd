"""Options of the network beyond the published one. All of them are off by default."""
