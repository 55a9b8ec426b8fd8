"""The experiments behind `python -m optkit` and the notebooks (extra: demo)."""
