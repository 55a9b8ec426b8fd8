"""Nested problems: an upper variable x, and a lower one y that answers it."""
