"""Likelihoods of a flow policy."""
