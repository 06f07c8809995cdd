"""Likelihoods of a flow policy. Importing the package registers the built-in ones."""

from pitune.policies.likelihood import fast_tokens, flow_steps, whole_chunk

__all__ = ["fast_tokens", "flow_steps", "whole_chunk"]
