"""No call relies on implicit rank promotion (oracle: JAX's own error).

Users of Lineax and Optimistix set `jax_numpy_rank_promotion="raise"`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import optkit as ok

KEY = jr.key(0)
PARAMS = {"w": jnp.arange(6.0).reshape(2, 3) / 6, "b": jnp.ones(3)}
XS = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def example_loss(p, x):
    return jnp.mean(jnp.tanh(x @ p["w"] + p["b"]) ** 2)


def loss(p, xs=XS):
    return jnp.mean(jax.vmap(lambda x: example_loss(p, x))(xs)) + sum(
        jnp.sum(a**2) for a in jax.tree.leaves(p)
    )


def hessian():
    return ok.hessian(loss, PARAMS)


def fisher():
    return ok.empirical_fisher(example_loss, PARAMS, XS)


def inverse(make, method):
    return ok.invert(make(), method, damping=0.5)


def step(tx, **extra):
    tx = optax.with_extra_args_support(tx)
    return tx.update(ONES, tx.init(PARAMS), PARAMS, **extra)


def root(solver=None):
    fit = ok.implicit_root(lambda y, a: a @ y + y**3 - 1, solver=solver)
    solve = fit(lambda y0, a: jnp.array([0.5, 0.5, 0.5]))
    return jax.grad(lambda a: jnp.sum(solve(jnp.ones(3), a)))(2 * jnp.eye(3))


MATRIX = jnp.arange(12.0).reshape(3, 4) / 12
SUMS = jnp.ones(3) / 3, jnp.ones(4) / 4
CALLS = {
    "hutchinson_trace": lambda: ok.hutchinson_trace(hessian(), key=KEY, num_probes=2),
    "hutchinson_diag": lambda: ok.hutchinson_diag(hessian(), key=KEY, num_probes=2),
    "xtrace": lambda: ok.xtrace(hessian(), key=KEY, num_probes=3),
    "xdiag": lambda: ok.xdiag(hessian(), key=KEY, num_probes=3),
    "xnystrace": lambda: ok.xnystrace(fisher(), key=KEY, num_probes=3),
    "value_grad_and_diag": lambda: ok.value_grad_and_diag(loss)(PARAMS, key=KEY),
    "spectrum": lambda: ok.spectrum(
        hessian(), key=KEY, num_probes=2, num_steps=4
    ).density(jnp.linspace(0.0, 3.0, 5), 0.1),
    "CG": lambda: inverse(hessian, ok.CG()).mv(ONES),
    "GMRES": lambda: inverse(hessian, ok.GMRES()).mv(ONES),
    "Neumann": lambda: inverse(hessian, ok.Neumann(9)).mv(ONES),
    "Nystrom": lambda: inverse(hessian, ok.Nystrom(3, key=KEY)).diagonal(),
    "Woodbury": lambda: inverse(fisher, ok.Woodbury()).entry(0, 1),
    "blocks": lambda: inverse(
        lambda: fisher().block_diagonal(2), ok.Woodbury()
    ).diagonal(),
    "influence": lambda: ok.influence(
        example_loss, PARAMS, XS, XS, inverse(fisher, ok.Woodbury())
    ),
    "self_influence": lambda: ok.self_influence(
        example_loss, PARAMS, XS, inverse(fisher, ok.Woodbury())
    ),
    "obs_prune": lambda: ok.obs_prune(
        PARAMS, inverse(fisher, ok.Woodbury()), sparsity=0.5
    ),
    "implicit_root": root,
    "implicit_root, GMRES": lambda: root(ok.GMRES()),
    "anderson": lambda: ok.solvers.anderson(
        lambda y, _: jnp.cos(y), jnp.zeros(3), history=3
    ),
    "adan": lambda: step(ok.optim.adan(0.1, weight_decay=0.1)),
    "mfac": lambda: step(ok.optim.mfac(0.1, 3, 0.5)),
    "with_hutchinson": lambda: step(
        ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=KEY), value_fn=loss
    ),
    "transport": lambda: ok.projections.transport(MATRIX, *SUMS),
    "kl_transport": lambda: ok.projections.kl_transport(MATRIX, *SUMS),
    "birkhoff": lambda: ok.projections.birkhoff(MATRIX[:, :3]),
    "box_section": lambda: ok.projections.box_section(MATRIX[0], 0.0, 1.0, 1.0, 1.0),
    "polyhedron": lambda: ok.projections.polyhedron(
        MATRIX[0], jnp.eye(4), jnp.zeros(4)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_is_broadcast_to_more_axes_unsaid(call):
    """Oracle: JAX raises; and the result is finite."""
    with jax.numpy_rank_promotion("raise"):
        result = jax.block_until_ready(call())
    leaves = [
        x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert leaves
    assert all(np.all(np.isfinite(x)) for x in leaves)


def test_the_setting_is_what_jax_says_it_is():
    """Oracle: a sum of a matrix and a vector, which the setting forbids."""
    add = partial(jnp.add, jnp.ones((2, 3)))
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank"):
        add(jnp.ones(3))
