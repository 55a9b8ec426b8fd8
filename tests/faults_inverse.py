"""Faults of inverses, of the methods behind them, and of what is done with them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fault_options as opt
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from fault_outcomes import INF, NAN, Raises, Reports, Right, Shows, all_zero
from faults_curvature import (
    OF_VECTORS,
    batch,
    cast,
    diagonal,
    example_loss,
    like,
    of_loss,
    params,
    rows,
)
from faulty import Fault, Kind, Row, calls

import optkit as ok

MAKER = "ok.invert"
SINGULAR = [[1.0, 0.0], [0.0, 0.0]]


def symmetric(matrix: Any) -> Any:
    """A tagged matrix."""
    return lx.MatrixLinearOperator(jnp.array(matrix, "f4"), lx.symmetric_tag)


def general(matrix: Any) -> Any:
    """A matrix without a tag."""
    return lx.MatrixLinearOperator(jnp.array(matrix))


def hilbert() -> Any:
    """Nine by nine, singular to rounding."""
    i = np.arange(1, 10)
    return symmetric(1 / (i[:, None] + i - 1))


def gmres(matrix: Any, b: Any) -> Any:
    """How a general system went."""
    A, b = general(matrix), jnp.array(b)
    return lx.linear_solve(A, b, ok.GMRES(), throw=False).stats


def low_rank(*entries: float) -> Any:
    """A diagonal of non-negative entries, as rows."""
    return ok.LowRank(jnp.diag(jnp.sqrt(jnp.array(entries or (1.0, 2.0, 3.0)))))


@dataclass(frozen=True, kw_only=True)
class Method(Row):
    """`make(...)` is a method, tried on a diagonal curvature of three entries."""

    curvature: Callable[..., Any] = diagonal
    nothing: Callable[[], Any] = lambda: lx.DiagonalLinearOperator(jnp.zeros(0))

    def solve(self, b: Any = None, C: Any = None, λ: Any = 1.0, **options: Any) -> Any:
        """The solution of (C + λI) x = b, and how it went."""
        C, b = self.curvature() if C is None else C, jnp.ones(3) if b is None else b
        P = ok.invert(C, self.make(**options), damping=λ)
        return P.solve(jnp.array(b) if isinstance(b, list) else b)

    def error(self, scale: float) -> Any:
        """The largest relative error for (2, 3, 4) x = (scale, -scale, scale)."""
        x = self.solve([scale, -scale, scale]).value
        return jnp.max(jnp.abs(x / (scale / jnp.array([2.0, -3.0, 4.0])) - 1))


def is_one(x: Any) -> Any:
    """Whether all entries are one."""
    return np.allclose(x, 1)


def is_small(error: Any) -> Any:
    """Whether a relative error is of the size of the default tolerance, 1e-5."""
    return error < 1e-4


# fmt: off
OF_METHODS = [
    Fault("nan", "NaN in b", Reports("nonfinite_input"),
        lambda m: m.solve([1.0, NAN, 1.0])),
    Fault("nan", "infinity in b", Reports("nonfinite_input"),
        lambda m: m.solve([1.0, INF, 1.0])),
    Fault("nan", "a curvature of NaN", Reports("nonfinite_operator"),
        lambda m: m.solve(C=m.curvature(NAN, 1.0, 1.0))),
    Fault("zero", "b of 0", Right(all_zero), lambda m: m.solve(jnp.zeros(3)).value),
    Fault("zero", "a curvature of 0", Right(is_one),
        lambda m: m.solve(C=m.curvature(0.0, 0.0, 0.0)).value),
    Fault("huge", "b of 1e38", Right(is_small), lambda m: m.error(1e38)),
    Fault("tiny", "b of 1e-30", Right(is_small), lambda m: m.error(1e-30)),
    Fault("tiny", "a curvature of 1e-30", Right(is_one),
        lambda m: m.solve(C=m.curvature(1e-30, 1e-30, 1e-30)).value),
    Fault("empty", "an empty array", Right(),
        lambda m: m.solve(jnp.zeros(0), m.nothing())),
    Fault("tree", "b of another structure", Raises(ValueError, "structure", MAKER),
        lambda m: m.solve((1.0,))),
    Fault("shape", "b of another shape", Raises(ValueError, "(2,)", MAKER),
        lambda m: m.solve(jnp.ones(2))),
    Fault("dtype", "b in float16", Raises(TypeError, "float16", MAKER),
        lambda m: m.solve(jnp.ones(3, "f2"))),
    Fault("dtype", "b of integers", Raises(TypeError, "int32", MAKER),
        lambda m: m.solve(jnp.ones(3, int))),
]
INDEFINITE = Fault("singular", "a negative eigenvalue", Reports("indefinite"),
    lambda m: m.solve(C=m.curvature(-1.0, 1.0, 1.0), λ=0.0))
ONLY_ITS_OWN_OPTIONS = Fault("option", "options of another method",
    Raises(ValueError, "options"),
    lambda m: lx.linear_solve(diagonal(), jnp.ones(3), m.make(), options={"yo": 0.0}))
UNDAMPED = Fault("singular", "no damping", Reports("undamped"),
    lambda m: m.solve(λ=0.0))
OF_CG = [
    INDEFINITE,
    ONLY_ITS_OWN_OPTIONS,
    Fault("singular", "an eigenvalue of 0", Reports("indefinite"),
        lambda m: m.solve(C=diagonal(0.0, 1.0, 1.0), λ=0.0)),
    Fault("singular", "a Hilbert matrix and two steps", Reports("max_steps_reached"),
        lambda m: m.solve(jnp.ones(9), hilbert(), 0.0, max_steps=2)),
    Fault("singular", "a Hilbert matrix and an rtol below rounding",
        Reports("inaccurate"),
        lambda m: m.solve(jnp.ones(9), hilbert(), 1e-5, rtol=1e-7)),
    Fault("singular", "an indefinite preconditioner", Reports("bad_preconditioner"),
        lambda m: m.solve(λ=0.0, preconditioner=diagonal(-1.0, 1.0, 1.0))),
    Fault("object", "an operator that is not symmetric",
        Raises(ValueError, "symmetric"),
        lambda m: lx.linear_solve(general([[1.0]]), jnp.ones(1), m.make())),
]
OF_GMRES = [
    ONLY_ITS_OWN_OPTIONS,
    Fault("singular", "a singular matrix", Reports("stalled"),
        lambda m: gmres(SINGULAR, [1.0, 1.0])),
    Fault("singular", "a singular matrix, almost solvable", Reports("stalled"),
        lambda m: gmres(SINGULAR, [1.0, 2e-4])),
    Fault("singular", "a negative eigenvalue",
        Right(lambda x: np.allclose(x, [-1, 1, 1])),
        lambda m: m.solve(C=diagonal(-1.0, 1.0, 1.0), λ=0.0).value),
    Fault("shape", "a matrix that is not square", Raises(ValueError, "(1,)"),
        lambda m: gmres([[1.0, 0.0]], [1.0])),
]
OF_NEUMANN = [
    INDEFINITE,
    Fault("option", "too large a step", Reports("diverging"),
        lambda m: m.solve(λ=0.0, num_terms=9, step_size=10.0)),
]
OF_NYSTROM = [
    UNDAMPED,
    Fault("option", "a rank above the number of params", Raises(ValueError, "rank=4"),
        lambda m: m.solve(rank=4)),
    Fault("singular", "a negative eigenvalue", Reports("indefinite"),
        lambda m: m.solve(C=diagonal(-1.0, 1.0, 1.0), λ=2.0)),
    Fault("huge", "a curvature of 1e30", Reports("nonfinite_operator"),
        lambda m: m.solve(C=diagonal(1e30, 1.0, 1.0))),
]
OF_WOODBURY = [
    UNDAMPED,
    Fault("singular", "a traced damping of -1", Reports("undamped"),
        lambda m: m.solve(λ=jnp.array(-1.0))),
    Fault("singular", "a traced damping of NaN", Reports("undamped"),
        lambda m: m.solve(λ=jnp.array(NAN))),
    Fault("nan", "blocks of rows of NaN", Reports("nonfinite_operator"),
        lambda m: m.solve(params(), ok.BlockLowRank(rows(like(NAN)), 2))),
    Fault("nan", "b of NaN in two leaves", Reports("nonfinite_input"),
        lambda m: m.solve(like(NAN), ok.LowRank(rows(params())))),
    Fault("huge", "rows of 1e30", Reports("nonfinite_operator"),
        lambda m: m.solve(params(), ok.LowRank(rows(like(1e30))))),
    Fault("huge", "b of 1e38 in two leaves", Reports("singular"),
        lambda m: m.solve(like(1e38), ok.LowRank(rows(like(1.0))))),
    Fault("empty", "no rows", Right(is_one),
        lambda m: m.solve(C=ok.LowRank(jnp.zeros((0, 3)))).value),
    Fault("empty", "no params", Right(lambda x: x.value == ()),
        lambda m: m.solve((), ok.LowRank(()))),
    Fault("object", "a curvature that is not of low rank",
        Raises(ValueError, "LowRank"), lambda m: m.solve(C=diagonal())),
]
# fmt: on
FINITE = Right(lambda solution: np.all(np.isfinite(solution.value)))
IS_B = Right(lambda error: is_small(abs(error - 3)))
# fmt: off
METHODS = Kind("Methods for an inverse", OF_METHODS, [
    Method("CG", ok.CG,
        {"rtol": opt.POSITIVE, "max_steps": opt.COUNT, "preconditioner": opt.OPERATOR},
        faults=OF_CG),
    Method("GMRES", ok.GMRES,
        {"rtol": opt.POSITIVE, "restart": opt.COUNT, "max_steps": opt.COUNT},
        faults=OF_GMRES),
    Method("Neumann", partial(ok.Neumann, num_terms=200),
        {"num_terms": opt.COUNT, "step_size": opt.POSITIVE}, faults=OF_NEUMANN),
    Method("Nystrom", partial(ok.Nystrom, rank=3, key=jr.key(0)),
        {"rank": opt.COUNT, "key": opt.KEY},
        differs={"an empty array": Raises(ValueError, "rank=3")}, faults=OF_NYSTROM),
    Method("Woodbury", ok.Woodbury, curvature=low_rank,
        nothing=lambda: ok.LowRank(jnp.zeros((2, 0))), faults=OF_WOODBURY),
    # A multiple of the identity, whatever the curvature.
    Method("OneStep", ok.OneStep, {"step_size": opt.POSITIVE},
        differs={"a curvature of NaN": FINITE, "b of 1e38": IS_B, "b of 1e-30": IS_B}),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Inverted(Row):
    """`make(p, ...)` is an operator made from a curvature of two rows at p."""

    def with_option(self, name: str, value: Any) -> Any:
        """The operator with another value of an option."""
        return self.make(params(), **{name: value})

    def at(self, p: Any, v: Any = None) -> Any:
        """Its product with a vector."""
        return self.make(p).mv(params() if v is None else v)


def of_rows(
    p: Any = None, operator: Any = None, solver: Any = None, damping: Any = 1.0
) -> Any:
    """P of two rows at p, or of another curvature."""
    C = ok.LowRank(rows(params() if p is None else p))
    solver = ok.Woodbury() if solver is None else solver
    return ok.invert(C if operator is None else operator, solver, damping=damping)


def preconditioner(p: Any, inverse: Any = None) -> Any:
    """Of the inverse by a sketch."""
    method = ok.Nystrom(2, key=jr.key(0))
    P = ok.invert(ok.LowRank(rows(p)), method, damping=1.0)
    return ok.nystrom_preconditioner(P if inverse is None else inverse)


def sketched(number: float) -> Any:
    """The preconditioner of diag(number, 2, 3) + 1."""
    method = ok.Nystrom(2, key=jr.key(0))
    P = ok.invert(diagonal(number, 2.0, 3.0), method, damping=1.0)
    return ok.nystrom_preconditioner(P)


def product(C: Callable[[], Any], method: Any) -> Callable[[Inverted], Any]:
    """P b of this curvature and this method, without damping."""
    return lambda P: ok.invert(C(), method()).mv(jnp.array([1.0, 2.0, 3.0]))


def entry(a: Any, b: Any) -> Callable[[Inverted], Any]:
    """This entry of P."""
    return lambda P: P.make(params()).entry(a, b)


# fmt: off
OF_INVERT = [
    Fault("nan", "a curvature of NaN, by CG", Reports("nonfinite_operator"),
        product(lambda: diagonal(NAN, 1.0, 1.0), ok.CG)),
    Fault("singular", "an eigenvalue of 0, by CG", Reports("indefinite"),
        product(lambda: diagonal(0.0, 1.0, 1.0), ok.CG)),
    Fault("singular", "a singular matrix, by LU", Reports("singular_matrix"),
        product(lambda: symmetric(np.ones((3, 3))), lx.LU)),
    Fault("option", "entry (0, 3) of 3", Raises(IndexError, "< 3"), entry(0, 3)),
    Fault("option", "entry (-1, 0)", Raises(IndexError, "< 3"), entry(-1, 0)),
    Fault("dtype", "entry (0.0, 0)", Raises(TypeError, "integers"), entry(0.0, 0)),
    Fault("option", "a traced entry (3, 3) of 3", Shows(),
        lambda P: jax.jit(lambda a: P.make(params()).entry(a, a))(3)),
    Fault("missing", "a diagonal that is not known",
        Raises(NotImplementedError, "hutchinson_diag", call="CG"),
        lambda P: ok.invert(diagonal(), ok.CG()).diagonal()),
]
INVERSES = Kind("Inverses", [
    Fault("nan", "a curvature of NaN", Reports("nonfinite_operator"),
        lambda P: P.at(like(NAN))),
    Fault("nan", "a vector of NaN", Reports("nonfinite_input"),
        lambda P: P.at(params(), like(NAN))),
    Fault("zero", "a vector of 0", Right(all_zero),
        lambda P: P.at(params(), like(0.0))),
    *OF_VECTORS,
], [
    Inverted("invert", of_rows,
        {"operator": opt.OPERATOR, "solver": opt.METHOD, "damping": opt.NON_NEGATIVE},
        covers=("Inverse",), faults=OF_INVERT),
    Inverted("nystrom_preconditioner", preconditioner,
        differs={"a vector of NaN": Shows()}, covers=("NystromPreconditioner",),
        faults=[
        Fault("singular", "a negative curvature", Reports("indefinite"),
            lambda P: sketched(-9.0)),
        Fault("object", "an inverse by another method", Raises(ValueError, "Nystrom"),
            lambda P: P.make(params(), inverse=of_rows())),
        Fault("object", "a curvature instead of an inverse",
            Raises(TypeError, "ok.invert"),
            lambda P: P.make(params(), inverse=diagonal())),
    ]),
])
OF_PARAMS = [
    Fault("nan", "params of NaN", Reports("nonfinite_input"),
        lambda use: use.make(params=like(NAN))),
    Fault("zero", "params of 0", Right(), lambda use: use.make(params=like(0.0))),
    Fault("tree", "params of another structure", Raises(ValueError, "structure"),
        lambda use: use.make(params={"w": jnp.ones(2)})),
    Fault("dtype", "integer params", Raises(TypeError, "int32"),
        lambda use: use.make(params=cast(params(), int))),
]
# fmt: on


def removed(is_removed: bool = True) -> Any:
    """A mask of what is removed."""
    return {"b": jnp.array([False]), "w": jnp.array([is_removed, False])}


# fmt: off
OF_REMOVED = [
    Fault("zero", "nothing to remove", Right(lambda x: np.allclose(x["w"], [1, -2])),
        lambda use: use.make(removed=removed(False))),
    Fault("tree", "a mask that lacks a leaf", Raises(ValueError, "prefix"),
        lambda use: use.make(removed={"w": removed()["w"]})),
    Fault("shape", "a mask of another shape", Raises(ValueError, "(3,)"),
        lambda use: use.make(removed=removed() | {"w": jnp.ones(3, bool)})),
    Fault("dtype", "a mask of numbers", Raises(TypeError, "boolean"),
        lambda use: use.make(removed=like(1.0))),
]
# fmt: on
NOT_FINITE = Raises(RuntimeError, "NaN or infinite")
NOT_POSITIVE = Fault(
    "singular",
    "a diagonal of P that is not positive",
    Raises(RuntimeError, "not positive"),
    lambda use: use.make(inverse=lx.DiagonalLinearOperator(like(0.0))),
)


def gradually(inverse: Any = None, make_inverse: Any = None, **options: Any) -> Any:
    """Two rounds, each with this inverse."""
    fixed = lambda p, kept: of_rows() if inverse is None else inverse  # noqa: E731
    make = fixed if make_inverse is None else make_inverse
    given = {"params": params(), "sparsity": 0.5, "num_rounds": 2} | options
    return ok.obs_prune_gradually(make_inverse=make, **given)


# fmt: off
USES = Kind("Uses of an inverse", [
    Fault("nan", "a curvature of NaN", Reports("nonfinite_operator"),
        lambda use: use.make(inverse=of_rows(like(NAN)))),
    Fault("singular", "no damping", Reports("undamped"),
        lambda use: use.make(inverse=of_rows(damping=0.0))),
], [
    Row("influence",
        calls(partial(ok.influence, example_loss=example_loss), params=params,
            train=batch, test=lambda: batch(2), inverse=of_rows),
        {"example_loss": opt.FUNCTION, "inverse": opt.OPERATOR, "chunk": opt.COUNT},
        faults=[
        *OF_PARAMS,
        *of_loss("example_loss"),
        Fault("function", "a `test_loss` of no scalar", Raises(ValueError, "test_loss"),
            lambda use: use.make(test_loss=lambda p, e: e[0])),
        Fault("nan", "training data of NaN", Shows(),
            lambda use: use.make(train=batch(3, NAN))),
        Fault("zero", "test data of 0", Right(),
            lambda use: use.make(test=batch(2, 0.0))),
        Fault("empty", "no training examples", Raises(ValueError, "train"),
            lambda use: use.make(train=batch(0))),
        Fault("empty", "no test examples", Raises(ValueError, "test"),
            lambda use: use.make(test=batch(0))),
        Fault("shape", "inputs and targets of two lengths",
            Raises(ValueError, "first axis"),
            lambda use: use.make(train=(jnp.ones((3, 2)), jnp.ones(2)))),
    ]),
    Row("self_influence",
        calls(partial(ok.self_influence, example_loss=example_loss), params=params,
            train=batch, inverse=of_rows),
        {"example_loss": opt.FUNCTION, "inverse": opt.OPERATOR, "chunk": opt.COUNT},
        faults=[
        *OF_PARAMS,
        *of_loss("example_loss"),
        Fault("nan", "training data of NaN", Reports("nonfinite_input"),
            lambda use: use.make(train=batch(3, NAN))),
        Fault("empty", "no training examples", Raises(ValueError, "train"),
            lambda use: use.make(train=batch(0))),
    ]),
    Row("obs_saliency", calls(ok.obs_saliency, params=params, inverse=of_rows),
        {"inverse": opt.OPERATOR}, faults=OF_PARAMS,
        differs={"params of NaN": Shows(), "params of 0": Right(all_zero)}),
    *(
        Row(name,
            calls(getattr(ok, name), params=params, inverse=of_rows, removed=removed),
            {"inverse": opt.OPERATOR}, differs={"params of 0": Right(all_zero)},
            faults=[*OF_PARAMS, *OF_REMOVED])
        for name in ("obs_summed", "obs_joint")
    ),
    Row("obs_prune",
        calls(partial(ok.obs_prune, sparsity=0.4), params=params, inverse=of_rows),
        {"inverse": opt.OPERATOR, "sparsity": opt.FRACTION, "update": opt.FUNCTION},
        differs={"params of NaN": NOT_FINITE}, faults=[
        *OF_PARAMS,
        NOT_POSITIVE,
        Fault("tree", "a mask of another structure", Raises(ValueError, "prefix"),
            lambda use: use.make(mask={"w": True})),
        Fault("shape", "one boolean for each leaf in `kept`",
            Right(lambda x: not x.kept["b"][0] and x.kept["w"].all()),
            lambda use: use.make(kept={"b": True, "w": True})),
        Fault("dtype", "numbers in `kept`", Raises(TypeError, "boolean"),
            lambda use: use.make(kept=like(1.0))),
    ]),
    Row("obs_prune_gradually", gradually,
        {"make_inverse": opt.FUNCTION, "sparsity": opt.FRACTION,
            "num_rounds": opt.COUNT, "update": opt.FUNCTION},
        differs={"params of NaN": NOT_FINITE}, faults=[
        *OF_PARAMS,
        NOT_POSITIVE,
        Fault("dtype", "numbers in `kept`", Raises(TypeError, "boolean"),
            lambda use: use.make(kept=like(1.0))),
        Fault("zero", "nothing kept", Right(lambda x: all_zero(x.params)),
            lambda use: use.make(kept=jax.tree.map(jnp.zeros_like, removed()))),
    ]),
    Row("solve_rows",
        calls(ok.solve_rows, inverse=of_rows, coefficients=lambda: jnp.ones(2)),
        faults=[
        Fault("nan", "coefficients of NaN", Shows(),
            lambda use: use.make(coefficients=jnp.full(2, NAN))),
        Fault("zero", "coefficients of 0", Right(all_zero),
            lambda use: use.make(coefficients=jnp.zeros(2))),
        Fault("shape", "more coefficients than rows", Raises(ValueError, "(3,)"),
            lambda use: use.make(coefficients=jnp.ones(3))),
        Fault("object", "an inverse by another method", Raises(ValueError, "Woodbury"),
            lambda use: use.make(inverse=ok.invert(diagonal(), ok.CG()))),
        Fault("object", "a curvature instead of an inverse",
            Raises(TypeError, "ok.invert"), lambda use: use.make(inverse=diagonal())),
    ]),
])
# fmt: on

KINDS = [METHODS, INVERSES, USES]
