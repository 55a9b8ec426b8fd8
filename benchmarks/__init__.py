"""Comparisons with other libraries and with the floor: `python -m benchmarks`."""
