"""Faults of decorators, iterations, and optimality maps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fault_options as opt
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fault_outcomes import INF, NAN, Raises, Reports, Right, Shows, all_zero
from faulty import Fault, Kind, Row

import optkit as ok


def vec(*entries: float) -> Any:
    """A vector."""
    return jnp.array(entries)


def half_square(y: Any, a: Any) -> jax.Array:
    """½ |y - a|²."""
    return 0.5 * jnp.sum((y - a) ** 2)


def residual(y: Any, a: Any) -> jax.Array:
    """Zero at a."""
    return y - a


def contraction(y: Any, a: Any) -> jax.Array:
    """To a."""
    return 0.5 * (y + a)


def exact(y0: Any, a: Any) -> Any:
    """The solution of all three."""
    return a


def returning(value: Callable[[], Any]) -> Callable[[Any, Any], Any]:
    """A solver that returns this, whatever it is asked."""
    return lambda y0, a: value()


@dataclass(frozen=True, kw_only=True)
class Decorator(Row):
    """`make(condition, ...)` decorates a solver."""

    condition: Callable[[Any, Any], Any]

    def with_option(self, name: str, value: Any) -> Any:
        """What the decorated solver returns, with another value of an option."""
        return self.value(**{name: value})

    def value(self, solve: Any = exact, a: Any = (1.0, 2.0), **options: Any) -> Any:
        """What the decorated solver returns for parameters a."""
        condition = options.pop("condition", self.condition)
        return self.make(condition, **options)(solve)(jnp.zeros(2), jnp.asarray(a))

    def derivative(self, *a: float, **options: Any) -> Any:
        """The gradient of Σ y in the parameters a."""
        y = partial(self.value, exact, **options)
        return jax.grad(lambda a: jnp.sum(y(a)))(vec(*a or (1.0, 2.0)))


def is_one(x: Any) -> Any:
    """Whether all entries are one, as dy/da."""
    return np.allclose(x, 1)


# fmt: off
OF_DECORATORS = [
    Fault("nan", "a solution of NaN", Shows(),
        lambda d: d.value(returning(lambda: vec(NAN, 1.0)))),
    Fault("nan", "the derivative at an infinite solution",
        Reports("nonfinite_solution"), lambda d: d.derivative(INF, 1.0)),
    Fault("zero", "a solution of 0", Right(is_one), lambda d: d.derivative(0.0, 0.0)),
    Fault("huge", "a solution of 1e30", Right(is_one),
        lambda d: d.derivative(1e30, 1.0)),
    Fault("dtype", "an integer solution", Raises(TypeError, "int32"),
        lambda d: d.value(returning(lambda: jnp.arange(2)))),
    Fault("dtype", "a complex solution", Raises(TypeError, "complex64"),
        lambda d: d.value(returning(lambda: jnp.ones(2, "c8")))),
    Fault("option", "`has_aux` and no aux", Raises(ValueError, "(y, aux)"),
        lambda d: d.value(has_aux=True)),
    Fault("object", "a number as solver", Raises(TypeError, "solve"),
        lambda d: d.value(3.0)),
]
# fmt: on


def singular(what: str, condition: Any, result: str) -> Fault:
    """A condition whose linear system has no solution."""
    feed = lambda d: d.derivative(condition=condition)  # noqa: E731
    return Fault("singular", what, Reports(result), feed)


# fmt: off
OF_RESIDUALS = [
    Fault("tree", "a residual of another structure", Raises(ValueError, "structure"),
        lambda d: d.value(condition=lambda y, a: (y,))),
    Fault("shape", "a residual of another shape", Raises(ValueError, "(3,)"),
        lambda d: d.value(condition=lambda y, a: jnp.ones(3))),
    Fault("dtype", "a residual in float16", Raises(TypeError, "float16"),
        lambda d: d.value(condition=lambda y, a: jnp.ones(2, "f2"))),
    Fault("object", "a method for symmetric systems", Raises(ValueError, "symmetric"),
        lambda d: d.value(solver=ok.CG())),
]
# fmt: on


def options_with(condition: str) -> dict[str, Any]:
    """The options of a decorator that calls its condition this."""
    called = opt.FUNCTION.called(condition)
    return {"solver": opt.METHOD, "has_aux": opt.FLAG, "condition": called}


# fmt: off
DECORATORS = Kind("Decorators of a solver", OF_DECORATORS, [
    Decorator("implicit_minimum", ok.implicit_minimum,
        options_with("objective") | {"damping": opt.NON_NEGATIVE},
        condition=half_square, faults=[
        singular("no curvature", lambda y, a: jnp.sum(y * a), "indefinite"),
        singular("negative curvature", lambda y, a: jnp.sum(y * a - y ** 2) / 2,
            "indefinite"),
        Fault("function", "an objective that returns an array",
            Raises(ValueError, "one real scalar"),
            lambda d: d.value(condition=residual)),
    ]),
    Decorator("implicit_root", ok.implicit_root, options_with("optimality"),
        condition=residual, covers=("ImplicitSolve",), faults=[
        *OF_RESIDUALS,
        singular("a Jacobian of 0", lambda y, a: 0 * y - a, "singular_matrix"),
        Fault("nan", "a solution of NaN, by one step", Reports("nonfinite_solution"),
            lambda d: d.derivative(NAN, 1.0, solver=ok.OneStep())),
    ]),
    Decorator("implicit_fixed_point", ok.implicit_fixed_point, options_with("mapping"),
        condition=contraction, faults=[
        *OF_RESIDUALS,
        singular("no contraction", lambda y, a: y + 1.001 * a - a, "singular_matrix"),
    ]),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Iteration(Row):
    """`make(mapping, y0, ...)` iterates, or calls, a function of (y, args)."""

    def with_option(self, name: str, value: Any) -> Any:
        """The result with another value of an option."""
        return self.make(**{"mapping": contraction, "y0": vec(0.0, 0.0), name: value})

    def run(self, mapping: Any = contraction, y0: Any = None) -> Any:
        """The result of this mapping, from this start."""
        return self.make(mapping, vec(0.0, 0.0) if y0 is None else y0)


def on_host(mapping: Any) -> Any:
    """Calls it as a solver of another library, in float32."""

    def solve(y0: Any, a: Any) -> Any:
        with np.errstate(over="ignore"):
            return jax.tree.map(np.float32, mapping(y0, a))

    return ok.host_solver(solve if callable(mapping) else mapping)


# fmt: off
ITERATIONS = Kind("Iterations", [
    Fault("nan", "a start of NaN", Shows(), lambda f: f.run(y0=vec(NAN, 1.0))),
    Fault("nan", "a mapping to NaN", Shows(), lambda f: f.run(lambda y, a: y * NAN)),
    Fault("huge", "a mapping that overflows", Shows(),
        lambda f: f.run(lambda y, a: (y + 1e30 * a) ** 2)),
    Fault("tree", "a mapping to another structure", Raises(ValueError, "structure"),
        lambda f: f.run(lambda y, a: (y,))),
    Fault("shape", "a mapping to another shape", Raises(ValueError, "(3,)"),
        lambda f: f.run(lambda y, a: jnp.ones(3))),
    Fault("dtype", "an integer start", Raises(TypeError, "int32"),
        lambda f: f.run(y0=jnp.arange(2))),
], [
    Iteration("solvers.anderson",
        lambda mapping, y0, **o: ok.solvers.anderson(mapping, y0, vec(1.0, 2.0), **o),
        {"mapping": opt.FUNCTION, "history": opt.COUNT, "max_steps": opt.COUNT,
            "mixing": opt.POSITIVE, "rtol": opt.NON_NEGATIVE, "atol": opt.NON_NEGATIVE,
            "ridge": opt.NON_NEGATIVE},
        differs=dict.fromkeys(
            ("a start of NaN", "a mapping to NaN", "a mapping that overflows"),
            Reports("nonfinite_iterate")), faults=[
        Fault("singular", "no fixed point", Reports("max_steps_reached"),
            lambda f: f.make(lambda y, a: y + 1.0, vec(0.0, 0.0), max_steps=9)),
        Fault("zero", "a mapping to 0", Right(all_zero),
            lambda f: f.run(lambda y, a: 0 * y)[0]),
        Fault("tiny", "a fixed point of 1e-30",
            Right(lambda y: np.allclose(y, [1, 2], 0.001)),
            lambda f: f.run(lambda y, a: 0.5 * (y + 1e-30 * a))[0] * 1e30),
        Fault("empty", "a start without entries", Raises(ValueError, "array"),
            lambda f: f.run(lambda y, a: y, ())),
    ]),
    Iteration("unroll",
        lambda mapping, y0, num_steps=3, **o: ok.unroll(mapping, y0, vec(1.0, 2.0),
            num_steps=num_steps, **o),
        {"mapping": opt.FUNCTION.called("step"), "num_steps": opt.COUNT,
            "truncate": opt.COUNT, "checkpoint_every": opt.COUNT}, faults=[
        Fault("option", "derivatives of more steps than are made",
            Raises(ValueError, "truncate"), lambda f: f.with_option("truncate", 4)),
    ]),
    Iteration("host_solver", lambda mapping, y0: on_host(mapping)(y0, vec(1.0, 2.0)),
        {"mapping": opt.FUNCTION.called("solve")},
        differs={"a mapping to another structure": Raises(RuntimeError, "structure"),
            "a mapping to another shape": Raises(RuntimeError, "(3,)")}),
])
# fmt: on


def check(
    solve: Any = exact, args: Any = None, condition: Any = residual, **options: Any
) -> Any:
    """The report on a decorated solver."""
    args = vec(1.0, 2.0) if args is None else args
    given = {"y0": jnp.zeros(2), "key": jr.key(0)} | options
    solve = solve if isinstance(solve, str) else ok.implicit_root(condition)(solve)
    return ok.check_implicit(solve, args, **given)


def says(*texts: str) -> Right:
    """Whether the verdict says one of these."""
    oracle = lambda report: any(text in report.verdict for text in texts)  # noqa: E731
    return Right(oracle, "the verdict says so")


# fmt: off
CHECKS = Kind("Checks of a derivative", [
    Fault("nan", "a solution of NaN", says("NaN", "not finite", "infin"),
        lambda f: f.make(returning(lambda: vec(NAN, 1.0)))),
    Fault("singular", "a Jacobian of 0", says("failed"),
        lambda f: f.make(condition=lambda y, a: 0 * y - a)),
    Fault("function", "a condition of another problem",
        says("a different problem", "not what the solver"),
        lambda f: f.make(condition=lambda y, a: y - 2 * a)),
    Fault("empty", "no parameters", Raises(ValueError, "floating array"),
        lambda f: f.make(args=())),
    Fault("dtype", "integer parameters", Raises(ValueError, "floating array"),
        lambda f: f.make(args=jnp.arange(2))),
    Fault("object", "a solver that is not decorated", Raises(TypeError, "decorator"),
        lambda f: f.make("solve")),
], [
    Row("check_implicit", check,
        {"step": opt.POSITIVE, "rtol": opt.POSITIVE, "key": opt.KEY}),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Map(Row):
    """`make(f, ...)` is a map of (y, args)."""

    f: Callable[[Any, Any], Any] = half_square

    def with_option(self, name: str, value: Any) -> Any:
        """A map with another value of an option."""
        return self.at(**{name: value})

    def at(self, y: Any = None, f: Any = None, **options: Any) -> Any:
        """The map at y."""
        y = vec(1.0, 1.0) if y is None else y
        return self.make(self.f if f is None else f, **options)(y, vec(1.0, 2.0))


def kkt(f: Any, equality: Any = None, dual: Any = lambda: (vec(1.0)[0],)) -> Any:
    """The residual of a minimum with a sum, at a point and these multipliers."""

    def total(z: Any, a: Any) -> Any:
        return jnp.sum(z) - 1

    F = ok.optimality.kkt(f, total if equality is None else equality)

    def at(y: Any, a: Any) -> Any:
        return F(y if dual is None else ok.optimality.KKT(y, *dual()), a)

    return at


# fmt: off
NOT_A_SCALAR = Fault("function", "an objective that returns an array",
    Raises(ValueError, "one real scalar"), lambda T: T.at(f=residual))
# fmt: on


def other_shape(*_: Any) -> Any:
    """Three numbers, whatever it is called with."""
    return jnp.ones(3)


def to_other_shape(name: str) -> Fault:
    """A piece of a map, an argument of this name, that returns another shape."""
    what = f"`{name}` to another shape"
    feed = lambda T: T.at(**{name: other_shape})  # noqa: E731
    return Fault("shape", what, Raises(ValueError, "shape"), feed)


OBJECTIVE = opt.FUNCTION.called("objective")
STEPS = {"f": OBJECTIVE, "step_size": opt.POSITIVE}
# fmt: off
MAPS = Kind("Optimality maps", [
    Fault("nan", "a point of NaN", Shows(), lambda T: T.at(vec(NAN, 1.0))),
    Fault("dtype", "an integer point", Raises(TypeError, "int32"),
        lambda T: T.at(jnp.arange(2))),
], [
    Map("optimality.gradient_descent", ok.optimality.gradient_descent, STEPS,
        faults=[NOT_A_SCALAR]),
    Map("optimality.projected_gradient",
        partial(ok.optimality.projected_gradient,
            projection=lambda v, a: jnp.clip(v, 0, 1)),
        STEPS | {"projection": opt.FUNCTION}, faults=[
        NOT_A_SCALAR,
        to_other_shape("projection"),
    ]),
    Map("optimality.proximal_gradient",
        partial(ok.optimality.proximal_gradient,
            prox=lambda v, a, t: ok.prox.lasso(v, 1.0, t)),
        STEPS | {"prox": opt.FUNCTION}, faults=[NOT_A_SCALAR, to_other_shape("prox")]),
    Map("optimality.mirror_descent",
        partial(ok.optimality.mirror_descent, mirror_map=jnp.log,
            projection=lambda z, a: jax.nn.softmax(z)),
        STEPS | {"mirror_map": opt.FUNCTION, "projection": opt.FUNCTION}, faults=[
        NOT_A_SCALAR,
        to_other_shape("mirror_map"),
        to_other_shape("projection"),
    ]),
    Map("optimality.exponentiated_gradient", ok.optimality.exponentiated_gradient,
        STEPS, faults=[
        NOT_A_SCALAR,
        Fault("zero", "an entry of 0", Right(lambda x: x[0] == 0),
            lambda T: T.at(vec(0.0, 1.0))),
        Fault("zero", "all entries 0", Shows(), lambda T: T.at(vec(0.0, 0.0))),
        Fault("huge", "an entry of 1e30", Right(lambda x: x[1] == 1),
            lambda T: T.at(vec(1e30, 1.0))),
    ]),
    Map("optimality.block_proximal_gradient",
        partial(ok.optimality.block_proximal_gradient, proxes=ok.prox.none),
        {"f": OBJECTIVE, "step_sizes": opt.POSITIVE, "proxes": opt.FUNCTION}, faults=[
        NOT_A_SCALAR,
        to_other_shape("proxes"),
        Fault("tree", "proxes of another structure", Raises(ValueError, "prefix"),
            lambda T: T.at(proxes={"a": ok.prox.none})),
        Fault("tree", "step sizes of another structure",
            Raises(ValueError, "step_sizes"), lambda T: T.at(step_sizes={"a": 1.0})),
    ]),
    Map("optimality.stationary", ok.optimality.stationary, {"f": OBJECTIVE},
        faults=[NOT_A_SCALAR]),
    Map("optimality.newton", ok.optimality.newton,
        {"f": opt.FUNCTION.called("residual"), "step_size": opt.POSITIVE,
            "solver": opt.METHOD}, f=residual,
        differs={"a point of NaN": Reports("nonfinite_input")}, faults=[
        to_other_shape("f"),
        Fault("singular", "a Jacobian of 0", Reports("singular"),
            lambda T: T.at(f=lambda y, a: 0 * y - a)),
    ]),
    Map("optimality.fixed_point_residual", ok.optimality.fixed_point_residual,
        {"f": opt.FUNCTION.called("mapping")}, f=contraction, faults=[
        to_other_shape("f"),
    ]),
    Map("optimality.kkt", kkt, {"f": OBJECTIVE, "equality": opt.FUNCTION},
        covers=("optimality.KKT",), faults=[
        NOT_A_SCALAR,
        Fault("object", "a vector for the unknown", Raises(TypeError, "KKT"),
            lambda T: T.at(dual=None)),
        Fault("shape", "multipliers of another shape", Raises(ValueError, "shape"),
            lambda T: T.at(dual=lambda: (vec(1.0, 2.0),))),
        Fault("missing", "no multipliers", Raises(ValueError, "structure"),
            lambda T: T.at(dual=lambda: ())),
    ]),
])
# fmt: on


def cone_program(
    c: Any = (1.0, 1.0), A: Any = ((1.0, 0.0), (0.0, 1.0)), b: Any = (1.0, 1.0)
) -> Any:
    """Of two variables and two rows."""
    return ok.optimality.ConicProgram(jnp.array(c), jnp.array(A), jnp.array(b))


def conic(cone: Any = None, program: Any = None, primal: Any = (1.0, 1.0)) -> Any:
    """The residual of the program, in a cone of two rows."""
    cone = ok.optimality.Cone(non_negative=2) if cone is None else cone
    ones = jnp.ones(2)
    y = ok.optimality.ConicSolution(jnp.array(primal), ones, ones)
    return ok.optimality.conic(cone)(y, cone_program() if program is None else program)


# fmt: off
CONES = Kind("Cone programs", [
    Fault("nan", "costs of NaN", Shows(),
        lambda F: F.make(program=cone_program(c=(NAN, 1.0)))),
    Fault("shape", "a cone of more rows than A",
        Raises(ValueError, "A of shape (3, 2)"),
        lambda F: F.make(ok.optimality.Cone(non_negative=3))),
    Fault("shape", "more rows than in the cone", Raises(ValueError, "(3, 3)"),
        lambda F: F.make(program=cone_program(A=np.eye(3, dtype="f4")))),
    Fault("shape", "a b of another length", Raises(ValueError, "shape"),
        lambda F: F.make(program=cone_program(b=(1.0, 1.0, 1.0)))),
    Fault("shape", "a solution of another length", Raises(ValueError, "shape"),
        lambda F: F.make(primal=(1.0,))),
    Fault("option", "a negative size", Raises(ValueError, "non_negative"),
        lambda F: F.make(ok.optimality.Cone(non_negative=-1))),
    Fault("object", "a number as cone", Raises(TypeError, "Cone"), lambda F: F.make(3)),
], [
    Row("optimality.conic", conic,
        covers=("optimality.Cone", "optimality.ConicProgram",
            "optimality.ConicSolution")),
])
# fmt: on

KINDS = [DECORATORS, ITERATIONS, CHECKS, MAPS, CONES]
