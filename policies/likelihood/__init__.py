"""Likelihoods of a flow policy. Importing the package registers the built-in ones."""

from pitune.policies.likelihood import flow_steps, whole_chunk

__all__ = ["flow_steps", "whole_chunk"]
