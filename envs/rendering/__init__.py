"""Renderers of this machine, and the cameras of an environment."""
