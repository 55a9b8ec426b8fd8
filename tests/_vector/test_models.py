"""Models of other libraries as params: what works, and what the errors say."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import optax
import pytest
from flax import linen, nnx
from precision import assert_allclose

import optkit as ok

X, Y = jr.normal(jr.key(1), (6, 3)), jr.normal(jr.key(2), (6, 2))
MLP = eqx.nn.MLP(3, 2, 4, 1, key=jr.key(0))


def mlp_loss(model, x, y):
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def outputs(model, x):
    return jax.vmap(model)(x)


def transform(tx):
    return lambda model: tx.init(model)


def bilevel(make, **options):
    def call(model):
        steps = {"outer": optax.sgd(0.1), "inner": optax.sgd(0.1)}
        solver = make(mlp_loss, mlp_loss, **steps, **options)
        return solver.init(jnp.zeros(2), model)

    return call


TAKES_PARAMS = {
    "ok.optim.adan": transform(ok.optim.adan(0.1)),
    "ok.optim.adahessian": transform(ok.optim.adahessian(0.1)),
    "ok.optim.sophia": transform(ok.optim.sophia(0.1)),
    "ok.optim.mfac": transform(ok.optim.mfac(0.1, 4, 0.1)),
    "ok.optim.accumulate": transform(ok.optim.accumulate(optax.sgd(0.1), 2)),
    "ok.optim.with_hutchinson": transform(
        ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(0))
    ),
    "ok.hessian": lambda model: ok.hessian(mlp_loss, model, X, Y),
    "ok.hvp": lambda model: ok.hvp(mlp_loss, model, model, X, Y),
    "ok.gauss_newton": lambda model: ok.gauss_newton(
        outputs, ok.SquaredError(), model, X
    ),
    "ok.empirical_fisher": lambda model: ok.empirical_fisher(mlp_loss, model, (X, Y)),
    "ok.value_grad_and_diag": lambda model: ok.value_grad_and_diag(mlp_loss)(
        model, X, Y, key=jr.key(0)
    ),
    "ok.value_grad_and_gauss_newton_diag": lambda model: (
        ok.value_grad_and_gauss_newton_diag(outputs, ok.SquaredError())(
            model, X, Y, key=jr.key(0)
        )
    ),
    "ok.solvers.anderson": lambda model: ok.solvers.anderson(lambda y, a: y, model),
    "ok.prox.lasso": lambda model: ok.prox.lasso(model, 1.0),
    "ok.implicit_minimum": lambda model: ok.implicit_minimum(lambda y, a: 0.0)(
        lambda y0, a: y0
    )(model, None),
    "ok.bilevel.f2sa": bilevel(ok.bilevel.f2sa, penalty=1.0),
    "ok.bilevel.soba": bilevel(ok.bilevel.soba, linear=optax.sgd(0.1)),
}


@pytest.mark.parametrize("call", TAKES_PARAMS)
def test_a_whole_equinox_model_is_refused_with_the_way_out(call):
    """Oracle: the message names the call, the leaf, and `eqx.partition`."""
    where = r"got custom_jvp at \w+\.activation\. .*`params, static = eqx\.partition"
    with pytest.raises(TypeError, match=rf"^`{call}` needs .* {where}"):
        TAKES_PARAMS[call](MLP)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (linen.Dense(2), "Dense at params"),
        (nnx.state(nnx.Dropout(0.5, rngs=nnx.Rngs(0))), r"uint32 at params.*count"),
        (eqx.nn.Dropout(0.5), r"bool at params\.inference"),
    ],
)
def test_other_parts_of_a_model_are_refused_with_the_way_out(model, found):
    """Oracle: the message."""
    with pytest.raises(TypeError, match=rf"got {found}.*Pass the arrays of a model"):
        ok.optim.adan(0.1).init(model)


class Net(nnx.Module):
    """A layer, and layers whose variables change in each call."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x.astype(jnp.float32))))


def split():
    """An NNX layer, and the same numbers as plain dicts."""
    dtype = jnp.result_type(float)
    layer = nnx.Linear(3, 2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer, nnx.Param)

    def loss(params, example):
        x, y = example
        return jnp.sum((nnx.merge(graph, params)(x) - y) ** 2)

    def plain_loss(params, example):
        x, y = example
        return jnp.sum((x @ params["kernel"] + params["bias"] - y) ** 2)

    return params, loss, nnx.to_pure_dict(params), plain_loss


@pytest.mark.parametrize(
    "method",
    [ok.CG(1e-6), ok.Woodbury(), ok.Nystrom(8, key=jr.key(3)), lx.Cholesky()],
    ids=lambda method: type(method).__name__,
)
def test_inverses_take_the_params_of_flax_nnx(method):
    """Oracle: the same numbers as plain dicts; products, slopes in λ, and influence.

    Lineax rebuilds its arguments where no trace is active, which NNX refuses.
    """
    params, loss, plain, plain_loss = split()

    def results(params, loss):
        C = ok.empirical_fisher(loss, params, (X, Y))

        def inverse(damping):
            return ok.invert(C, method, damping=damping)

        def square(damping):
            return sum(
                jax.tree.leaves(jax.tree.map(jnp.vdot, params, product(damping)))
            )

        def product(damping):
            return inverse(damping).mv(params)

        scores = ok.influence(loss, params, (X, Y), (X, Y), inverse(0.1))
        return product(0.1), jax.value_and_grad(square)(0.1), scores

    got, want = results(params, loss), results(plain, plain_loss)
    assert jax.tree.structure(got[0]) == jax.tree.structure(params)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(a, b, rtol=1e-5)


def test_solutions_take_the_params_of_flax_nnx():
    """Oracle: the same numbers as plain dicts; a Newton step, and a slope in λ."""
    params, loss, plain, plain_loss = split()

    def results(params, loss):
        def objective(y, damping):
            fit = jnp.mean(jax.vmap(loss, (None, 0))(y, (X, Y)))
            return fit + damping * optax.tree.norm(y, squared=True)

        step = ok.optimality.newton(jax.grad(objective))

        @ok.implicit_minimum(objective)
        def solve(y, damping):
            return step(step(y, damping), damping)  # the objective is quadratic

        def square(damping):
            return optax.tree.norm(solve(params, damping), squared=True)

        return jax.value_and_grad(square)(jnp.asarray(0.1)), solve(params, 0.1)

    got, want = results(params, loss), results(plain, plain_loss)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(a, b, rtol=1e-4)


def test_variables_of_flax_nnx_may_change_in_the_loss():
    """Oracle: `nnx.merge(copy=True)`, which is not needed for what is an argument."""
    graph, params, rest = nnx.split(Net(), nnx.Param, ...)

    def loss(params, rest, copy):
        model = nnx.merge(graph, params, rest, copy=copy)
        return jnp.mean((model(X) - Y) ** 2)

    def results(copy):
        def of(params, rest):
            return loss(params, rest, copy)

        diag = ok.value_grad_and_diag(of)(params, rest, key=jr.key(0))
        return diag, ok.hessian(of, params, rest).mv(params)

    with jax.numpy_dtype_promotion("standard"):
        got, want = results(copy=False), results(copy=True)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(a, b, rtol=1e-6)


def test_errors_inside_a_loss_of_flax_nnx_say_how_to_merge():
    """Oracle: the note on the exception, which stays that of Flax or Python."""
    graph, params, rest = nnx.split(Net(), nnx.Param, ...)
    notes = r"`ok.value_grad_and_diag` called loss .*`nnx\.merge\(.*copy=True\)`"

    def closed_over(params):
        return jnp.mean((nnx.merge(graph, params, rest)(X) - Y) ** 2)

    def of_the_model(model):
        return jnp.mean((model(X) - Y) ** 2)

    for loss, match in (
        (closed_over, "Cannot mutate BatchStat"),
        (of_the_model, "'State' object is not callable"),
    ):
        with (
            jax.numpy_dtype_promotion("standard"),
            pytest.raises(Exception, match=match) as caught,
        ):
            ok.value_grad_and_diag(loss)(params, key=jr.key(0))
        assert re.search(notes, " ".join(caught.value.__notes__))

    with pytest.raises(ZeroDivisionError) as caught:
        ok.hvp(lambda x: x * (1 // 0), 1.0, 1.0)
    assert not re.search("merge", " ".join(getattr(caught.value, "__notes__", [])))
