"""Ratios against the floor and the peers: `python -m benchmarks`."""
