"""Populations: the parts of `epo` and `es`."""
