"""`leafwise`, the shell of optimizers, with rules of families that are yet to come."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from precision import FLOAT, assert_allclose

from optkit._check import Check
from optkit.optim._base import OWN, REAL, WIDE, descent, leafwise, stored_in

CHECK = Check("ok.optim.f")


class State(NamedTuple):
    """A count, and what a rule wants."""

    count: Any
    a: Any = None
    b: Any = None


def of_shapes(key):
    """Gradients with a matrix, a bfloat16 matrix and an empty one."""
    w = jr.normal(key, (3, 4))
    return {"w": w, "narrow": w.astype(jnp.bfloat16), "empty": jnp.zeros((0, 2))}


def test_state_of_other_shapes_than_the_leaf(key):
    """Oracle: NumPy; row and column means of squares, as Adafactor has them."""

    def rule(g, s, t, decay):
        r = decay * s.a + (1 - decay) * jnp.sum(g**2, 1)
        c = decay * s.b + (1 - decay) * jnp.sum(g**2, 0)
        scale = jnp.sqrt(jnp.outer(r, c) / jnp.maximum(jnp.sum(r), 1e-30))
        return g / jnp.maximum(scale, 1e-30), s._replace(a=r, b=c)

    moments = {
        "a": lambda p: jnp.zeros(p.shape[0], jnp.float32),
        "b": lambda p: jnp.zeros(p.shape[1], jnp.float32),
    }
    tx = leafwise(CHECK, rule, State, moments=moments, decays=(0.9,))
    grads = of_shapes(key)
    with jax.numpy_dtype_promotion("standard"):
        updates, state = tx.update(grads, tx.init(grads))
    g = np.float64(grads["w"])
    r, c = 0.1 * (g**2).sum(1), 0.1 * (g**2).sum(0)
    assert state.a["w"].dtype == jnp.float32
    assert updates["narrow"].dtype == jnp.bfloat16
    assert_allclose(state.a["w"], r, rtol=1e-6)
    assert_allclose(updates["w"], g / np.sqrt(np.outer(r, c) / r.sum()), rtol=1e-6)


def test_a_rule_that_multiplies_matrices_and_a_state_that_is_a_tree(key):
    """Oracle: NumPy; a factor for each axis of the leaf, as Shampoo has them."""

    def rule(g, s, t):
        left, right = s.a[0] + g @ g.T, s.a[1] + g.T @ g
        return left @ g @ right, s._replace(a=(left, right))

    eyes = lambda p: tuple(jnp.eye(n, dtype=jnp.float32) for n in p.shape)  # noqa: E731
    tx = leafwise(CHECK, rule, State, moments={"a": eyes})
    grads = of_shapes(key)
    step = jax.jit(tx.update)
    updates, state = step(grads, tx.init(grads))
    _, state = step(grads, state)
    g = np.float64(grads["w"])
    left, right = np.eye(3) + g @ g.T, np.eye(4) + g.T @ g
    assert_allclose(updates["w"], left @ g @ right, rtol=1e-5)
    assert_allclose(state.a["w"][1], np.eye(4) + 2 * g.T @ g, rtol=1e-5)
    assert step._cache_size() == 1


def test_a_rule_may_read_params_and_any_extra_argument():
    """Oracle: closed form; a mask hides leaves of all of them."""

    def rule(g, p, c, s, t, rate):
        return g + rate * p + c, s

    tx = leafwise(
        CHECK,
        rule,
        State,
        moments={},
        hyper=(lambda n: 2.0 * n,),
        reads=("params", "c"),
    )
    tx = optax.masked(tx, {"x": True, "y": False})
    params = {"x": jnp.array([1.0, 2.0]), "y": jnp.ones(3)}
    grads, c = jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(grads, tx.init(params), params, c=c)
        updates, _ = tx.update(grads, state, params, c=c)
    assert_allclose(updates["x"], [3.0, 5.0])
    assert_allclose(updates["y"], 1.0)
    with pytest.raises(ValueError, match=r"`ok.optim.f` needs c, got c=None"):
        tx.update(grads, state, params)
    with pytest.raises(ValueError, match=r"got \(\) at c\['x'\], not \(2,\)"):
        tx.update(grads, state, params, c=c | {"x": jnp.ones(())})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_dtypes_of_moments(dtype):
    """Oracle: the table of dtypes; arithmetic is wide, whatever is stored."""
    seen = []

    def rule(g, s, t, b):
        seen.append((g.dtype, s.a.dtype, t.dtype, b.dtype))
        return g + s.a, s._replace(a=s.a + g, b=jnp.abs(g))

    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    for make, stored in [
        (WIDE, wide),
        (OWN, dtype),
        (stored_in(None), wide),
        (stored_in(jnp.bfloat16), wide if wide == jnp.complex64 else jnp.bfloat16),
    ]:
        moments = {"a": make, "b": REAL}
        tx = leafwise(CHECK, rule, State, moments=moments, hyper=(0.5,))
        grads = jnp.ones(2, dtype)
        updates, state = tx.update(grads, tx.init(grads))
        assert updates.dtype == dtype
        assert (state.a.dtype, state.b.dtype) == (stored, jnp.float32)
        assert seen[-1][0] == wide
        assert seen[-1][2:] == (jnp.float32, jnp.float32)


def test_a_guard_and_statistics_see_the_update_before_it_is_cast():
    """Oracle: closed form; 1 - 2⁻¹² is 1 in bfloat16."""

    def rule(g, s, t):
        return g * (1 - 2.0**-12), s._replace(a=1 / g)

    below = {"b": lambda u: sum(jnp.sum(x < 1) for x in jax.tree.leaves(u))}
    tx = leafwise(
        CHECK, rule, State, moments={"a": WIDE}, guard=("a",), statistics=below
    )
    grads = [jnp.array([1.0, 0.0], jnp.bfloat16), jnp.ones(2, jnp.float32)]
    updates, state = tx.update(grads, tx.init(grads))
    assert float(updates[0][0]) == 1.0
    assert np.isnan(updates[0][1])
    assert int(state.b) == 3


def test_a_chain_of_descent_is_flat():
    """Oracle: closed form; the state of the first link is the first of the state."""
    scale = leafwise(CHECK, lambda g, s, t: (2 * g, s), State, moments={"a": WIDE})
    tx = descent(CHECK, [scale], 0.5, weight_decay=0.1)
    params = jnp.array([1.0, -3.0])
    state = tx.init(params)
    assert state[0].a.dtype == FLOAT
    updates, _ = tx.update(jnp.ones(2), state, params)
    assert_allclose(updates, -0.5 * (2 + 0.1 * np.array([1.0, -3.0])), rtol=1e-12)
