from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit as ok
from optkit._solver.guard import guard

NAN, BOUNDS = ok.RESULTS.nonfinite_gradient, ok.RESULTS.schedule_bounds


class State(NamedTuple):
    y: Any
    count: Any


class Info(NamedTuple):
    result: Any = ok.RESULTS.successful


BEFORE = State({"a": jnp.zeros(2), "n": None}, jnp.asarray(3))
AFTER = State({"a": jnp.ones(2), "n": None}, jnp.asarray(3))


@jax.jit
def guarded(is_lost, is_odd, is_doubtful):
    return guard(
        BEFORE,
        AFTER,
        Info(),
        fatal=((is_lost, NAN), (is_odd, ok.RESULTS.bad_penalty)),
        doubtful=((is_doubtful, BOUNDS),),
        always={"count": BEFORE.count + 1},
    )


@pytest.mark.parametrize(
    ("holds", "y", "result"),
    [
        ((False, False, False), 1.0, ok.RESULTS.successful),
        ((True, False, False), 0.0, NAN),
        ((False, True, False), 0.0, ok.RESULTS.bad_penalty),
        ((False, False, True), 1.0, BOUNDS),
        ((True, True, True), 0.0, NAN),
    ],
)
def test_a_fatal_step_is_discarded_and_the_first_result_reported(holds, y, result):
    """Oracle: the definition. The count advances in any case."""
    kept, info = guarded(*holds)
    np.testing.assert_array_equal(kept.y["a"], [y, y])
    assert kept.count == 4
    assert info.result == result


def test_what_is_discarded_may_be_nan():
    """Oracle: identity; a product with a flag would keep the NaN."""
    broken = AFTER._replace(y={"a": jnp.full(2, jnp.nan), "n": None})
    kept, _ = guard(BEFORE, broken, Info(), fatal=((True, NAN),), always={})
    np.testing.assert_array_equal(kept.y["a"], [0.0, 0.0])
