"""Faults of optimizers: gradients, diagonals, states and options gone wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fault_options as opt
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from fault_outcomes import INF, NAN, Foreign, Raises, Right, Shows, all_zero, finite
from faulty import Fault, Kind, Row, named

import optkit as ok


def params() -> dict[str, Any]:
    """Five entries in two leaves."""
    return {"b": jnp.array([0.3, -0.7]), "w": jnp.array([1.0, -2.0, 0.5])}


def loss(p: Any) -> jax.Array:
    """A quartic."""
    return sum(jnp.sum(x**2) + 0.1 * jnp.sum(x**4) for x in jax.tree.leaves(p))


def like(number: float, tree: Any = None) -> Any:
    """A tree of one modulus, in the signs of the params."""
    tree = params() if tree is None else tree
    return jax.tree.map(lambda x: number * jnp.sign(x), tree)


def half() -> Any:
    """A tree of which one leaf is narrower than its param."""
    return params() | {"b": jnp.ones(2, jnp.float16)}


def nothing() -> Any:
    """A None and an empty leaf."""
    return {"a": None, "b": jnp.zeros((0, 2))}


@dataclass(frozen=True, kw_only=True)
class Transform(Row):
    """An optax transform."""

    extra: Callable[[Any], dict[str, Any]] = lambda p: {}  # what its update takes

    def tx(self) -> Any:
        """The transform."""
        return optax.with_extra_args_support(self.make())

    def step(self, grads: Any, p: Any = None, **extra: Any) -> Any:
        """The update of one step."""
        p, tx = params() if p is None else p, self.tx()
        return tx.update(grads, tx.init(p), p, **(self.extra(p) | extra))[0]

    def without_params(self) -> Any:
        """The update of a step that gets the gradients alone."""
        tx = self.tx()
        return tx.update(params(), tx.init(params()), **self.extra(params()))[0]

    def with_old_state(self) -> Any:
        """The update from a state that was made for other params."""
        tx, extra = self.tx(), self.extra(params())
        state = tx.init({"w": jnp.ones(2)})
        return tx.update(params(), state, params(), **extra)[0]

    def bad_entry(self, value: float) -> Any:
        """The update of an entry in the step in which it is bad, both drawn."""
        rng = np.random.default_rng(0)
        when, leaf, entry = rng.integers(3), ("b", "w")[rng.integers(2)], 1
        tx, p = self.tx(), params()
        state, grads, u = tx.init(p), params(), params()
        for t in range(when + 1):
            bad = grads | {leaf: grads[leaf].at[entry].set(value)}
            g = bad if t == when else grads
            u, state = tx.update(g, state, p, **self.extra(p))
        return u[leaf][entry]

    def next_step(self) -> Any:
        """The update of the step after a NaN that `apply_if_finite` kept out."""
        tx, p = optax.apply_if_finite(self.tx(), 5), params()
        state, u = tx.init(p), p
        for g in (params() | {"b": jnp.array([NAN, 1.0])}, params()):
            u, state = tx.update(g, state, p, **self.extra(p))
        return u


# fmt: off
OLD_STATE = Fault("shape", "a state of other params", Raises(ValueError, "structure"),
    Transform.with_old_state)
OF_TRANSFORMS = [
    Fault("nan", "NaN in a gradient", Shows(), lambda tx: tx.bad_entry(NAN)),
    Fault("nan", "infinity in a gradient", Shows(), lambda tx: tx.bad_entry(INF)),
    Fault("nan", "the step after a NaN kept out", Right(), Transform.next_step),
    Fault("zero", "gradients of 0", Right(all_zero), lambda tx: tx.step(like(0.0))),
    Fault("huge", "gradients of 1e38", Right(), lambda tx: tx.step(like(1e38))),
    Fault("tiny", "gradients of 1e-38", Right(), lambda tx: tx.step(like(1e-38))),
    Fault("empty", "params without entries", Right(lambda u: u["a"] is None),
        lambda tx: tx.step(nothing(), nothing())),
    Fault("tree", "gradients that lack a leaf", Raises(ValueError, "structure"),
        lambda tx: tx.step({"w": jnp.ones(3)})),
    Fault("shape", "gradients of another shape", Raises(ValueError, "(2,)"),
        lambda tx: tx.step({"b": jnp.ones(2), "w": jnp.ones(2)})),
    OLD_STATE,
    Fault("dtype", "gradients in float16",
        Right(lambda u: finite(u) and u["b"].dtype == "f2"),
        lambda tx: tx.step(half())),
    Fault("dtype", "integer params", Raises(TypeError, "int32"),
        lambda tx: tx.tx().init({"w": jnp.arange(3)})),
    Fault("dtype", "complex params", Raises(TypeError, "complex64"),
        lambda tx: tx.tx().init({"w": jnp.ones(3, "c8")})),
    Fault("missing", "no params", Raises(ValueError, "params"),
        Transform.without_params),
]
# fmt: on


def diag(p: Any) -> dict[str, Any]:
    """A Hessian diagonal of ones."""
    return {"hessian_diag": jax.tree.map(jnp.ones_like, p)}


def with_diag(value: Any) -> Callable[[Transform], Any]:
    """A step with this diagonal, or with one of this modulus."""
    return lambda tx: tx.step(
        params(), hessian_diag=like(value) if isinstance(value, float) else value
    )


# fmt: off
OF_DIAGONALS = [
    Fault("nan", "NaN in the diagonal", Shows(), with_diag(NAN)),
    Fault("nan", "infinity in the diagonal", Shows(), with_diag(INF)),
    Fault("zero", "a diagonal of 0", Right(), with_diag(0.0)),
    Fault("huge", "a diagonal of 1e38", Shows(), with_diag(1e38)),
    Fault("tiny", "a diagonal of 1e-38", Right(), with_diag(1e-38)),
    Fault("singular", "a negative diagonal", Right(), with_diag(-1.0)),
    Fault("missing", "no diagonal", Raises(ValueError, "=None"), with_diag(None)),
    Fault("tree", "a diagonal without leaves", Raises(ValueError, "structure"),
        with_diag({})),
    Fault("shape", "a diagonal of scalars", Raises(ValueError, "()"),
        with_diag({"b": 1.0, "w": 1.0})),
    Fault("dtype", "a diagonal in float16", Right(), lambda tx: with_diag(half())(tx)),
]
# fmt: on
NO_DECAY = {"no params": Right()}
OVERFLOWS = {"gradients of 1e38": Shows()}
ONE_DTYPE = {"gradients in float16": Raises(TypeError, "float16")}
PROMOTES = {"gradients in float16": Right()}
OPTAX_ASKS = {"no params": Foreign(ValueError, "`params`")}
TAKES_COMPLEX = {"complex params": Right()}
DECAYS = {"gradients of 0": Right()}
# `scale_by_penalty` has no state, and scales any tree.
STATELESS = (
    "no params",
    "complex params",
    "integer params",
    "a state of other params",
    "gradients that lack a leaf",
    "gradients of another shape",
)
STEPS = dict.fromkeys(("learning_rate", "weight_decay"), opt.NON_NEGATIVE)
ADAN = {"eps": opt.NON_NEGATIVE, "state_dtype": opt.DTYPE} | dict.fromkeys(
    ("b1", "b2", "b3"), opt.DECAY
)
ADAHESSIAN = {
    "b1": opt.DECAY,
    "b2": opt.DECAY,
    "eps": opt.NON_NEGATIVE,
    "hessian_power": opt.NON_NEGATIVE,
    "state_dtype": opt.DTYPE,
    "average": opt.FUNCTION,
}
SOPHIA = {
    "b1": opt.DECAY,
    "b2": opt.DECAY,
    "gamma": opt.POSITIVE,
    "eps": opt.POSITIVE,
    "update_interval": opt.COUNT,
    "state_dtype": opt.DTYPE,
}
MFAC = {"window": opt.COUNT, "damping": opt.POSITIVE, "window_dtype": opt.DTYPE}

# fmt: off
TRANSFORMS = Kind("Optimizers", OF_TRANSFORMS, [
    Transform("optim.scale_by_adan", ok.optim.scale_by_adan, ADAN,
        differs=NO_DECAY | OVERFLOWS | ONE_DTYPE | TAKES_COMPLEX,
        covers=("optim.AdanState",)),
    Transform("optim.adan", partial(ok.optim.adan, learning_rate=0.1, weight_decay=0.1),
        STEPS | ADAN, differs=DECAYS | OVERFLOWS | ONE_DTYPE | TAKES_COMPLEX, faults=[
        Fault("option", "a learning rate of 0", Right(all_zero),
            lambda tx: replace(tx, make=lambda: ok.optim.adan(0.0)).step(params())),
    ]),
    Transform("optim.scale_by_adahessian", ok.optim.scale_by_adahessian, ADAHESSIAN,
        extra=diag, differs=NO_DECAY, covers=("optim.AdaHessianState",), faults=[
        *OF_DIAGONALS,
        Fault("function", "an average of another shape", Raises(ValueError, "shape"),
            lambda tx: tx.make(average=jnp.sum).init(params())),
    ]),
    Transform("optim.adahessian",
        partial(ok.optim.adahessian, learning_rate=0.1, weight_decay=0.1),
        STEPS | ADAHESSIAN, extra=diag, differs=DECAYS | PROMOTES | OPTAX_ASKS,
        faults=OF_DIAGONALS),
    Transform("optim.scale_by_sophia", ok.optim.scale_by_sophia, SOPHIA, extra=diag,
        differs=NO_DECAY | {"a diagonal of 1e38": Right()},
        covers=("optim.SophiaState",), faults=OF_DIAGONALS),
    Transform("optim.sophia",
        partial(ok.optim.sophia, learning_rate=0.1, weight_decay=0.1), STEPS | SOPHIA,
        extra=diag,
        differs=DECAYS | PROMOTES | OPTAX_ASKS | {"a diagonal of 1e38": Right()},
        faults=OF_DIAGONALS),
    Transform("optim.scale_by_mfac",
        partial(ok.optim.scale_by_mfac, window=4, damping=0.1), MFAC,
        differs=NO_DECAY | OVERFLOWS | ONE_DTYPE, covers=("optim.MfacState",)),
    Transform("optim.mfac",
        partial(ok.optim.mfac, learning_rate=0.1, window=4, damping=0.1, momentum=0.9,
            weight_decay=0.1), STEPS | MFAC | {"momentum": opt.DECAY},
        # optax's weight decay, before M-FAC, sees the gradients first.
        differs=DECAYS | OVERFLOWS | ONE_DTYPE | OPTAX_ASKS | {
            "gradients that lack a leaf": Foreign(ValueError, "pytree"),
            "gradients of another shape": Foreign(TypeError, "shapes")}),
    Transform("optim.proximal_weight_decay",
        partial(ok.optim.proximal_weight_decay, learning_rate=0.1, weight_decay=0.1),
        STEPS, differs=DECAYS | TAKES_COMPLEX | {"a state of other params": Right()},
        covers=("optim.ProximalDecayState",)),
    Transform("bilevel.scale_by_penalty", ok.bilevel.scale_by_penalty,
        extra=lambda p: {"penalty": 2.0}, differs=dict.fromkeys(STATELESS, Right()),
        faults=[
        Fault("missing", "no penalty", Raises(TypeError, "penalty"),
            lambda tx: replace(tx, extra=lambda p: {}).step(params())),
    ]),
])
# fmt: on


def estimate(fn: Any = loss, **extra: Any) -> Callable[[Transform], Any]:
    """A step with this objective, or with other arguments."""
    return lambda tx: tx.step(params(), **({"value_fn": fn} | extra))


# fmt: off
OBJECTIVES = [
    Fault("nan", "an objective of NaN", Shows(), estimate(lambda p: loss(p) * NAN)),
    Fault("zero", "a linear objective", Right(), estimate(lambda p: jnp.sum(p["w"]))),
    Fault("singular", "a concave objective", Right(), estimate(lambda p: -loss(p))),
    Fault("missing", "no objective", Raises(ValueError, "value_fn"), estimate(None)),
    Fault("object", "a number as objective", Raises(TypeError, "value_fn"),
        estimate(3.0)),
    Fault("option", "two objectives", Raises(ValueError, "obj_fn"),
        estimate(obj_fn=loss)),
    Fault("option", "a diagonal of the caller's", Raises(ValueError, "hessian_diag"),
        lambda tx: tx.step(params(), **diag(params()))),
    Fault("function", "an objective that returns an array",
        Raises(ValueError, "one real scalar"), estimate(lambda p: p["w"])),
    Fault("function", "an objective that returns None",
        Raises(ValueError, "one real scalar"), estimate(lambda p: None)),
    Fault("function", "an objective that is complex", Raises(TypeError, "real"),
        estimate(lambda p: loss(p) * 1j)),
    Fault("tree", "params that a mask hides in part", Raises(ValueError, "outside"),
        lambda tx: optax.masked(tx.make(), {"b": False, "w": True}).init(params())),
]
WRAPPERS = Kind("Wrappers", OF_TRANSFORMS, [
    Transform("optim.with_hutchinson",
        partial(ok.optim.with_hutchinson, tx=ok.optim.scale_by_adahessian(),
            key=jr.key(0)),
        {"tx": opt.TRANSFORM, "key": opt.KEY, "update_interval": opt.COUNT,
            "num_probes": opt.COUNT}, extra=lambda p: {"value_fn": loss},
        differs=named("ok.optim.scale_by_adahessian", [OLD_STATE]),
        covers=("optim.HutchinsonState",), faults=OBJECTIVES),
    Transform("optim.split_real_and_imaginary",
        partial(ok.optim.split_real_and_imaginary, tx=ok.optim.scale_by_adan()),
        {"tx": opt.TRANSFORM},
        differs=named("ok.optim.scale_by_adan", OF_TRANSFORMS) | NO_DECAY | OVERFLOWS
        | TAKES_COMPLEX | {"gradients in float16": replace(
            ONE_DTYPE["gradients in float16"], call="ok.optim.scale_by_adan")}),
    Transform("optim.accumulate",
        partial(ok.optim.accumulate, tx=optax.sgd(0.1), every=1),
        {"tx": opt.TRANSFORM, "every": opt.COUNT}, differs=NO_DECAY | TAKES_COMPLEX,
        covers=("optim.AccumulateState",), faults=[
        Fault("nan", "NaN in the diagonal", Right(), with_diag(NAN)),
        Fault("tree", "a diagonal without leaves", Raises(ValueError, "structure"),
            with_diag({})),
    ]),
])
AVERAGES = Kind("Averages of a Hessian diagonal", [
    Fault("nan", "NaN", Shows(), lambda f: f.make()(jnp.full((2, 2, 1, 2), NAN))),
    Fault("empty", "an empty array", Right(lambda x: x.shape == (0, 2, 1, 1)),
        lambda f: f.make()(jnp.zeros((0, 2, 1, 1)))),
    Fault("shape", "a leaf of one axis", Right(lambda x: x.shape == (3,)),
        lambda f: f.make()(jnp.ones(3))),
    Fault("shape", "a scalar leaf", Right(lambda x: x.shape == ()),
        lambda f: f.make()(jnp.ones(()))),
], [
    Row("optim.average_conv_kernels", lambda: ok.optim.average_conv_kernels),
    Row("optim.average_rows", lambda: ok.optim.average_rows, faults=[
        Fault("object", "axes that are a tuple", Raises(TypeError, "a dict such as"),
            lambda f: f.make()(jnp.ones((2, 3)), axes=(1,))),
    ]),
    Row("optim.average_blocks", partial(ok.optim.average_blocks, size=2),
        {"size": opt.COUNT}, faults=[
        Fault("shape", "a size that divides no axis", Raises(ValueError, "divides"),
            lambda f: f.make(size=3)(jnp.ones((2, 2)))),
    ]),
])
STATES = Kind("Functions of a state", [], [
    Row("optim.restart_adan", ok.optim.restart_adan, faults=[
        Fault("nan", "a state of NaN", Right(),
            lambda f: f.make(ok.optim.scale_by_adan().init(like(NAN)))),
        Fault("object", "a state of Adam", Raises(TypeError, "AdanState"),
            lambda f: f.make(optax.adam(0.1).init(params()))),
        Fault("empty", "no state", Raises(TypeError, "Adan"), lambda f: f.make(())),
    ]),
])
# fmt: on

KINDS = [TRANSFORMS, WRAPPERS, AVERAGES, STATES]
