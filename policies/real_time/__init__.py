"""Chunks that meet a deadline: the robot's action queue and real-time chunking."""
