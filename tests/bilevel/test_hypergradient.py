import jax.numpy as jnp
import pytest
from problems import Q2_X, q2_lower, q2_upper

import optkit as ok

METHOD = ok.bilevel.Implicit(ok.CG())


def vector(x, y, batch):
    return y


@pytest.mark.parametrize("name", ["upper", "lower"])
@pytest.mark.parametrize(
    "make",
    [
        lambda f, g, x: ok.bilevel.hypergradient(f, g, method=METHOD)(x, x, None),
        lambda f, g, x: ok.bilevel.hypergradient(
            f, g, method=ok.bilevel.Unrolled(2, ok.optim.adan(0.1))
        )(x, x, None),
    ],
    ids=["implicit", "unrolled"],
)
def test_objectives_that_are_not_scalar_raise(name, make):
    pair = {"upper": q2_upper, "lower": q2_lower} | {name: vector}
    message = rf"`ok\.bilevel\.hypergradient` needs {name} to return one real scalar"
    with pytest.raises(ValueError, match=message):
        make(pair["upper"], pair["lower"], jnp.asarray(Q2_X))


def test_bad_arguments_raise():
    with pytest.raises(TypeError):
        ok.bilevel.hypergradient(q2_upper, None, method=METHOD)
    with pytest.raises(TypeError):
        ok.bilevel.hypergradient(q2_upper, q2_lower, method="implicit")
    gradient = ok.bilevel.hypergradient(q2_upper, q2_lower, method=METHOD)
    with pytest.raises(TypeError, match="needs real floating leaves, got int"):
        gradient(jnp.arange(2), jnp.zeros(2), None)
