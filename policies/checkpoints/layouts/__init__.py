"""How checkpoints lie on disk: folders, weight files, names in wrappers, and adapters."""
