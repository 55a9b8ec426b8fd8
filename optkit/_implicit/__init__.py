"""Derivatives of solutions: decorators around any solver function."""
