"""The run-time type checks of the test suite."""

from collections.abc import Callable
from typing import Any

import beartype


def outermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks functions, but not those defined inside of others, at each call anew."""
    is_inner = "<locals>" in getattr(function, "__qualname__", "")
    return function if is_inner else beartype.beartype(function)
