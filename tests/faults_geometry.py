"""Faults of proximal operators and of projections."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import fault_options as opt
import jax
import jax.numpy as jnp
import numpy as np
from fault_outcomes import NAN, Raises, Right, Shows, all_zero
from faulty import Fault, Kind, Row

import optkit as ok


def vec(*entries: float) -> Any:
    """A vector."""
    return jnp.array(entries)


def f4(*entries: Any) -> Any:
    """An array in float32, whatever JAX's default is when this file is read."""
    return np.array(entries, "f4")


@dataclass(frozen=True, kw_only=True)
class Prox(Row):
    """`make(v, ...)` is the prox at v, of strength 1 where nothing else is said."""

    def with_option(self, name: str, value: Any) -> Any:
        """The prox with another strength or step size."""
        return self.make(jnp.ones((2, 2)), **{name: value})

    def at(self, number: float) -> Any:
        """The prox of a matrix of this number."""
        return self.make(jnp.full((2, 2), number))


def row(name: str, strengths: list[str], *faults: Fault) -> Prox:
    """A prox with these strengths."""
    make = partial(getattr(ok.prox, name), **dict.fromkeys(strengths, 1.0))
    options = dict.fromkeys((*strengths, "step_size"), opt.NON_NEGATIVE)
    return Prox(f"prox.{name}", make, options, faults=faults)


def other_structure(name: str) -> Fault:
    """A strength, of this name, of another structure."""
    what, end = "a strength of another structure", Raises(ValueError, "prefix")
    v = lambda: {"a": jnp.ones((2, 2))}  # noqa: E731
    return Fault("tree", what, end, lambda prox: prox.make(v(), **{name: {"b": 1.0}}))


def other_shape(name: str, *shape: int) -> Fault:
    """A strength, of this name, that would broadcast a vector to another shape."""
    what, end = "a strength of another shape", Raises(ValueError, str(shape))
    v = lambda: vec(1.0, 2.0)  # noqa: E731
    return Fault("shape", what, end, lambda p: p.make(v(), **{name: jnp.ones(shape)}))


# fmt: off
PROXES = Kind("Proximal operators", [
    Fault("nan", "a point of NaN", Shows(), lambda prox: prox.at(NAN)),
    Fault("zero", "a point of 0", Right(all_zero), lambda prox: prox.at(0.0)),
    Fault("huge", "a point of 1e38", Right(), lambda prox: prox.at(1e38)),
    Fault("tiny", "a point of 1e-30", Right(), lambda prox: prox.at(1e-30)),
    Fault("empty", "a None and an empty leaf", Right(lambda x: x["b"].shape == (0, 2)),
        lambda prox: prox.make({"a": None, "b": jnp.zeros((0, 2))})),
    Fault("dtype", "an integer point", Raises(TypeError, "int32"),
        lambda prox: prox.make(jnp.ones((2, 2), int))),
    Fault("dtype", "a complex point", Raises(TypeError, "complex64"),
        lambda prox: prox.make(jnp.ones((2, 2), "c8"))),
], [
    *(
        row(name, strengths, other_structure(strengths[0]),
            other_shape(strengths[0], 3, 2))
        for name, *strengths in (("lasso", "l1"), ("non_negative_lasso", "l1"),
            ("ridge", "l2"), ("non_negative_ridge", "l2"), ("elastic_net", "l1", "l2"))
    ),
    row("group_lasso", ["strength"], other_shape("strength", 2)),
    row("nuclear",
        ["strength"], other_structure("strength"),
        Fault("shape", "a vector", Raises(ValueError, "matrices"),
            lambda prox: prox.make(vec(1.0)))),
    # The identity, of anything.
    Prox("prox.none", ok.prox.none,
        differs={"an integer point": Right(), "a complex point": Right()}),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Projection(Row):
    """`make(x, ...)` is the point of the set that is nearest to x."""

    violation: Callable[[Any], Any]  # how far a point is from the set
    shape: tuple[int, ...] = (2,)
    bad_shape: tuple[int, ...] = (2, 2)

    def with_option(self, name: str, value: Any) -> Any:
        """The projection with another value of an option."""
        return self.make(jnp.ones(self.shape), **{name: value})

    @cached_property
    def compiled(self) -> Any:
        """The projection, compiled once for all points of the right shape."""
        return jax.jit(self.make)

    def at(self, number: float, rest: float = 1.0) -> Any:
        """The projection of a point whose last entry is this number."""
        x = jnp.full(self.shape, rest)
        return self.compiled(x.at[(-1,) * x.ndim].set(number))

    def error(self, number: float, rest: float = 1.0) -> Any:
        """How far it is from the set, relative to its size."""
        found = np.asarray(self.at(number, rest))
        return np.max(self.violation(found)) / max(1.0, np.max(np.abs(found)))


def infeasible(what: str, **options: Any) -> Fault:
    """A set without points."""
    feed = lambda p: p.compiled(jnp.ones(p.shape), **options)  # noqa: E731
    return Fault("singular", what, Shows(), feed)


# fmt: off
WRONG_ROWS = Fault("shape", "rows of another length", Raises(ValueError, "(1, 2)"),
    lambda p: p.make(jnp.ones(3)))
OF_PLANS = [
    Fault("huge", "a matrix of 1e30", Right(lambda error: error < 1e-5),
        lambda p: p.error(1e30, 1e30)),
    infeasible("sums of two totals", column_sums=f4(1, 2)),
    infeasible("a negative sum", row_sums=f4(2, -1), column_sums=f4(0.5, 0.5)),
    Fault("shape", "sums for another matrix", Raises(ValueError, "(1, 2)"),
        lambda p: p.make(jnp.ones((2, 2)), row_sums=f4(1))),
]
# fmt: on
NO_ERROR = Right(lambda error: error < 1e-5)


def from_simplex(x: Any) -> Any:
    """How far entries are from being non-negative with sum one."""
    return [abs(x.sum() - 1), *-x]


def from_sums(x: Any) -> Any:
    """How far entries are from being non-negative with sums one."""
    return [*abs(x.sum(0) - 1), *abs(x.sum(1) - 1), *-x.ravel()]


# fmt: off
PROJECTIONS = Kind("Projections", [
    Fault("nan", "NaN in the point", Shows(), lambda p: p.at(NAN)),
    Fault("zero", "a point of 0", NO_ERROR, lambda p: p.error(0.0, 0.0)),
    Fault("huge", "an entry of 1e30", NO_ERROR, lambda p: p.error(1e30)),
    Fault("tiny", "an entry of 1e-30", NO_ERROR, lambda p: p.error(1e-30)),
    Fault("shape", "a point of another shape", Raises(ValueError, "shape"),
        lambda p: p.make(jnp.ones(p.bad_shape))),
    Fault("dtype", "an integer point", Raises(TypeError, "int32"),
        lambda p: p.make(jnp.ones(p.shape, int))),
    Fault("dtype", "a complex point", Raises(TypeError, "complex64"),
        lambda p: p.make(jnp.ones(p.shape, "c8"))),
], [
    Projection("projections.box_section",
        partial(ok.projections.box_section, lower=0.0, upper=1.0, weights=1.0,
            total=1.0), violation=from_simplex, faults=[
        infeasible("a total of NaN", total=NAN),
        infeasible("a total above all upper bounds", total=3.0),
        infeasible("lower bounds above the upper", lower=2.0),
        infeasible("weights of 0", weights=0.0),
        Fault("huge", "entries of 1e38 of both signs", Shows(),
            lambda p: p.compiled(vec(1e38, -1e38))),
        Fault("tiny", "two entries of 1e-30", Right(lambda x: np.allclose(x, 0.5)),
            lambda p: p.compiled(vec(1e-30, 1e-30))),
        Fault("empty", "an empty array", Right(lambda x: x.size == 0),
            lambda p: p.compiled(jnp.zeros(0), total=0.0)),
        Fault("shape", "bounds of another length", Raises(ValueError, "needs lower"),
            lambda p: p.make(vec(1.0, 1.0), lower=jnp.zeros(3))),
    ]),
    Projection("projections.sparse_simplex",
        partial(ok.projections.sparse_simplex, max_nonzero=1),
        {"max_nonzero": opt.COUNT}, violation=from_simplex,
        faults=[
        infeasible("a negative total", scale=-1.0),
        Fault("option", "more nonzero entries than entries",
            Raises(ValueError, "max_nonzero=3"),
            lambda p: p.with_option("max_nonzero", 3)),
    ]),
    Projection("projections.second_order_cone", ok.projections.second_order_cone,
        violation=lambda x: abs(x[1]) - x[0], faults=[
        Fault("nan", "NaN in the first entry", Shows(),
            lambda p: p.compiled(vec(NAN, 1.0))),
        Fault("huge", "a norm that overflows", Right(),
            lambda p: p.compiled(vec(0.0, 2e38, 2e38))),
        Fault("empty", "an empty array", Raises(ValueError, "empty"),
            lambda p: p.make(jnp.zeros(0))),
    ]),
    Projection("projections.affine_set",
        partial(ok.projections.affine_set, A=f4([1, 1]), b=f4(1)),
        violation=lambda x: abs(x.sum() - 1), faults=[
        WRONG_ROWS,
        infeasible("equations that contradict each other", A=f4([1, 1], [1, 1]),
            b=f4(1, 2)),
        infeasible("an equation that nothing solves", A=f4([0, 0])),
        Fault("empty", "no equations", Right(lambda x: np.all(x == 1)),
            lambda p: p.make(vec(1.0, 1.0), A=jnp.ones((0, 2)), b=jnp.zeros(0))),
    ]),
    Projection("projections.polyhedron",
        partial(ok.projections.polyhedron, G=f4([1, 1]), h=f4(1)),
        violation=lambda x: x.sum() - 1, differs={"an entry of 1e30": Shows()}, faults=[
        WRONG_ROWS,
        infeasible("inequalities that contradict each other", G=f4([1, 0], [-1, 0]),
            h=f4(-1, -1)),
        Fault("missing", "an A without its b", Raises(ValueError, "both A and b"),
            lambda p: p.make(vec(1.0, 1.0), A=f4([1, 1]))),
    ]),
    *(
        Projection(f'projections.{name}',
            partial(getattr(ok.projections, name), row_sums=f4(1, 1),
                column_sums=f4(1, 1)), violation=from_sums, shape=(2, 2),
            bad_shape=(2, 3), faults=OF_PLANS)
        for name in ("transport", "kl_transport")
    ),
    *(
        Projection(f'projections.{name}', getattr(ok.projections, name),
            violation=from_sums, shape=(2, 2), bad_shape=(2, 3))
        for name in ("birkhoff", "kl_birkhoff")
    ),
])
# fmt: on

KINDS = [PROXES, PROJECTIONS]
