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
    """The state after a step, or before it if something fatal happened.

    A batch with a NaN, or a step that overflows, then changes only the fields in
    `always`, such as the count, so that the next step draws another batch.

    Args:
        before: the state before the step, a NamedTuple.
        after: the state after it.
        info: of the step.
        fatal: pairs (holds, result) that discard the step.
        doubtful: pairs (holds, result) that are reported, but keep the step.
        always: fields of the state that advance in any case.

    Returns:
        The state, and `info` with the first result that holds.
    """
    is_lost = jnp.asarray(False)
    for holds, _ in fatal:
        is_lost |= holds
    kept = where(is_lost, before, after)._replace(**always)
    return kept, info._replace(result=first_failure(*fatal, *doubtful))
