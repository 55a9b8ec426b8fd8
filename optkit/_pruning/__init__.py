"""Prune weights by the optimal brain surgeon."""
