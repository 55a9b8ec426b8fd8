"""Peers are optional: one that is not installed is skipped with a word."""

import importlib
from typing import Any

_missing: list[str] = []


def peer(module: str) -> Any:
    """The module, or None, of which the table will say a word."""
    try:
        return importlib.import_module(module)
    except ImportError:
        word = f"Without {module}: it cannot be imported."
        if word not in _missing:
            _missing.append(word)
        return None


def missing() -> list[str]:
    """The words since the last call."""
    words = list(_missing)
    _missing.clear()
    return words
