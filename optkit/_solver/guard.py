"""Discards steps that went wrong, and reports why."""

from typing import Any

import jax.numpy as jnp

from .._results import first_failure
from .._vector import where


def guard(
    before: Any,
    after: Any,
    info: Any,
    *,
    fatal: tuple[tuple[Any, Any], ...],
    doubtful: tuple[tuple[Any, Any], ...] = (),
    always: dict[str, Any],
) -> tuple[Any, Any]:
    """Returns the state, and `info` with the first result that holds.

    The state is `after` the step, or `before` it if a pair (holds, result) in `fatal`
    holds. Pairs in `doubtful` are reported, but keep the step. The fields in `always`,
    such as the count, advance in any case, so after a NaN or an overflow the next step
    draws another batch.
    """
    is_lost = jnp.asarray(False)
    for holds, _ in fatal:
        is_lost |= holds
    kept = where(is_lost, before, after)._replace(**always)
    return kept, info._replace(result=first_failure(*fatal, *doubtful))
