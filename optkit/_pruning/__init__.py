"""Pruning by the optimal brain surgeon."""
