"""`ok.optim.split_real_and_imaginary`: complex params in optimizers of real ones."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest
from numpy.testing import assert_array_equal
from precision import assert_allclose

import optkit as ok

Z = {"z": jnp.array([1.0 + 2.0j, -0.5j]), "x": jnp.array([0.3])}
REAL = {"a": jnp.real(Z["z"]), "b": jnp.imag(Z["z"]), "x": Z["x"]}


def real_loss(p, scale):
    """Curvature that differs between the parts."""
    quartic = jnp.sum(p["a"] ** 4 + 3 * p["b"] ** 2 * p["a"] ** 2)
    return scale * (quartic + jnp.sum(p["x"] ** 2))


def loss(p, scale):
    """The same, of complex params."""
    a, b = jnp.real(p["z"]), jnp.imag(p["z"])
    return real_loss({"a": a, "b": b, "x": p["x"]}, scale)


def joined(p):
    """The params, from their real parts."""
    return {"z": jax.lax.complex(p["a"], p["b"]), "x": p["x"]}


ALIASES = {
    "adahessian": functools.partial(ok.optim.adahessian, 0.1, weight_decay=0.1),
    "sophia": functools.partial(ok.optim.sophia, 0.1, gamma=1.0, update_interval=2),
}


@pytest.mark.parametrize("alias", ALIASES)
def test_a_given_diagonal_is_split_like_the_gradient(alias):
    """Oracle: the optimizer on real params, the two parts as leaves."""
    plain = ALIASES[alias]()
    tx = ok.optim.split_real_and_imaginary(plain)
    z, real, found, want = Z, REAL, tx.init(Z), plain.init(REAL)
    for _ in range(4):
        grads = jax.tree.map(jnp.conj, jax.grad(loss)(z, 2.0))
        diag = joined(jax.tree.map(lambda p: 1 + p**2, real))
        u, found = tx.update(grads, found, z, hessian_diag=diag)
        diag = jax.tree.map(lambda p: 1 + p**2, real)
        v, want = plain.update(
            jax.grad(real_loss)(real, 2.0), want, real, hessian_diag=diag
        )
        z, real = optax.apply_updates(z, u), optax.apply_updates(real, v)
        assert u["z"].dtype == Z["z"].dtype
        for name, leaf in joined(real).items():
            assert_allclose(z[name], leaf, rtol=1e-12)


@pytest.mark.parametrize("alias", ALIASES)
def test_the_objective_is_one_of_pairs_and_keeps_its_arguments(alias):
    """Oracle: Newton's diagonal in closed form, where the Hessian is diagonal."""
    seen = {}

    def update(updates, state, params=None, *, hessian_diag, **extra):
        seen.update(extra)
        return hessian_diag, state

    spy = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = ok.optim.split_real_and_imaginary(
        ok.optim.with_hutchinson(spy, key=jr.key(0), update_interval=2)
    )

    def f(p, scale):
        a, b = jnp.real(p["z"]), jnp.imag(p["z"])
        return scale * (jnp.sum(a**4 + 3 * b**2) + jnp.sum(p["x"] ** 2))

    step = jax.jit(functools.partial(tx.update, value_fn=f))
    found, _ = step(Z, tx.init(Z), Z, scale=jnp.asarray(2.0), batch=Z["z"])
    a = jnp.real(Z["z"])
    assert_allclose(found["z"], jax.lax.complex(24 * a**2, 12 + 0 * a), rtol=1e-12)
    assert_allclose(found["x"], 4.0, rtol=1e-12)
    assert jnp.iscomplexobj(seen["batch"])  # not a tree like the params
    made = ok.optim.split_real_and_imaginary(
        ok.optim.with_hutchinson(ALIASES[alias](), key=jr.key(0))
    )
    state, z = made.init(Z), Z
    for _ in range(100):
        grads = jax.tree.map(jnp.conj, jax.grad(f)(z, 2.0))
        updates, state = made.update(grads, state, z, value_fn=f, scale=2.0)
        z = optax.apply_updates(z, updates)
    assert f(z, 2.0) < 0.2 * f(Z, 2.0)


def test_real_params_pass_as_they_are():
    """Oracle: identity with the optimizer alone, its state included."""
    tx = ok.optim.adan(0.1, weight_decay=0.1)
    split = ok.optim.split_real_and_imaginary(tx)
    found = split.update(REAL, split.init(REAL), REAL)
    expected = tx.update(REAL, tx.init(REAL), REAL)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, want in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_array_equal(leaf, want)
