"""Faults of decorators, optimality maps, proximal operators and projections."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np  # noqa: F401  # in the table
from faulty import table

import optkit as ok

INF, NAN = float("inf"), float("nan")


def half_square(y: Any, a: Any) -> jax.Array:
    """½ |y - a|²."""
    return 0.5 * jnp.sum((y - a) ** 2)


def flat(y: Any, a: Any) -> jax.Array:
    """Of no curvature in y."""
    return jnp.sum(y * a)


def saddle(y: Any, a: Any) -> jax.Array:
    """Of negative curvature in y."""
    return 0.5 * jnp.sum(y * a) - 0.5 * jnp.sum(y**2)


def residual(y: Any, a: Any) -> jax.Array:
    """Zero at a."""
    return y - a


def contraction(y: Any, a: Any) -> jax.Array:
    """To a."""
    return 0.5 * (y + a)


def returns(value: Any) -> Any:
    """A solver that returns this, whatever it is asked."""
    return lambda y0, args: value


def exact(y0: Any, a: Any) -> Any:
    """The solution of all three."""
    return a


DECORATORS = {
    "implicit_minimum": (ok.implicit_minimum, half_square),
    "implicit_root": (ok.implicit_root, residual),
    "implicit_fixed_point": (ok.implicit_fixed_point, contraction),
}


def derivative(
    name: str, condition: Any = None, solve: Any = exact, a: Any = None, **o: Any
) -> Any:
    """The gradient of Σ y in the parameters."""
    decorate, default = DECORATORS[name]
    solver = decorate(default if condition is None else condition, **o)(solve)
    a = jnp.array([1.0, 2.0]) if a is None else a
    return jax.grad(lambda a: jnp.sum(solver(jnp.zeros(2), a)))(a)


def value(name: str, solve: Any, condition: Any = None, **options: Any) -> Any:
    """What the decorated solver returns."""
    decorate, default = DECORATORS[name]
    solver = decorate(default if condition is None else condition, **options)(solve)
    return solver(jnp.zeros(2), jnp.array([1.0, 2.0]))


def check(
    solve: Any = exact, args: Any = None, condition: Any = residual, **options: Any
) -> Any:
    """The report."""
    args = jnp.array([1.0, 2.0]) if args is None else args
    given = {"y0": jnp.zeros(2), "key": jr.key(0)} | options
    return ok.check_implicit(ok.implicit_root(condition)(solve), args, **given)


def anderson(mapping: Any = contraction, y0: Any = None, **options: Any) -> Any:
    """The fixed point and how it was found."""
    y0 = jnp.zeros(2) if y0 is None else y0
    return ok.solvers.anderson(mapping, y0, jnp.array([1.0, 2.0]), **options)


def unroll(
    step: Any = contraction, y0: Any = None, num_steps: Any = 3, **options: Any
) -> Any:
    """Steps of the contraction."""
    y0 = jnp.zeros(2) if y0 is None else y0
    return ok.unroll(step, y0, jnp.array([1.0, 2.0]), num_steps=num_steps, **options)


def kkt(y: Any, **options: Any) -> Any:
    """The residual of a minimum with a sum."""
    F = ok.optimality.kkt(half_square, lambda z, a: jnp.sum(z) - 1)
    return F(y, jnp.zeros(2))


def conic(program: Any = None, m: int = 2, y: Any = None) -> Any:
    """The residual of a program of two rows."""
    cone = ok.optimality.Cone(non_negative=m)
    solution = ok.optimality.ConicSolution(jnp.ones(2), jnp.ones(m), jnp.ones(m))
    given = ok.optimality.ConicProgram(jnp.ones(2), jnp.eye(2), jnp.ones(2))
    return ok.optimality.conic(cone)(
        solution if y is None else y, given if program is None else program
    )


MAPS = {
    "gradient_descent": ok.optimality.gradient_descent,
    "projected_gradient": lambda f, t=1.0: ok.optimality.projected_gradient(
        f, lambda v, a: jnp.clip(v, 0, 1), t
    ),
    "proximal_gradient": lambda f, t=1.0: ok.optimality.proximal_gradient(
        f, lambda v, a, t: ok.prox.lasso(v, 1.0, t), t
    ),
    "mirror_descent": lambda f, t=1.0: ok.optimality.mirror_descent(
        f, jnp.log, lambda z, a: jax.nn.softmax(z), t
    ),
    "exponentiated_gradient": ok.optimality.exponentiated_gradient,
    "block_proximal_gradient": lambda f, t=1.0: ok.optimality.block_proximal_gradient(
        f, ok.prox.none, t
    ),
    "stationary": ok.optimality.stationary,
}


def step(name: str, f: Any = half_square, y: Any = None, t: Any = None) -> Any:
    """One step of a map."""
    name = name.removeprefix("optimality.")
    make = MAPS[name] if t is None else lambda f: MAPS[name](f, t)
    return make(f)(jnp.ones(2) if y is None else y, jnp.array([1.0, 2.0]))


def vec(*entries: float) -> Any:
    """A vector."""
    return jnp.array(entries)


def prox(name: str, v: Any, strength: Any = 1.0, t: Any = 1.0) -> Any:
    """A prox, with as many strengths as it takes."""
    name = name.removeprefix("prox.")
    count = 2 if name == "elastic_net" else 1
    return getattr(ok.prox, name)(v, *[strength] * count, t)


def box(
    x: Any, lower: Any = 0.0, upper: Any = 1.0, weights: Any = 1.0, total: Any = 1.0
) -> Any:
    """Onto the simplex, or another section of a box."""
    return ok.projections.box_section(x, lower, upper, weights, total)


ROWS = table(
    globals(),
    """
    implicit_minimum implicit_root implicit_fixed_point:
        nan       value("{}", returns(vec(NAN, 1.0)))   -> NaN
        nan       derivative("{}", a=vec(INF, 1.0))     -> nonfinite_solution
        zero      derivative("{}", a=vec(0.0, 0.0))     -> right: np.allclose(x, 1)
        huge      derivative("{}", a=vec(1e30, 1.0))    -> right: np.allclose(x, 1)
        dtype     value("{}", returns(jnp.arange(2)))   -> TypeError: int32
        dtype     value("{}", returns(jnp.ones(2, "c8")))  -> TypeError: complex64
        option    value("{}", exact, has_aux=True)      -> ValueError: (y, aux)
        option    value("{}", exact, has_aux=1)         -> TypeError: has_aux
        object    ok.{}(3.0)                            -> TypeError: function
        object    value("{}", exact, solver="cg")       -> TypeError: method
        object    value("{}", 3.0)                      -> TypeError: function
    implicit_minimum:
        function  value("{}", exact, residual)          -> ValueError: one real scalar
        singular  derivative("{}", flat)                -> indefinite
        singular  derivative("{}", saddle)              -> indefinite
        option    value("{}", exact, damping=-1.0)      -> ValueError: damping >= 0
        option    value("{}", exact, damping=NAN)       -> ValueError: damping >= 0
    implicit_root:
        singular  derivative("{}", lambda y, a: 0 * y - a)  -> stalled
    implicit_fixed_point:
        singular  derivative("{}", lambda y, a: y + 0 * a + 1e-3 * a)  -> stalled
    implicit_root implicit_fixed_point:
        tree      value("{}", exact, lambda y, a: (y,)) \
                  -> ValueError: like the solution
        shape     value("{}", exact, lambda y, a: jnp.ones(3))  -> ValueError: (3,)
        dtype     value("{}", exact, lambda y, a: jnp.ones(2, "f2")) \
                  -> TypeError: float16
        object    value("{}", exact, solver=ok.CG())    -> ValueError: symmetric
    ImplicitSolve (ok.implicit_root):
        dtype     value("implicit_root", returns(jnp.arange(2)))  -> TypeError: int32
    OneStep:
        option    ok.{}(0.0)                            -> ValueError: step_size > 0
        option    ok.{}(NAN)                            -> ValueError: step_size > 0
        nan       derivative("implicit_root", a=vec(NAN, 1.0), solver=ok.{}()) \
                  -> nonfinite_solution
    check_implicit:
        nan       check(returns(vec(NAN, 1.0))) \
                  -> right: "NaN" in x.verdict or "not finite" in x.verdict or \
                  "infin" in x.verdict
        singular  check(condition=lambda y, a: 0 * y - a) \
                  -> right: "failed" in x.verdict
        function  check(condition=lambda y, a: y - 2 * a) \
                  -> right: "solves another problem" in x.verdict or "not what the \
                  solver" in x.verdict
        empty     check(args=())                        -> ValueError: floating array
        dtype     check(args=jnp.arange(2))             -> ValueError: floating array
        option    check(step=0.0)                       -> ValueError: step > 0
        option    check(rtol=NAN)                       -> ValueError: rtol > 0
        object    check(key=0)                          -> TypeError: one random key
        object    ok.{}(exact, vec(1.0), y0=vec(1.0), key=jr.key(0)) \
                  -> TypeError: decorators
    host_solver:
        object    ok.{}(3.0)                            -> TypeError: function
        tree      ok.{}(lambda y0, a: (y0,))(vec(1.0), vec(1.0)) \
                  -> RuntimeError: structure
        shape     ok.{}(lambda y0, a: np.ones(3))(vec(1.0), vec(1.0)) \
                  -> RuntimeError: shapes of y0
        nan       ok.{}(lambda y0, a: y0 * NAN)(vec(1.0), vec(1.0))  -> NaN
    solvers.anderson:
        nan       anderson(lambda y, a: y * NAN + a)    -> nonfinite_iterate
        nan       anderson(y0=vec(NAN, 1.0))            -> nonfinite_iterate
        huge      anderson(lambda y, a: 1e30 * y**2 + a)  -> nonfinite_iterate
        singular  anderson(lambda y, a: y + 1.0, max_steps=9)  -> max_steps_reached
        zero      anderson(lambda y, a: 0 * y)          -> right: not np.any(x[0])
        tiny      anderson(lambda y, a: 0.5 * (y + 1e-30 * a)) \
                  -> right: np.allclose(x[0] * 1e30, [1, 2], 1e-3)
        empty     anderson(lambda y, a: y, ())          -> ValueError: with an array
        tree      anderson(lambda y, a: (y,))           -> ValueError: structure
        shape     anderson(lambda y, a: jnp.ones(3))    -> ValueError: shape
        dtype     anderson(y0=jnp.arange(2))            -> TypeError: int32
        option    anderson(history=0)                   -> ValueError: history >= 1
        option    anderson(max_steps=0)                 -> ValueError: max_steps >= 1
        option    anderson(mixing=0.0)                  -> ValueError: mixing > 0
        option    anderson(rtol=-1.0)                   -> ValueError: rtol >= 0
        option    anderson(ridge=NAN)                   -> ValueError: ridge >= 0
        object    anderson(3.0)                         -> TypeError: function
    unroll:
        nan       unroll(y0=vec(NAN, 1.0))              -> NaN
        huge      unroll(lambda y, a: (y + 1e30) ** 2)  -> NaN
        tree      unroll(lambda y, a: (y,))             -> ValueError: like y
        shape     unroll(lambda y, a: jnp.ones(3))      -> ValueError: float32(3,)
        dtype     unroll(y0=jnp.arange(2))              -> ValueError: int32(2,)
        option    unroll(num_steps=0)                   -> ValueError: num_steps >= 1
        option    unroll(truncate=4)  -> ValueError: truncate <= num_steps
        option    unroll(truncate=0)                    -> ValueError: truncate >= 1
        option    unroll(checkpoint_every=0)  -> ValueError: checkpoint_every >= 1
        object    unroll(3.0)                           -> TypeError: function

    optimality.gradient_descent optimality.projected_gradient \
    optimality.proximal_gradient optimality.mirror_descent \
    optimality.exponentiated_gradient optimality.block_proximal_gradient \
    optimality.stationary:
        nan       step("{}", y=vec(NAN, 1.0))  -> NaN
        function  step("{}", residual)    -> ValueError: one real scalar
        dtype     step("{}", y=jnp.arange(2))  -> TypeError: int32
        object    step("{}", 3.0)         -> TypeError: function
    optimality.gradient_descent optimality.projected_gradient \
    optimality.proximal_gradient optimality.mirror_descent \
    optimality.exponentiated_gradient optimality.block_proximal_gradient:
        option    step("{}", t=0.0)       -> ValueError: step_size > 0
        option    step("{}", t=NAN)       -> ValueError: step_size > 0
    optimality.projected_gradient:
        shape     ok.{}(half_square, lambda v, a: jnp.ones(3))(vec(1.0), vec(1.0)) \
                  -> ValueError: shape
        object    ok.{}(half_square, 3.0)               -> TypeError: function
    optimality.proximal_gradient:
        shape     ok.{}(half_square, lambda v, a, t: jnp.ones(3))(vec(1.0), vec(1.0)) \
                  -> ValueError: shape
        object    ok.{}(half_square, 3.0)               -> TypeError: function
    optimality.mirror_descent:
        shape     ok.{}(half_square, lambda y: jnp.ones(3), lambda z, \
                  a: z)(vec(1.0), vec(1.0))  -> ValueError: shape
        object    ok.{}(half_square, 3.0, lambda z, a: z)  -> TypeError: function
    optimality.exponentiated_gradient:
        zero      step("exponentiated_gradient", y=vec(0.0, 1.0))  -> right: x[0] == 0
        zero      step("exponentiated_gradient", y=vec(0.0, 0.0))  -> NaN
        huge      step("exponentiated_gradient", y=vec(1e30, 1.0))  -> right: x[1] == 1
    optimality.block_proximal_gradient:
        tree      ok.{}(half_square, {"a": ok.prox.none})(vec(1.0), vec(1.0)) \
                  -> ValueError: prefix
        tree      ok.{}(half_square, ok.prox.none, {"a": 1.0}) \
                  -> ValueError: step_sizes
        shape     ok.{}(half_square, lambda v, a, t: jnp.ones(3))(vec(1.0), vec(1.0)) \
                  -> ValueError: shape
        object    ok.{}(half_square, 3.0)               -> TypeError: function
    optimality.newton:
        nan       ok.{}(residual)(vec(NAN), vec(1.0))   -> nonfinite_input
        singular  ok.{}(lambda y, a: 0 * y - a)(vec(1.0), vec(1.0))  -> singular
        shape     ok.{}(lambda y, a: jnp.ones(3))(vec(1.0), vec(1.0)) \
                  -> ValueError: shape
        option    ok.{}(residual, 0.0)                  -> ValueError: step_size > 0
        object    ok.{}(3.0)                            -> TypeError: function
    optimality.fixed_point_residual:
        nan       ok.{}(contraction)(vec(NAN), vec(1.0))  -> NaN
        shape     ok.{}(lambda y, a: jnp.ones(3))(vec(1.0), vec(1.0)) \
                  -> ValueError: shape
        object    ok.{}(3.0)                            -> TypeError: function
    optimality.kkt:
        nan       kkt(ok.optimality.KKT(vec(NAN, 1.0), vec(1.0)[0]))  -> NaN
        object    kkt(vec(1.0))                         -> TypeError: KKT
        object    ok.{}(3.0)                            -> TypeError: function
    optimality.KKT (ok.optimality.kkt):
        shape     kkt(ok.optimality.KKT(vec(1.0, 1.0), vec(1.0, 2.0))) \
                  -> ValueError: shape
        missing   kkt(ok.optimality.KKT(vec(1.0, 1.0)))  -> ValueError: structure
    optimality.conic:
        nan       conic(ok.optimality.ConicProgram(vec(NAN, 1.0), jnp.eye(2), \
                  vec(1.0, 1.0)))  -> NaN
        shape     conic(m=3)                            -> ValueError: rows
        object    ok.{}(3)                              -> TypeError: Cone
    optimality.Cone (ok.optimality.conic):
        option    ok.optimality.conic(ok.{}(non_negative=-1))  -> ValueError: sizes
    optimality.ConicProgram (ok.optimality.conic):
        shape     conic(ok.{}(vec(1.0, 1.0), jnp.eye(3), vec(1.0, 1.0))) \
                  -> ValueError: rows
        shape     conic(ok.{}(vec(1.0, 1.0), jnp.eye(2), vec(1.0, 1.0, 1.0))) \
                  -> ValueError: shape
    optimality.ConicSolution (ok.optimality.conic):
        shape     conic(y=ok.{}(vec(1.0), vec(1.0), vec(1.0)))  -> ValueError: shape

    prox.lasso prox.non_negative_lasso prox.ridge prox.non_negative_ridge \
    prox.elastic_net prox.group_lasso:
        nan       prox("{}", vec(NAN, 1.0))             -> NaN
        zero      prox("{}", vec(0.0, 0.0))             -> right: not np.any(x)
        huge      prox("{}", vec(1e38, 1e38))           -> right
        tiny      prox("{}", vec(1e-30, 1e-30))         -> right
        empty     prox("{}", {"a": None, "b": jnp.zeros(0)})  -> right: x["b"].size == 0
        dtype     prox("{}", jnp.arange(2))             -> TypeError: int32
        dtype     prox("{}", jnp.ones(2, "c8"))         -> TypeError: complex64
        option    prox("{}", vec(1.0), -1.0)            -> ValueError: >= 0
        option    prox("{}", vec(1.0), NAN)             -> ValueError: >= 0
        option    prox("{}", vec(1.0), 1.0, -1.0)       -> ValueError: step_size >= 0
    prox.lasso prox.non_negative_lasso prox.ridge prox.non_negative_ridge \
    prox.elastic_net:
        tree      prox("{}", {"a": vec(1.0)}, {"b": 1.0})  -> ValueError: prefix
        shape     prox("{}", vec(1.0, 2.0), jnp.ones((3, 2)))  -> ValueError: broadcast
    prox.group_lasso:
        shape     prox("{}", vec(1.0, 2.0), jnp.ones(2))  -> ValueError: scalar
    prox.nuclear:
        nan       ok.{}(jnp.full((2, 2), NAN), 1.0)     -> NaN
        zero      ok.{}(jnp.zeros((2, 2)), 1.0)         -> right: not np.any(x)
        shape     ok.{}(vec(1.0), 1.0)                  -> ValueError: matrices
        empty     ok.{}(jnp.zeros((0, 2)), 1.0)         -> right: x.shape == (0, 2)
        dtype     ok.{}(jnp.ones((2, 2), int), 1.0)     -> TypeError: int32
        option    ok.{}(jnp.ones((2, 2)), -1.0)         -> ValueError: strength >= 0
        tree      ok.{}({"a": jnp.ones((2, 2))}, {"b": 1.0})  -> ValueError: prefix
    prox.none:
        nan       ok.{}(vec(NAN))                       -> NaN
        empty     ok.{}(())                             -> right: x == ()

    projections.box_section:
        nan       box(vec(NAN, 1.0))                    -> NaN
        nan       box(vec(1.0, 1.0), total=NAN)         -> NaN
        huge      box(vec(1e38, -1e38))                 -> NaN
        tiny      box(vec(1e-30, 1e-30))                -> right: np.allclose(x, 0.5)
        singular  box(vec(1.0, 1.0), total=3.0)         -> NaN
        singular  box(vec(1.0, 1.0), lower=2.0)         -> NaN
        zero      box(vec(1.0, 1.0), weights=0.0)       -> NaN
        empty     box(jnp.zeros(0), total=0.0)          -> right: x.size == 0
        shape     box(jnp.ones((2, 2)))                 -> ValueError: shape (n,)
        shape     box(vec(1.0, 1.0), lower=jnp.zeros(3))  -> ValueError: needs lower
        dtype     box(jnp.arange(2))                    -> TypeError: int32
    projections.sparse_simplex:
        nan       ok.{}(vec(NAN, 1.0), 1)               -> NaN
        singular  ok.{}(vec(1.0, 1.0), 1, -1.0)         -> NaN
        option    ok.{}(vec(1.0, 1.0), 0)               -> ValueError: max_nonzero >= 1
        option    ok.{}(vec(1.0, 1.0), 3)               -> ValueError: max_nonzero=3
        shape     ok.{}(jnp.ones((2, 2)), 1)            -> ValueError: shape (n,)
        dtype     ok.{}(jnp.arange(2), 1)               -> TypeError: int32
    projections.second_order_cone:
        nan       ok.{}(vec(NAN, 1.0))                  -> NaN
        nan       ok.{}(vec(1.0, NAN))                  -> NaN
        zero      ok.{}(vec(0.0, 0.0))                  -> right: not np.any(x)
        huge      ok.{}(vec(0.0, 2e38, 2e38))           -> right
        empty     ok.{}(jnp.zeros(0))                   -> ValueError: empty
        shape     ok.{}(jnp.ones((2, 2)))               -> ValueError: shape (n,)
        dtype     ok.{}(jnp.arange(2))                  -> TypeError: int32
    projections.affine_set:
        nan       ok.{}(vec(NAN, 1.0), jnp.ones((1, 2)), vec(1.0))  -> NaN
        singular  ok.{}(vec(1.0, 1.0), jnp.ones((2, 2)), vec(1.0, 2.0))  -> NaN
        zero      ok.{}(vec(1.0, 1.0), jnp.zeros((1, 2)), vec(1.0))  -> NaN
        empty     ok.{}(vec(1.0, 1.0), jnp.ones((0, 2)), jnp.zeros(0)) \
                  -> right: np.all(x == 1)
        shape     ok.{}(vec(1.0, 1.0), jnp.ones((1, 3)), vec(1.0)) \
                  -> ValueError: (m, n)
        dtype     ok.{}(jnp.arange(2), jnp.ones((1, 2)), vec(1.0))  -> TypeError: int32
    projections.polyhedron:
        nan       ok.{}(vec(NAN, 1.0), jnp.ones((1, 2)), vec(1.0))  -> NaN
        singular  ok.{}(vec(1.0), jnp.array([[1.0], [-1.0]]), vec(-1.0, -1.0))  -> NaN
        shape     ok.{}(vec(1.0, 1.0), jnp.ones((1, 3)), vec(1.0)) \
                  -> ValueError: (m, n)
        missing   ok.{}(vec(1.0, 1.0), jnp.ones((1, 2)), vec(1.0), jnp.ones((1, 2))) \
                  -> ValueError: both A and b
        dtype     ok.{}(jnp.arange(2), jnp.ones((1, 2)), vec(1.0))  -> TypeError: int32
    projections.transport projections.kl_transport:
        nan       ok.{}(jnp.full((2, 2), NAN), vec(1.0, 1.0), vec(1.0, 1.0))  -> NaN
        singular  ok.{}(jnp.ones((2, 2)), vec(1.0, 1.0), vec(1.0, 2.0))  -> NaN
        singular  ok.{}(jnp.ones((2, 2)), vec(2.0, -1.0), vec(0.5, 0.5))  -> NaN
        huge      ok.{}(jnp.full((2, 2), 1e30), vec(1.0, 1.0), vec(1.0, 1.0))  -> right
        shape     ok.{}(jnp.ones((2, 2)), vec(1.0), vec(1.0, 1.0)) \
                  -> ValueError: shape (a, b)
        dtype     ok.{}(jnp.ones((2, 2), int), vec(1.0, 1.0), vec(1.0, 1.0)) \
                  -> TypeError: int32
    projections.birkhoff projections.kl_birkhoff:
        nan       ok.{}(jnp.full((2, 2), NAN))          -> NaN
        shape     ok.{}(jnp.ones((2, 3)))               -> ValueError: square
        dtype     ok.{}(jnp.ones((2, 2), int))          -> TypeError: int32
    """,
)
