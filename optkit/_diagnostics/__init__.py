"""Figures and a progress bar."""
