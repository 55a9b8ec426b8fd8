"""Faults of nested problems: objectives, batches, transforms, schedules, loops."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import fault_options as opt
import jax
import jax.numpy as jnp
import optax
from fault_outcomes import INF, NAN, Raises, Reports, Right, Shows, all_zero, finite
from faulty import Fault, Kind, Row

import optkit as ok

SGD = optax.sgd(0.1)


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
    """Not a scalar."""
    return y - x


@dataclass(frozen=True, kw_only=True)
class Loop(Row):
    """`make(upper, lower, ...)` is a solver."""

    data: Callable[[Any], Any] = lambda batch: batch  # what a step takes

    def solver(self, **options: Any) -> Any:
        """The solver, with these instead of good arguments."""
        return self.make(**({"upper": upper, "lower": lower, "outer": SGD} | options))

    @cached_property
    def good(self) -> Any:
        """The solver with good arguments, compiled once."""
        return self.solver()

    def with_option(self, name: str, value: Any) -> Any:
        """A step with another value of an option."""
        return self.step(**{name: value})

    def init(self, x: Any = None, y: Any = None) -> Any:
        """The first state."""
        x, y = (jnp.ones(2) if x is None else x), (jnp.zeros(2) if y is None else y)
        return self.good.init(x, y)

    def step(self, batch: Any = 1.0, *, x: float = 1.0, **options: Any) -> Any:
        """The state after a step, and how it went."""
        made = self.solver(**options) if options else self.good
        return made.step(made.init(jnp.full(2, x), jnp.zeros(2)), self.data(batch))

    def change(self, batch: Any) -> Any:
        """By how much x and y change."""
        state, _ = self.step(batch)
        return jnp.abs(state.x - 1) + jnp.abs(state.y)


NOT_FINITE = Reports("nonfinite_gradient")
# fmt: off
OF_SOLVERS = [
    Fault("nan", "a batch of NaN", NOT_FINITE, lambda s: s.step(NAN)),
    Fault("nan", "x and y after an infinite batch", Right(all_zero, "as before"),
        lambda s: s.change(INF)),
    Fault("nan", "a state of NaN", NOT_FINITE, lambda s: s.step(x=NAN)),
    Fault("zero", "a batch of 0", Right(), lambda s: s.step(0.0)[0].x),
    Fault("huge", "a batch of 3e38", NOT_FINITE, lambda s: s.step(3e38)),
    Fault("tiny", "a batch of 1e-30", Right(), lambda s: s.step(1e-30)[0].x),
    Fault("shape", "a projection of x to another shape", Raises(ValueError, "shape"),
        lambda s: s.step(project_x=lambda x: x[:1])),
    Fault("dtype", "a projection of x to float16", Raises(TypeError, "float16"),
        lambda s: s.step(project_x=lambda x: x.astype("f2"))),
    Fault("dtype", "an integer x", Raises(TypeError, "int32"),
        lambda s: s.init(x=jnp.arange(2))),
    Fault("dtype", "a complex x", Raises(TypeError, "complex64"),
        lambda s: s.init(x=jnp.ones(2, "c8"))),
    Fault("dtype", "an integer y", Raises(TypeError, "int32"),
        lambda s: s.init(y=jnp.arange(2))),
    Fault("function", "an upper objective that returns an array",
        Raises(ValueError, "one real scalar"), lambda s: s.step(upper=vector)),
    Fault("function", "a lower objective that returns an array",
        Raises(ValueError, "one real scalar"), lambda s: s.step(lower=vector)),
]
BAD_PENALTY = Fault("option", "a penalty that becomes 0", Reports("bad_penalty"),
    lambda s: s.step(penalty=lambda k: 0.0 * k))
AVERAGING = Fault("option", "an average of weight 2", Raises(ValueError, "averaging"),
    lambda s: s.step(averaging=2.0))


def misused(made: Any, *others: str) -> list[Fault]:
    """Faults of `schedule`, which stands for all `others`; `made` has no guarantees."""
    alone = dict.fromkeys(("outer", "inner", *others))
    return [
        Fault("option", "a schedule without guarantees", Reports("schedule_bounds"),
            lambda s: s.step(**alone, schedule=made)),
        Fault("option", "a schedule and a step size", Raises(ValueError, "alone"),
            lambda s: s.step(schedule=made)),
        Fault("missing", "neither a schedule nor step sizes",
            Raises(ValueError, "instead of all"), lambda s: s.step(**alone)),
        Fault("object", "a number for the schedule", Raises(TypeError, "_schedule"),
            lambda s: s.step(**alone, schedule=3.0)),
    ]


UNSAFE = {"a": 0.0, "c": 0.0, "c_alpha": 1.0, "c_gamma": 1.0, "k0": 1.0}
OF_F2SA = ok.bilevel.PenaltySchedule(
    **UNSAFE, initial_penalty=9.0, growth=1.0, target=1.0)
OF_F3SA = ok.bilevel.MomentumSchedule(**UNSAFE, initial_penalty=9.0)
# fmt: on
OF_ALL = {
    "upper": opt.FUNCTION,
    "lower": opt.FUNCTION,
    "outer": opt.TRANSFORM,
    "inner": opt.TRANSFORM,
    "project_x": opt.FUNCTION,
}
OF_PENALTIES = OF_ALL | {"project_y": opt.FUNCTION}
OF_PROXIMAL = OF_PENALTIES | {
    "sigma": opt.POSITIVE,
    "prox_step": opt.POSITIVE,
    "averaging": opt.POSITIVE,
}
TAKES_HUGE = {"a batch of 3e38": Right(lambda out: finite(out[0]))}


def terms(batch: Any, sample: int = 0) -> Any:
    """The batch as that of a sample."""
    term = ok.bilevel.Term(jnp.asarray(sample, jnp.int32), batch)
    return ok.bilevel.Batches(upper_x=term, lower_x=term)


# fmt: off
SOLVERS = Kind("Bilevel solvers", OF_SOLVERS, [
    Loop("bilevel.f2sa", partial(ok.bilevel.f2sa, inner=SGD, penalty=2.0),
        OF_PENALTIES | {"penalty": opt.POSITIVE, "inner_steps": opt.COUNT},
        covers=("bilevel.PenaltyState", "bilevel.Batches"), faults=[
        BAD_PENALTY,
        *misused(OF_F2SA, "penalty"),
        Fault("shape", "batches of three steps for two",
            Raises(ValueError, "leading axis of 2", call="ok.bilevel.Batches"),
            lambda s: s.step(
                ok.bilevel.Batches(1.0, jnp.ones(3), 1.0, jnp.ones(3), jnp.ones(3)),
                inner_steps=2)),
    ]),
    Loop("bilevel.f3sa", partial(ok.bilevel.f3sa, inner=SGD, penalty=2.0, decay=0.5),
        OF_PENALTIES | {"penalty": opt.POSITIVE, "decay": opt.DECAY},
        faults=[BAD_PENALTY, *misused(OF_F3SA, "penalty", "decay")]),
    Loop("bilevel.penalty",
        partial(ok.bilevel.penalty, inner=SGD, sigma=0.5, inner_steps=1),
        OF_PROXIMAL | {"inner_steps": opt.COUNT},
        faults=[AVERAGING, *misused(OF_F2SA, "sigma", "inner_steps")]),
    Loop("bilevel.penalty_momentum",
        partial(ok.bilevel.penalty_momentum, inner=SGD, sigma=0.5, decay=0.5),
        OF_PROXIMAL | {"decay": opt.DECAY},
        faults=[AVERAGING, *misused(OF_F3SA, "sigma", "decay")]),
    Loop("bilevel.soba", partial(ok.bilevel.soba, inner=SGD), OF_ALL,
        differs=TAKES_HUGE, covers=("bilevel.SobaState",)),
    Loop("bilevel.saba", partial(ok.bilevel.saba, inner=SGD, num_upper=2, num_lower=2),
        OF_ALL | {"num_upper": opt.COUNT, "num_lower": opt.COUNT}, data=terms,
        differs=TAKES_HUGE, covers=("bilevel.SabaState", "bilevel.Term"), faults=[
        Fault("missing", "a batch that does not say its samples",
            Raises(TypeError, "Term"), lambda s: s.good.step(s.init(), 1.0)),
        Fault("option", "a sample beyond the last", Right(),
            lambda s: s.good.step(s.init(), terms(1.0, 9))[0].x),
    ]),
    Loop("bilevel.hypergradient_descent",
        partial(ok.bilevel.hypergradient_descent, inner=SGD,
            method=ok.bilevel.Implicit(ok.CG())),
        OF_PENALTIES | {"inner_steps": opt.COUNT, "method": opt.METHOD},
        covers=("bilevel.DescentState",), faults=[
        Fault("missing", "no transform of y", Raises(ValueError, "inner"),
            lambda s: s.solver(inner=None)),
        Fault("singular", "a lower objective that is not convex", Reports("indefinite"),
            lambda s: s.step(lower=saddle)),
    ]),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Hypergradient(Row):
    """`make(...)` is a method for hypergradients."""

    @cached_property
    def good(self) -> Any:
        """The hypergradient of good objectives, compiled once."""
        return jax.jit(ok.bilevel.hypergradient(upper, lower, method=self.make()))

    def at(
        self, x: Any = None, y: Any = None, batch: Any = 1.0, **objectives: Any
    ) -> Any:
        """The hypergradient and how it went."""
        x, y, estimate = jnp.ones(2) if x is None else x, y, self.good
        if objectives:
            given = {"upper": upper, "lower": lower, "method": self.make()} | objectives
            estimate = ok.bilevel.hypergradient(**given)
        return estimate(x, jnp.ones(2) if y is None else y, batch)


MAKER = "ok.bilevel.hypergradient"
# fmt: off
HYPERGRADIENTS = Kind("Hypergradients", [
    Fault("nan", "x of NaN", Shows(), lambda m: m.at(jnp.full(2, NAN))[0]),
    Fault("nan", "a batch of NaN", Shows(), lambda m: m.at(batch=NAN)[0]),
    Fault("zero", "a batch of 0", Right(), lambda m: m.at(batch=0.0)[0]),
    Fault("dtype", "an integer x", Raises(TypeError, "int32", MAKER),
        lambda m: m.at(x=jnp.arange(2))),
    Fault("dtype", "an integer y", Raises(TypeError, "int32", MAKER),
        lambda m: m.at(y=jnp.arange(2))),
    Fault("function", "an upper objective that returns an array",
        Raises(ValueError, "one real scalar", MAKER), lambda m: m.at(upper=vector)),
    Fault("function", "a lower objective that returns an array",
        Raises(ValueError, "one real scalar", MAKER), lambda m: m.at(lower=vector)),
    Fault("object", "a number as upper objective",
        Raises(TypeError, "for upper", MAKER), lambda m: m.at(upper=3.0)),
], [
    Hypergradient("bilevel.Implicit", partial(ok.bilevel.Implicit, solver=ok.CG()),
        {"solver": opt.METHOD, "damping": opt.NON_NEGATIVE, "curvature": opt.FUNCTION},
        covers=("bilevel.hypergradient",), faults=[
        Fault("nan", "how a batch of NaN ends", Reports("nonfinite_input"),
            lambda m: m.at(batch=NAN)),
        Fault("singular", "a lower objective that is not convex", Reports("indefinite"),
            lambda m: m.at(y=jnp.zeros(2), lower=saddle)),
        Fault("object", "a string as method", Raises(TypeError, "method", MAKER),
            lambda m: m.at(method="cg")),
    ]),
    Hypergradient("bilevel.ImplicitProjected",
        partial(ok.bilevel.ImplicitProjected, project_y=jax.nn.relu, step_size=0.5),
        {"project_y": opt.FUNCTION, "step_size": opt.POSITIVE, "solver": opt.METHOD}),
    Hypergradient("bilevel.Unrolled",
        partial(ok.bilevel.Unrolled, num_steps=2, inner=SGD),
        {"num_steps": opt.COUNT, "inner": opt.TRANSFORM, "truncate": opt.COUNT,
            "checkpoint": opt.COUNT}, faults=[
        Fault("option", "derivatives of more steps than are made",
            Raises(ValueError, "truncate=3"), lambda m: m.make(truncate=3)),
    ]),
    Hypergradient("bilevel.ForwardMode",
        partial(ok.bilevel.ForwardMode, num_steps=2, inner=SGD),
        {"num_steps": opt.COUNT, "inner": opt.TRANSFORM, "chunk": opt.COUNT}),
])
# fmt: on


def of_constants(function: Any) -> Callable[..., Any]:
    """Makes a schedule from the constants of a problem."""

    def make(constants: Any = None, **options: Any) -> Any:
        given = {"convexity": 1.0, "lower": 1.0, "upper": 1.0}
        for name in ("convexity", "lower", "upper", "total"):
            if name in options:
                given[name] = options.pop(name)
        made = ok.bilevel.Constants(**given) if constants is None else constants
        return function(made, **options)

    return make


ONES = dict.fromkeys(("c_alpha", "c_gamma", "k0", "initial_penalty", "target"), 1.0)
CONSTANTS = {
    "convexity": opt.POSITIVE,
    "lower": opt.POSITIVE,
    "upper": opt.POSITIVE,
    "total": opt.NON_NEGATIVE,
    "ratio": opt.POSITIVE,
    "constants": opt.Option("", (), (3.0,), "ok.bilevel.Constants"),
}
# fmt: off
SCHEDULES = Kind("Schedules", [], [
    Row("bilevel.f2sa_schedule", of_constants(ok.bilevel.f2sa_schedule),
        CONSTANTS | {"inner_steps": opt.COUNT}, covers=("bilevel.Constants",)),
    Row("bilevel.f3sa_schedule", of_constants(ok.bilevel.f3sa_schedule),
        CONSTANTS | {"c_eta": opt.POSITIVE}),
    Row("bilevel.PenaltySchedule",
        partial(ok.bilevel.PenaltySchedule, **ONES, growth=1.0, a=0.5, c=0.2),
        {"a": opt.NON_NEGATIVE, "c": opt.NON_NEGATIVE, "ratio": opt.POSITIVE,
                "inner_steps": opt.COUNT} | dict.fromkeys(ONES, opt.POSITIVE)),
    Row("bilevel.MomentumSchedule",
        partial(ok.bilevel.MomentumSchedule, **UNSAFE, initial_penalty=1.0),
        {"a": opt.NON_NEGATIVE, "c": opt.NON_NEGATIVE, "ratio": opt.POSITIVE}
            | dict.fromkeys(("c_alpha", "c_gamma", "k0", "initial_penalty"),
                opt.POSITIVE)),
    Row("bilevel.sigma_schedule", partial(ok.bilevel.sigma_schedule, initial=1.0),
        {"initial": opt.POSITIVE, "power": opt.NON_NEGATIVE,
            "floor": opt.NON_NEGATIVE}),
])
# fmt: on


def run(
    solver: Any = None, batches: Any = lambda k: 1.0, num_steps: Any = 2, **options: Any
) -> Any:
    """Two steps of SOBA."""
    made = ok.bilevel.soba(upper, lower, outer=SGD, inner=SGD)
    state = made.init(jnp.ones(2), jnp.zeros(2))
    return ok.run(
        made if solver is None else solver, state, batches, num_steps, **options
    )


# fmt: off
LOOPS = Kind("The loop", [
    Fault("nan", "batches of NaN", NOT_FINITE,
        lambda f: f.make(batches=lambda k: NAN).history),
    Fault("empty", "no batches", Raises(ValueError, "without"),
        lambda f: f.make(batches=[])),
    Fault("object", "a number for the batches", Raises(TypeError, "iterable"),
        lambda f: f.make(batches=3.0)),
    Fault("object", "an optax transform for the solver", Raises(TypeError, "Solver"),
        lambda f: f.make(SGD)),
], [
    Row("run", run, {"num_steps": opt.COUNT, "every": opt.COUNT}, covers=("Solver",)),
])
# fmt: on

KINDS = [SOLVERS, HYPERGRADIENTS, SCHEDULES, LOOPS]
