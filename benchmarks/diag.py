"""Loss, gradient and Hutchinson diagonal in one pass, beside the pieces."""

import jax
import jax.random as jr

import optkit as ok
from optkit._tree import signs

from .measure import Row, measure, repeated
from .network import loss, make_network


def run(size: int, rounds: int) -> list[Row]:
    """Rows for a tanh network of about `size` float32 weights on 784 inputs."""
    params, x, y = make_network(size)
    z = signs(jr.key(2), params)
    value_and_grad = jax.value_and_grad(loss)
    one_pass = ok.value_grad_and_diag(loss)

    functions = {
        "jvp of value_and_grad, ready probe": [
            lambda p, k: jax.jvp(lambda p: value_and_grad(p, x, y), (p,), (z,))
        ],
        "ok.value_grad_and_diag": [lambda p, k: one_pass(p, x, y, key=k)],
        "gradient, then a separate HVP": [
            lambda p, k: value_and_grad(p, x, y),
            lambda p, k: ok.hvp(loss, p, z, x, y),
        ],
        "gradient alone": [lambda p, k: value_and_grad(p, x, y)],
        "drawing the probe alone": [lambda p, k: signs(k, p)],
    }
    args = (params, jr.key(1))
    return measure([repeated(*item, args) for item in functions.items()], rounds)
