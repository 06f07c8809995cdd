"""Shared parts of the policy-gradient algorithms."""
