"""What becomes of a step that went wrong."""

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
    """The state after a step, or the one before it where something fatal happened.

    A batch with a NaN, or a step that overflows, then changes nothing but the count,
    so that the next batch is another one.

    Args:
        before: the state, a NamedTuple.
        after: the state that the step made of it.
        info: of the step.
        fatal: pairs (holds, result) for which the step is not taken.
        doubtful: pairs for which it is taken.
        always: fields of the state that go on in any case.

    Returns:
        The state, and `info` with the first result that holds.
    """
    is_lost = jnp.asarray(False)
    for holds, _ in fatal:
        is_lost |= holds
    kept = where(is_lost, before, after)._replace(**always)
    return kept, info._replace(result=first_failure(*fatal, *doubtful))
