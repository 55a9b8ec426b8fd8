"""Random pytrees for `test_properties.py`, and the number of inputs for each property.

Compiling costs more than running a thousand examples. So structures, shapes and dtypes
come from a small pool of templates, and examples differ only in their numbers. On each
commit the pool is one tree with all kinds of leaves; in the long profile, trees are
random too.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from precision import X64

LONG = 20  # times as many inputs in the long profile
IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
POOL = 8 if IS_LONG else 1
# Inputs on each commit, by test.
EXAMPLES = {
    "transforms_keep_trees_and_are_finite": 90,
    "transforms_do_not_see_the_order_of_leaves": 24,
    "rescaled_gradients_give_the_same_adan_step": 12,
    "accumulated_gradients_are_averaged": 12,
    "curvatures_are_linear_and_symmetric": 60,
    "curvatures_have_their_diagonal": 24,
    "inverses_invert_or_say_that_they_did_not": 120,
    "a_solve_does_not_see_the_scale_of_its_right_hand_side": 40,
    "hutchinson_is_exact_for_a_diagonal_curvature": 12,
    "value_grad_and_diag_keep_the_tree": 12,
    "proxes_do_not_expand": 90,
    "proxes_minimise_their_objective": 90,
    "projections_are_feasible_idempotent_and_do_not_expand": 120,
    "derivatives_of_solutions_are_exact": 60,
    "anderson_finds_the_fixed_point_or_says_so": 16,
    "pruned_weights_are_zero_and_as_many_as_asked": 16,
}
SHAPES = [(), (1,), (3,), (2, 2), (0, 2), (1, 2, 2)]
WIDE = ["float32", "float64"] if X64 else ["float32"]
DTYPES = [*WIDE, "bfloat16", "float16"]


def property_test(**strategies: Any) -> Callable[[Any], Any]:
    """Makes a test of `EXAMPLES[name]` inputs, the same in each run."""

    def decorate(test: Any) -> Any:
        count = EXAMPLES[test.__name__.removeprefix("test_")] * (LONG if IS_LONG else 1)
        calls = []

        @functools.wraps(test)
        def counted(**values: Any) -> None:
            calls.append(None)
            test(**values)

        profile = settings(
            max_examples=count,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        tried = profile(given(**strategies)(counted))

        def run() -> None:
            tried()
            assert len(calls) >= count, f"only {len(calls)} inputs of {count}"

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def template(seed: int, dtypes: list[str]) -> Any:
    """A tree of shapes and dtypes: for seed 0 one of all kinds, else a random one."""
    rng = np.random.default_rng(seed)

    def leaf(i: int, shape: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtypes[i % len(dtypes)]))

    if seed == 0:
        return {
            "nested": [
                leaf(0, (3,)),
                None,
                (leaf(1, (0, 2)), {"a": leaf(2, (1, 2, 2))}),
            ],
            "scalar": leaf(3, ()),
        }

    def node(depth: int) -> Any:
        kind = rng.integers(5) if depth else 4
        parts = [node(depth - 1) for _ in range(rng.integers(1, 3))] if kind < 3 else []
        if kind == 0:
            return {"abc"[i]: part for i, part in enumerate(parts)}
        if kind in {1, 2}:
            return parts if kind == 1 else tuple(parts)
        return None if kind == 3 else leaf(rng.integers(9), SHAPES[rng.integers(6)])

    return {"first": leaf(seed, (2,)), "rest": node(3), "scalar": leaf(seed + 1, ())}


def fill(tree: Any, seed: int, size: float = 1.0) -> Any:
    """Fills a template with random numbers of about this size."""
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        info = jnp.finfo(leaf.dtype)
        numbers = size * rng.normal(size=leaf.shape)
        bound = float(info.max) / 8
        return jnp.asarray(np.clip(numbers, -bound, bound), leaf.dtype)

    return jax.tree.map(one, tree)


def trees(dtypes: list[str] = DTYPES) -> Any:
    """One of the pool of templates."""
    return st.integers(0, POOL - 1).map(lambda i: template(i, dtypes))


def seeds() -> Any:
    """Seeds of the numbers."""
    return st.integers(0, 2**31)


def sizes(low: int = -30, high: int = 30) -> Any:
    """Sizes of the numbers."""
    return st.integers(low, high).map(lambda e: 10.0**e)


def eps(tree: Any) -> float:
    """The machine epsilon of the narrowest leaf."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree))


def flat(tree: Any) -> Any:
    """All entries, in float64."""
    parts = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
    return np.concatenate(parts) if parts else np.zeros(0)


def same_kind(tree: Any, other: Any) -> bool:
    """Whether structure, shapes and dtypes are the same."""
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (tree, other)]
    return kinds[0] == kinds[1]
