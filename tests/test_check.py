"""Every check: good input passes, bad input raises and names the call."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import pytest

import optkit as ok
from optkit._check import Check

CHECK = Check("ok.call")
TREE = {"w": jnp.ones(2), "b": jnp.float32(1)}
ARRAY = jnp.asarray(-1.0)


def schedule(count):
    return 0.5


SYMMETRIC = lx.DiagonalLinearOperator(jnp.ones(2))
GOOD = [
    lambda c: c.that(1 > 0, "needs order."),
    lambda c: c.decay(b1=0.0, b2=0.999),
    lambda c: c.decay(largest=1 - 2**-24, traced=jnp.ones(()), at=schedule),
    lambda c: c.wide(b=0.9, c=jnp.float32(0.9), at=schedule),
    lambda c: c.non_negative(eps=0, rate=schedule),
    lambda c: c.positive(rate=1e-3, scale=np.float32(1), size=np.ones(())),
    lambda c: c.at_most(3, "the number of params", rank=3),
    lambda c: c.count(num=1, more=np.int32(2)),
    lambda c: c.instance(dict, "a dict such as {}", tree=TREE),
    lambda c: c.function(loss=jnp.sum),
    lambda c: c.transform(inner=optax.MultiSteps(optax.sgd(0.1), 2)),
    lambda c: (c.key(jr.key(0)), c.key(jr.PRNGKey(0))),
    lambda c: c.method(solver=lx.LU()),
    lambda c: c.symmetric(SYMMETRIC),
    lambda c: c.dtype(state_dtype=jnp.bfloat16),
    lambda c: c.inexact(params={"w": jnp.ones(2, complex)}),
    lambda c: c.real(params=TREE | {"none": None}),
    lambda c: c.like("updates", TREE, TREE, "the params"),
    lambda c: c.like("x", jnp.ones(2), np.ones(2, "f2"), "y", dtype_of=None),
    lambda c: c.shapes(x=(jnp.ones(2), (2,))),
    lambda c: c.vector(x=jnp.ones(2)),
    lambda c: c.batch(batch=(jnp.ones((3, 2)), jnp.ones(3))),
    lambda c: c.prefix("mask", True, TREE, "the params"),
    lambda c: c.booleans("mask", True, TREE, "the params"),
    lambda c: c.index("a", 1, 2),
    lambda c: c.scalar(jnp.sum)(jnp.ones(2)),
]
BAD = [
    (lambda c: c.that(0 > 1, "needs order."), ValueError, "needs order."),
    (lambda c: c.decay(b1=1.0), ValueError, "0 <= b1 < 1 in float32, got b1=1.0. It"),
    (
        lambda c: c.decay(b1=1 - 2e-8),
        ValueError,
        "0 <= b1 < 1 in float32, got b1=0.999",
    ),
    (lambda c: c.decay(b1=jnp.bfloat16(0.9)), TypeError, "b1 in float32 or wider"),
    (lambda c: c.wide(b=jnp.float16(1)), TypeError, "float16.*hyperparam_dtype"),
    (lambda c: c.decay(b1=None), TypeError, "a number .* for b1, got None"),
    (lambda c: c.non_negative(eps=-1), ValueError, "finite eps >= 0, got eps=-1"),
    (lambda c: c.non_negative(eps=np.nan), ValueError, "got eps=nan"),
    (lambda c: c.positive(rate=0.0), ValueError, "finite rate > 0, got rate=0.0"),
    (lambda c: c.positive(rate=True), TypeError, "a number .* for rate, got True"),
    (lambda c: c.positive(rate=np.ones(2)), TypeError, "for rate"),
    (
        lambda c: c.at_most(3, "the number of params", rank=4),
        ValueError,
        "needs rank <= 3, the number of params, got rank=4",
    ),
    (lambda c: c.count(num=0), ValueError, "integer num >= 1, got 0"),
    (lambda c: c.count(num=True), ValueError, "integer num >= 1, got True"),
    (lambda c: c.count(num=jnp.int32(1)), ValueError, "integer num >= 1"),
    (
        lambda c: c.instance(dict, "a dict such as {{}}", tree=[]),
        TypeError,
        r"needs a dict such as \{\} for tree, got \[\]",
    ),
    (lambda c: c.function(loss=1.0), TypeError, "a function for loss, got 1.0"),
    (lambda c: c.transform(inner=0.1), TypeError, "an optax transform for inner"),
    (lambda c: c.key(0), TypeError, "one random key, got 0. Pass `key="),
    (lambda c: c.key(jr.split(jr.key(0))), TypeError, "one random key"),
    (lambda c: c.method(solver="cg"), TypeError, "such as `ok.CG.*solver, got 'cg'"),
    (lambda c: c.symmetric(jnp.eye(2)), TypeError, "a Lineax operator .* operator"),
    (
        lambda c: c.symmetric(lx.MatrixLinearOperator(jnp.ones((2, 2)))),
        ValueError,
        "symmetric, got `MatrixLinearOperator`. .*`lx.symmetric_tag`",
    ),
    (
        lambda c: c.symmetric(lx.DiagonalLinearOperator(jnp.ones(2, complex))),
        TypeError,
        "real floating leaves, got complex",
    ),
    (lambda c: c.dtype(state_dtype=int), TypeError, "floating state_dtype, got"),
    (lambda c: c.inexact(params={"w": 1}), TypeError, r"got int.* at params\['w'\]"),
    (lambda c: c.inexact(params=jnp.tanh), TypeError, "at params. Pass the arrays"),
    (lambda c: c.real(params=1j), TypeError, "real floating leaves, got complex.*imag"),
    (
        lambda c: c.like("updates", [1.0], [1.0, 2.0], "the params", "Zip them."),
        ValueError,
        r"structure of the params. Zip them.\n  updates: .*\n  the params: ",
    ),
    (
        lambda c: c.like("updates", [jnp.ones(2)], [jnp.ones(3)], "the params"),
        ValueError,
        r"shape of the params, got \(2,\) at updates\[0\], not \(3,\)",
    ),
    (
        lambda c: c.like("updates", np.float16(1), np.float32(1), "the params"),
        TypeError,
        "dtype of the params, got float16 at updates, not float32",
    ),
    (
        lambda c: c.shapes("Stack.", x=(jnp.ones(2), (3,))),
        ValueError,
        r"x of shape \(3,\), got \(2,\). Stack.",
    ),
    (lambda c: c.vector(x=jnp.ones((2, 1))), ValueError, r"shape \(n,\), got \(2, 1\)"),
    (lambda c: c.vector(x=jnp.arange(2)), TypeError, "real floating"),
    (
        lambda c: c.batch(batch=(jnp.ones((3, 2)), jnp.ones(2))),
        ValueError,
        r"first axis of all leaves of batch, got shapes \[\(3, 2\), \(2,\)\]",
    ),
    (lambda c: c.batch(batch=jnp.ones((0, 2))), ValueError, "at least one example"),
    (lambda c: c.batch(batch=1.0), ValueError, "first axis"),
    (
        lambda c: c.prefix("mask", {"w": True}, TREE, "the params"),
        ValueError,
        r"mask as one value, or as a prefix of the params",
    ),
    (
        lambda c: c.booleans("mask", 1.0, TREE, "the params"),
        TypeError,
        "booleans in mask, got float",
    ),
    (
        lambda c: c.booleans("mask", [np.ones(3, bool)], [jnp.ones(2)], "the params"),
        ValueError,
        r"mask of shape \(\) or \(2,\), got \(3,\)",
    ),
    (lambda c: c.index("a", 2, 2), IndexError, "0 <= a < 2, got 2"),
    (lambda c: c.index("a", 0.0, 2), TypeError, "integers for a, got float"),
    (lambda c: c.scalar(1.0), TypeError, "a function for loss, got 1.0"),
    (
        lambda c: c.scalar(jnp.exp)(jnp.ones(2)),
        ValueError,
        r"loss to return one real scalar, got shape \(2,\). Reduce it",
    ),
    (lambda c: c.scalar(lambda: (1.0, 2.0))(), ValueError, "scalar, got tuple"),
    (lambda c: c.scalar(jnp.argmax)(jnp.ones(2)), TypeError, "floating scalar, got"),
]


@pytest.mark.parametrize("call", GOOD)
def test_good_input_passes(call):
    """Oracle: no exception."""
    call(CHECK)


@pytest.mark.parametrize(("call", "error", "match"), BAD)
def test_bad_input_raises_and_names_the_call(call, error, match):
    """Oracle: the messages, which are short and do not end in a blank."""
    with pytest.raises(error, match=rf"(?s)^`ok\.call` .*{match}") as caught:
        call(CHECK)
    assert str(caught.value) == str(caught.value).rstrip()


def test_every_check_is_in_both_tables():
    """Oracle: the methods of `Check`."""
    names = {name for name, value in vars(Check).items() if callable(value)}
    names = {name for name in names if not name.startswith("_")}
    for table in (GOOD, [call for call, *_ in BAD]):
        assert (
            names == {name for call in table for name in call.__code__.co_names} & names
        )


def test_optional_lets_none_pass_and_nothing_else_that_is_bad():
    """Oracle: identity."""
    optional = CHECK.optional
    optional.decay(b1=None)
    optional.positive(rtol=None)
    optional.count(chunk=None)
    optional.function(project=None)
    optional.transform(inner=None)
    optional.dtype(state_dtype=None)
    optional.method(solver=None)
    optional.instance(ok.Inverse, "an inverse", inverse=None)
    with pytest.raises(ValueError, match=r"^`ok.call` needs a finite rtol > 0"):
        optional.positive(rtol=0.0)
    with pytest.raises(ValueError, match="integer chunk >= 1"):
        optional.count(chunk=0)
    with pytest.raises(TypeError, match="a function for project"):
        optional.function(project=1.0)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_arrays_and_tracers_are_not_read(wrap):
    """Oracle: identity. The same numbers in Python raise."""

    @wrap
    def check(x):
        for kind in (CHECK.decay, CHECK.non_negative, CHECK.positive):
            kind(x=x)
        CHECK.at_most(-2, "a limit", x=x)
        CHECK.index("a", x.astype(int), 1)
        return x

    assert check(ARRAY) == ARRAY


def test_prefixes_and_masks_are_spread_over_the_tree():
    """Oracle: identity."""
    spread = CHECK.prefix("mask", {"w": 1, "b": 2}, {"w": [3, 4], "b": 5}, "the params")
    assert spread == {"w": [1, 1], "b": 2}
    entries = np.array([True, False])
    mask = CHECK.booleans("mask", {"w": entries, "b": False}, TREE, "the params")
    assert mask["w"] is entries
    assert mask["b"] is False
