"""Other libraries are optional: a missing one is skipped with a remark."""

import importlib
from typing import Any

_missing: list[str] = []


def peer(module: str) -> Any:
    """The module, or None, in which case the job gets a remark."""
    try:
        return importlib.import_module(module)
    except ImportError:
        word = f"{module} is left out, because it cannot be imported."
        if word not in _missing:
            _missing.append(word)
        return None


def missing() -> list[str]:
    """The remarks since the last call."""
    words = list(_missing)
    _missing.clear()
    return words
