"""Faults of nested problems: objectives, batches, transforms, penalties gone wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from faulty import table

import optkit as ok

INF, NAN = float("inf"), float("nan")


def upper(x: Any, y: Any, batch: Any) -> jax.Array:
    """½ |y - 1|² + ½ |x|², times the batch."""
    return 0.5 * jnp.sum((y - 1) ** 2 + x**2) * batch


def lower(x: Any, y: Any, batch: Any) -> jax.Array:
    """½ |y - x|², times the batch."""
    return 0.5 * jnp.sum((y - x) ** 2) * batch


def saddle(x: Any, y: Any, batch: Any) -> jax.Array:
    """Not convex in y."""
    return jnp.sum(y * x) * batch - 0.5 * jnp.sum(y**2)


def vector(x: Any, y: Any, batch: Any) -> jax.Array:
    """No scalar."""
    return y - x


SGD = optax.sgd(0.1)
METHODS = {
    "bilevel.Implicit": lambda: ok.bilevel.Implicit(ok.CG()),
    "bilevel.ImplicitProjected": lambda: ok.bilevel.ImplicitProjected(jax.nn.relu, 0.5),
    "bilevel.Unrolled": lambda: ok.bilevel.Unrolled(2, SGD),
    "bilevel.ForwardMode": lambda: ok.bilevel.ForwardMode(2, SGD),
}
SOLVERS = {
    "bilevel.f2sa": (ok.bilevel.f2sa, {"penalty": 2.0}),
    "bilevel.f3sa": (ok.bilevel.f3sa, {"penalty": 2.0, "decay": 0.5}),
    "bilevel.penalty": (ok.bilevel.penalty, {"sigma": 0.5, "inner_steps": 1}),
    "bilevel.penalty_momentum": (
        ok.bilevel.penalty_momentum,
        {"sigma": 0.5, "decay": 0.5},
    ),
    "bilevel.soba": (ok.bilevel.soba, {}),
    "bilevel.saba": (ok.bilevel.saba, {"num_upper": 2, "num_lower": 2}),
    "bilevel.hypergradient_descent": (
        ok.bilevel.hypergradient_descent,
        {"method": ok.bilevel.Implicit(ok.CG()), "inner": SGD},
    ),
}


def solver(name: str, f: Any = upper, g: Any = lower, **options: Any) -> Any:
    """A solver with other options."""
    make, given = SOLVERS[name]
    return make(f, g, **({"outer": SGD, "inner": SGD} | given | options))


def batches(name: str, batch: Any) -> Any:
    """The batch, for SABA with what the samples are."""
    if name != "saba":
        return batch
    term = ok.bilevel.Term(jnp.zeros((), jnp.int32), batch)
    return ok.bilevel.Batches(upper_x=term, lower_x=term)


def step(
    name: str, batch: Any = 1.0, f: Any = upper, g: Any = lower, **options: Any
) -> Any:
    """The state after a step, and how it went."""
    made = solver(name, f, g, **options)
    state = made.init(jnp.ones(2), jnp.zeros(2))
    return made.step(state, batches(name, batch))


def stays(name: str, batch: Any) -> Any:
    """The step of x in a step that fails."""
    state, _ = step(name, batch)
    return jnp.abs(state.x - 1) + jnp.abs(state.y)


def from_nan(state: str) -> Any:
    """A step from a state that is NaN, and how it went."""
    names = {"DescentState": "hypergradient_descent"}
    snake = "".join("_" + c.lower() if c.isupper() else c for c in state[:-5])[1:]
    name = names.get(state, snake)
    made = solver(name)
    nan = made.init(jnp.full(2, NAN), jnp.zeros(2))
    return made.step(nan, batches(name, 1.0))


def init(name: str, x: Any, y: Any = None) -> Any:
    """The first state."""
    return solver(name).init(x, jnp.zeros(2) if y is None else y)


def gradient(
    name: str,
    x: Any = None,
    y: Any = None,
    f: Any = upper,
    g: Any = lower,
    batch: Any = 1.0,
) -> Any:
    """The hypergradient and how it went."""
    x, y = (jnp.ones(2) if v is None else v for v in (x, y))
    return ok.bilevel.hypergradient(f, g, method=METHODS[name]())(x, y, batch)


def constants(**options: Any) -> Any:
    """Of a problem."""
    return ok.bilevel.Constants(
        **({"convexity": 1.0, "lower": 1.0, "upper": 1.0} | options)
    )


def run(
    batches: Any = None, num_steps: Any = 2, made: Any = None, **options: Any
) -> Any:
    """Two steps."""
    made = solver("soba") if made is None else made
    state = made.init(jnp.ones(2), jnp.zeros(2))
    batches = (lambda k: 1.0) if batches is None else batches
    return ok.run(made, state, batches, num_steps, **options)


ROWS = table(
    globals(),
    """
    f2sa f3sa penalty penalty_momentum soba saba hypergradient_descent:
        nan       step("{}", NAN)                       -> nonfinite_gradient
        nan       stays("{}", INF)                      -> right: not x.any()
        zero      step("{}", 0.0)[0].x                  -> right
        tiny      step("{}", 1e-30)[0].x                -> right
        dtype     init("{}", jnp.arange(2))             -> TypeError: int32
        dtype     init("{}", jnp.ones(2, "c8"))         -> TypeError: complex64
        dtype     init("{}", jnp.ones(2), jnp.arange(2))  -> TypeError: int32
        function  step("{}", f=vector)                  -> ValueError: one real scalar
        function  step("{}", g=vector)                  -> ValueError: one real scalar
        object    solver("{}", f=3.0)                   -> TypeError: upper(x, y, batch)
        object    solver("{}", g=3.0)                   -> TypeError: lower(x, y, batch)
        object    solver("{}", outer=0.1)  -> TypeError: optax transform for outer
        object    solver("{}", inner=0.1)  -> TypeError: optax transform for inner
        shape     step("{}", project_x=lambda x: x[:1])  -> ValueError: shape
        dtype     step("{}", project_x=lambda x: x.astype("f2"))  -> TypeError: float16
        object    step("{}", project_x=3.0)             -> TypeError: function
    f2sa f3sa penalty penalty_momentum hypergradient_descent:
        huge      step("{}", 3e38)                      -> nonfinite_gradient
    bilevel.soba bilevel.saba:
        huge      step("{}", 3e38)                      -> right: finite(x[0])
    f2sa f3sa penalty penalty_momentum:
        object    solver("{}", project_y=3.0)           -> TypeError: function
    f2sa f3sa:
        option    solver("{}", penalty=0.0)             -> ValueError: penalty > 0
        option    solver("{}", penalty=NAN)             -> ValueError: penalty > 0
        option    step("{}", penalty=lambda k: 0.0 * k)  -> bad_penalty
        object    solver("{}", penalty="2")             -> TypeError: penalty
    f2sa penalty:
        option    solver("{}", inner_steps=0)           -> ValueError: inner_steps >= 1
    f3sa penalty_momentum:
        option    solver("{}", decay=1.0)               -> ValueError: 0 <= decay < 1
    bilevel.penalty bilevel.penalty_momentum:
        option    solver("{}", sigma=-1.0)              -> ValueError: sigma > 0
        option    solver("{}", averaging=0.0)           -> ValueError: averaging
        option    solver("{}", prox_step=-1.0)          -> ValueError: prox_step > 0
    bilevel.hypergradient_descent:
        object    solver("{}", method="cg")             -> TypeError: method
        option    solver("{}", inner_steps=0)           -> ValueError: inner_steps >= 1
        missing   solver("{}", inner=None)              -> ValueError: inner
        singular  step("{}", g=saddle)                  -> indefinite
    bilevel.saba:
        option    solver("{}", num_upper=0)             -> ValueError: num_upper >= 1
        missing   solver("{}").step(init("{}", jnp.ones(2)), 1.0)  -> TypeError: ok.bilevel.Term

    bilevel.Implicit bilevel.ImplicitProjected bilevel.Unrolled bilevel.ForwardMode:
        nan       gradient("{}", x=jnp.full(2, NAN))[0]  -> NaN
        zero      gradient("{}", batch=0.0)[0]          -> right
    bilevel.Implicit bilevel.ImplicitProjected bilevel.Unrolled bilevel.ForwardMode (ok.bilevel.hypergradient):
        dtype     gradient("{}", x=jnp.arange(2))       -> TypeError: int32
        function  gradient("{}", g=vector)              -> ValueError: one real scalar
    bilevel.Implicit:
        nan       gradient("{}", batch=NAN)             -> nonfinite_input
        singular  gradient("{}", y=jnp.zeros(2), g=saddle)  -> indefinite
        option    ok.{}(ok.CG(), -1.0)                  -> ValueError: damping >= 0
        object    ok.{}("cg")                           -> TypeError: method
    bilevel.ImplicitProjected:
        option    ok.{}(jax.nn.relu, 0.0)               -> ValueError: step_size > 0
        object    ok.{}(3.0, 0.5)                       -> TypeError: function
        object    ok.{}(jax.nn.relu, 0.5, "cg")         -> TypeError: solver
    bilevel.Unrolled:
        option    ok.{}(0, SGD)                         -> ValueError: num_steps >= 1
        option    ok.{}(2, SGD, truncate=3)             -> ValueError: truncate=3
        option    ok.{}(2, SGD, checkpoint=0)           -> ValueError: checkpoint >= 1
        object    ok.{}(2, 0.1)                         -> TypeError: optax transform
    bilevel.ForwardMode:
        option    ok.{}(1.5, SGD)                       -> ValueError: num_steps >= 1
        option    ok.{}(2, SGD, chunk=0)                -> ValueError: chunk >= 1
        object    ok.{}(2, 0.1)                         -> TypeError: optax transform
    bilevel.hypergradient:
        nan       gradient("Unrolled", batch=NAN)[0]    -> NaN
        object    ok.{}(3.0, lower, method=METHODS["Implicit"]()) \
                  -> TypeError: upper(x, y, batch)
        object    ok.{}(upper, lower, method="cg")      -> TypeError: method
        dtype     gradient("Implicit", y=jnp.arange(2))  -> TypeError: int32
        function  gradient("Implicit", f=vector)        -> ValueError: one real scalar
    Solver (ok.run):
        object    ok.run(SGD, None, lambda k: 1.0, 2)   -> TypeError: Solver
    run:
        nan       run(lambda k: NAN).history            -> nonfinite_gradient
        option    run(num_steps=0)                      -> ValueError: num_steps >= 1
        option    run(every=0)                          -> ValueError: every >= 1
        empty     run([])                               -> ValueError: without batches
        object    run(3.0)                              -> TypeError: iterable
        object    ok.{}(SGD, None, lambda k: 1.0, 2)    -> TypeError: Solver
    bilevel.Batches:
        shape     step("f2sa", ok.{}(1.0, jnp.ones(3), 1.0, jnp.ones(3), jnp.ones(3)), \
                  inner_steps=2)                        -> ValueError: leading axis of 2
    bilevel.Term (ok.bilevel.saba):
        option    solver("saba").step(init("saba", jnp.ones(2)), \
                  ok.bilevel.Batches(upper_x=ok.{}(9, 1.0), lower_x=ok.{}(0, 1.0)))[0].x \
                  -> right
    F2saState F3saState PenaltyState PenaltyMomentumState SobaState SabaState \
    bilevel.DescentState:
        nan       from_nan("{}")                        -> nonfinite_gradient
    bilevel.Constants (ok.bilevel.f2sa_schedule):
        option    ok.bilevel.f2sa_schedule(constants(convexity=0.0)) \
                  -> ValueError: convexity > 0
        option    ok.bilevel.f2sa_schedule(constants(total=-1.0))  -> ValueError: total >= 0
    f2sa_schedule f3sa_schedule:
        option    ok.{}(constants(lower=NAN))           -> ValueError: lower > 0
        option    ok.{}(constants(), ratio=0.0)         -> ValueError: ratio > 0
        object    ok.{}(3.0)                            -> TypeError: ok.bilevel.Constants
    f2sa_schedule:
        option    ok.{}(constants(), inner_steps=0)     -> ValueError: inner_steps >= 1
    bilevel.PenaltySchedule:
        option    ok.{}(0.5, 0.2, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0) \
                  -> ValueError: c_alpha > 0
        option    ok.{}(-0.5, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  -> ValueError: a >= 0
        option    ok.{}(0.5, 0.2, 1.0, 1.0, 1.0, NAN, 1.0, 1.0) \
                  -> ValueError: initial_penalty > 0
        option    step("f2sa", penalty=ok.{}(0.0, 0.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0)) \
                  -> schedule_bounds
    bilevel.sigma_schedule:
        option    ok.{}(0.0)                            -> ValueError: initial > 0
        option    ok.{}(1.0, power=-1.0)                -> ValueError: power >= 0
        option    ok.{}(1.0, floor=NAN)                 -> ValueError: floor >= 0
    bilevel.scale_by_penalty:
        missing   ok.{}().update(jnp.ones(2), ok.{}().init(jnp.ones(2))) \
                  -> TypeError: penalty
        nan       ok.{}().update(jnp.full(2, NAN), ok.{}().init(jnp.ones(2)), \
                  penalty=1.0)[0]  -> NaN
    """,
)
