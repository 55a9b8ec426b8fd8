"""Faults of curvatures, of their inverses, and of what is done with an inverse."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from faulty import table

import optkit as ok

INF, NAN = float("inf"), float("nan")


def params() -> dict[str, Any]:
    """Three entries in two leaves."""
    return {"b": jnp.array([0.5]), "w": jnp.array([1.0, -2.0])}


def loss(p: Any, scale: Any = 1.0) -> jax.Array:
    """A quartic, convex."""
    return scale * sum(jnp.sum(x**2 + 0.1 * x**4) for x in jax.tree.leaves(p))


def like(number: float) -> Any:
    """Params of one number."""
    return jax.tree.map(lambda x: 0 * x + number, params())


def model(p: Any, x: Any) -> jax.Array:
    """Two outputs for each example."""
    return x @ jnp.stack([p["w"], p["w"] ** 2], axis=1) + p["b"]


def example_loss(p: Any, example: Any) -> jax.Array:
    """Of one example."""
    x, y = example
    return 0.5 * jnp.sum((model(p, x[None])[0] - y) ** 2)


def batch(size: int = 3, number: float = 1.0) -> Any:
    """Inputs and targets."""
    return jnp.full((size, 2), number) * jnp.arange(1.0, size + 1)[:, None], jnp.ones(
        size
    )


def rows(number: float = 1.0) -> Any:
    """Two rows of the params' shapes."""
    return {"b": jnp.full((2, 1), number), "w": jnp.full((2, 2), number)}


def diagonal(*entries: float) -> Any:
    """A symmetric operator on a vector of three."""
    values = jnp.array(entries or (1.0, 2.0, 3.0))
    return lx.DiagonalLinearOperator(values)


METHODS = {
    "CG": lambda: ok.CG(),
    "Neumann": lambda: ok.Neumann(200),
    "Nystrom": lambda: ok.Nystrom(3, key=jr.key(0)),
    "GMRES": lambda: ok.GMRES(),
}


def solve(name: str, C: Any, b: Any, damping: float = 0.0) -> Any:
    """The solution and how it went."""
    P = ok.invert(C, METHODS[name](), damping=damping)
    return P.solve(jnp.asarray(b) if isinstance(b, list) else b)


def woodbury(C: Any, b: Any, damping: Any = 1.0) -> Any:
    """The solution and how it went."""
    return ok.invert(C, ok.Woodbury(), damping=damping).solve(b)


def inverse(C: Any = None, damping: float = 1.0) -> Any:
    """P of two rows, or of another curvature."""
    return ok.invert(
        ok.LowRank(rows()) if C is None else C, ok.Woodbury(), damping=damping
    )


def relative_error(solution: Any, C: Any, b: Any) -> Any:
    """|C x - b| / |b|."""
    b = jnp.asarray(b)
    return jnp.max(jnp.abs(C.mv(solution.value) - b)) / jnp.max(jnp.abs(b))


def error(solution: Any, scale: float) -> Any:
    """The largest relative error of diag(2, 3, 4) x = (scale, -scale, scale)."""
    wanted = scale / jnp.array([2.0, -3.0, 4.0])
    return jnp.max(jnp.abs(solution.value / wanted - 1))


def symmetric(matrix: Any) -> Any:
    """A tagged matrix."""
    return lx.MatrixLinearOperator(jnp.array(matrix), lx.symmetric_tag)


def hilbert() -> Any:
    """Nine by nine, singular to rounding."""
    i = np.arange(1, 10)
    return symmetric((1 / (i[:, None] + i - 1)).astype(np.float32))


def gmres(matrix: Any, b: Any) -> Any:
    """The solution and how it went."""
    operator = lx.MatrixLinearOperator(jnp.array(matrix))
    return lx.linear_solve(operator, jnp.array(b), ok.GMRES(), throw=False).stats


def preconditioner(number: float = 1.0) -> Any:
    """Of a diagonal curvature."""
    C, method = diagonal(number, 2.0, 3.0), ok.Nystrom(2, key=jr.key(0))
    return ok.nystrom_preconditioner(ok.invert(C, method, damping=1.0))


def spectrum(C: Any, **options: Any) -> Any:
    """Eigenvalues of three."""
    given = {"key": jr.key(0), "num_probes": 1, "num_steps": 2}
    return ok.spectrum(C, **(given | options))


def diag(params: Any, *args: Any, **options: Any) -> Any:
    """Value, gradient and diagonal of the loss."""
    options = {"key": jr.key(0)} | options
    return ok.value_grad_and_diag(loss)(params, *args, **options)


def sampled(p: Any, x: Any, y: Any, head: Any = None, **options: Any) -> Any:
    """Value, gradient and Gauss-Newton diagonal."""
    head = ok.SquaredError() if head is None else head
    f = ok.value_grad_and_gauss_newton_diag(model, head)
    return f(p, x, y, **({"key": jr.key(0)} | options))


def influence(**options: Any) -> Any:
    """Scores of three examples for two."""
    given = {
        "example_loss": example_loss,
        "params": params(),
        "train": batch(3),
        "test": batch(2),
        "inverse": inverse(),
    }
    return ok.influence(**(given | options))


def prune(**options: Any) -> Any:
    """One of three weights removed."""
    given = {"params": params(), "inverse": inverse(), "sparsity": 0.3}
    return ok.obs_prune(**(given | options))


def gradually(**options: Any) -> Any:
    """Two rounds."""
    given = {"params": params(), "sparsity": 0.5, "num_rounds": 2}
    given |= {"make_inverse": lambda p, kept: inverse()}
    return ok.obs_prune_gradually(**(given | options))


def removed(number: bool = True) -> Any:
    """A mask of what is removed."""
    return {"b": jnp.array([False]), "w": jnp.array([number, False])}


ROWS = table(
    globals(),
    """
    hvp:
        nan       ok.{}(loss, like(NAN), params())      -> NaN
        nan       ok.{}(loss, params(), like(INF))      -> NaN
        zero      ok.{}(loss, params(), like(0.0))      -> right: not np.any(x["w"])
        huge      ok.{}(loss, like(1e30), params())     -> NaN
        tiny      ok.{}(loss, like(1e-30), params())    -> right
        empty     ok.{}(lambda p: jnp.zeros(()), (), ())  -> right: x == ()
        tree      ok.{}(loss, params(), {"w": jnp.ones(2)})  -> ValueError: structure
        shape     ok.{}(loss, jnp.ones(2), jnp.ones(3))  -> ValueError: shape (3,)
        dtype     ok.{}(loss, jnp.ones(2), jnp.ones(2, "f2"))  -> TypeError: float16
        dtype     ok.{}(loss, jnp.arange(2), jnp.ones(2))  -> TypeError: int32
        dtype     ok.{}(loss, jnp.ones(2, "c8"), jnp.ones(2, "c8")) \
                  -> TypeError: complex64
        function  ok.{}(lambda p: p, jnp.ones(2), jnp.ones(2)) \
                  -> ValueError: shape (2,)
        function  ok.{}(lambda p: (1.0, 2.0), jnp.ones(2), jnp.ones(2)) \
                  -> ValueError: tuple
        function  ok.{}(lambda p: jnp.argmax(p), jnp.ones(2), jnp.ones(2)) \
                  -> TypeError: int32
        object    ok.{}(3.0, jnp.ones(2), jnp.ones(2))  -> TypeError: function
    value_grad_and_hvp:
        nan       ok.{}(loss)(like(NAN), params())      -> NaN
        huge      ok.{}(loss)(like(1e30), params())     -> NaN
        tree      ok.{}(loss)(params(), {"w": jnp.ones(2)})  -> ValueError: structure
        shape     ok.{}(loss)(jnp.ones(2), jnp.ones(3))  -> ValueError: shape (3,)
        dtype     ok.{}(loss)(jnp.arange(2), jnp.ones(2))  -> TypeError: int32
        function  ok.{}(lambda p: p)(jnp.ones(2), jnp.ones(2)) \
                  -> ValueError: shape (2,)
        object    ok.{}(3.0)                            -> TypeError: function
    hessian:
        nan       ok.{}(loss, like(NAN)).mv(params())   -> NaN
        huge      ok.{}(loss, like(1e30)).mv(params())  -> NaN
        empty     ok.{}(loss, ()).mv(())                -> right: x == ()
        dtype     ok.{}(loss, jnp.arange(2))            -> TypeError: int32
        object    ok.{}(3.0, jnp.ones(2))               -> TypeError: function
    hessian (ok.hvp):
        tree      ok.{}(loss, params()).mv({"w": jnp.ones(2)})  -> ValueError: structure
        function  ok.{}(lambda p: p, jnp.ones(2)).mv(jnp.ones(2)) \
                  -> ValueError: shape (2,)
    hessian:
        missing   ok.{}(loss, jnp.ones(2)).diagonal() \
                  -> NotImplementedError: hutchinson_diag
    gauss_newton:
        nan       ok.{}(model, ok.SquaredError(), like(NAN), batch()[0]).mv(params()) \
                  -> NaN
        nan       ok.{}(model, ok.SquaredError(), params(), jnp.full((3, 2), \
                  NAN)).mv(params())  -> NaN
        dtype     ok.{}(model, ok.SquaredError(), jnp.arange(2), batch()[0]) \
                  -> TypeError: int32
        tree      ok.{}(model, ok.SquaredError(), params(), batch()[0]).mv(()) \
                  -> ValueError: structure
        function  ok.{}(model, jnp.negative, params(), batch()[0]).mv(params()) \
                  -> ValueError: one real scalar
        empty     ok.{}(model, ok.SquaredError(), params(), jnp.ones((0, \
                  2))).mv(params())  -> right: not np.any(x["w"])
        object    ok.{}(model, 3.0, params(), batch()[0])  -> TypeError: function
        object    ok.{}(3.0, ok.SquaredError(), params(), batch()[0]) \
                  -> TypeError: function
        missing   ok.{}(model, ok.SquaredError(), params(), batch()[0]).diagonal() \
                  -> NotImplementedError: hutchinson_diag
    value_grad_and_diag:
        nan       diag(like(NAN))                       -> NaN
        huge      diag(like(1e30))                      -> NaN
        tiny      diag(like(1e-30))                     -> right
        empty     ok.{}(lambda p: jnp.zeros(()))((), key=jr.key(0)) \
                  -> right: x[2] == ()
        dtype     diag(jnp.arange(2))                   -> TypeError: int32
        option    diag(params(), num_probes=0)          -> ValueError: num_probes >= 1
        object    diag(params(), key=0)                 -> TypeError: random key
        function  ok.{}(lambda p: p)(jnp.ones(2), key=jr.key(0)) \
                  -> ValueError: shape (2,)
        object    ok.{}(3.0)                            -> TypeError: function
    value_grad_and_gauss_newton_diag:
        nan       sampled(like(NAN), batch()[0], jnp.ones((3, 2)))  -> NaN
        empty     sampled(params(), jnp.ones((0, 2)), jnp.ones((0, 2)))  -> right
        object    ok.{}(3.0, ok.SquaredError())         -> TypeError: function
        object    ok.{}(model, loss)                    -> TypeError: head
        dtype     sampled(jnp.arange(2), jnp.ones((3, 2)), jnp.ones((3, 2))) \
                  -> TypeError: int32
        option    sampled(params(), jnp.ones((3, 2)), jnp.ones((3, 2)), num_probes=0) \
                  -> ValueError: num_probes >= 1
        object    sampled(params(), jnp.ones((3, 2)), jnp.ones((3, 2)), key=0) \
                  -> TypeError: random key
    value_grad_and_gauss_newton_diag (ok.SquaredError):
        shape     sampled(params(), batch()[0], jnp.ones(3)) \
                  -> ValueError: shape (3, 2)
    hutchinson_diag hutchinson_trace:
        nan       ok.{}(diagonal(NAN, 1.0, 1.0), key=jr.key(0), num_probes=2)  -> NaN
        option    ok.{}(diagonal(), key=jr.key(0), num_probes=0) \
                  -> ValueError: num_probes >= 1
        option    ok.{}(diagonal(), key=jr.key(0), num_probes=1.0) \
                  -> ValueError: num_probes >= 1
        object    ok.{}(jnp.eye(3), key=jr.key(0), num_probes=1) \
                  -> TypeError: Lineax operator
        object    ok.{}(diagonal(), key=0, num_probes=1)  -> TypeError: random key
        object    ok.{}(lx.MatrixLinearOperator(jnp.ones((2, 2))), key=jr.key(0), \
                  num_probes=1)  -> ValueError: symmetric
    hutchinson_diag:
        huge      ok.{}(diagonal(3e38, 3e38, 3e38), key=jr.key(0), num_probes=2) \
                  -> right
    hutchinson_trace:
        huge      ok.{}(diagonal(3e38, 3e38, 3e38), key=jr.key(0), num_probes=2).mean \
                  -> NaN

    spectrum:
        nan       spectrum(diagonal(NAN, 1.0, 1.0))     -> NaN
        zero      spectrum(diagonal(0.0, 0.0, 0.0))  -> right: np.allclose(x.nodes, 0)
        option    spectrum(diagonal(), num_probes=0)    -> ValueError: num_probes >= 1
        option    spectrum(diagonal(), num_steps=4)     -> ValueError: num_steps=4
        object    spectrum(diagonal(), key=0)           -> TypeError: one random key
        object    spectrum(jnp.eye(3))                  -> TypeError: Lineax operator
        object    spectrum(lx.MatrixLinearOperator(jnp.eye(3))) \
                  -> ValueError: symmetric
    Spectrum:
        nan       spectrum(diagonal(NAN, 1.0, 1.0)).mean(jnp.square)  -> NaN

    empirical_fisher:
        nan       ok.{}(example_loss, like(NAN), batch()).mv(params())  -> NaN
        nan       ok.{}(example_loss, params(), batch(3, NAN)).mv(params())  -> NaN
        zero      ok.{}(lambda p, e: 0.0 * loss(p), params(), batch()).mv(params()) \
                  -> right
        huge      ok.{}(example_loss, like(1e30), batch()).mv(params())  -> NaN
        empty     ok.{}(example_loss, params(), batch(0))  -> ValueError: empty batch
        empty     ok.{}(lambda p, e: jnp.sum(e[1]), (), batch()).mv(()) \
                  -> right: x == ()
        shape     ok.{}(example_loss, params(), (jnp.ones((3, 2)), jnp.ones(2))) \
                  -> ValueError: first axis
        shape     ok.{}(example_loss, params(), 1.0)    -> ValueError: first axis
        dtype     ok.{}(example_loss, jnp.arange(2), batch())  -> TypeError: int32
        option    ok.{}(example_loss, params(), batch(), chunk=0) \
                  -> ValueError: chunk >= 1
        function  ok.{}(lambda p, e: p["w"], params(), batch()) \
                  -> ValueError: one real scalar
        object    ok.{}(3.0, params(), batch())         -> TypeError: function
    LowRank:
        nan       ok.{}(rows(NAN)).mv(params())         -> NaN
        zero      ok.{}(rows(0.0)).mv(params())         -> right
        huge      ok.{}(rows(1e30)).mv(params())        -> NaN
        empty     ok.{}(jnp.zeros((0, 3))).mv(jnp.ones(3))  -> right: not np.any(x)
        empty     ok.{}(()).mv(())                      -> right: x == ()
        shape     ok.{}((jnp.ones((2, 3)), jnp.ones((3, 3)))) \
                  -> ValueError: leading axis
        shape     ok.{}(jnp.ones(()))                   -> ValueError: leading axis
        dtype     ok.{}(jnp.ones((2, 3), int))          -> TypeError: int32
        dtype     ok.{}(jnp.ones((2, 3), "c8"))         -> TypeError: complex64
        tree      ok.{}(rows()).mv(jnp.ones(3))         -> ValueError: structure
        shape     ok.{}(jnp.ones((2, 3))).mv(jnp.ones(2))  -> ValueError: shape (2,)
        dtype     ok.{}(jnp.ones((2, 3))).mv(jnp.ones(3, "f2"))  -> TypeError: float16
    BlockLowRank:
        nan       ok.{}(rows(NAN), 2).mv(params())      -> NaN
        empty     ok.{}(jnp.zeros((2, 0)), 2).mv(jnp.ones(0))  -> right: x.size == 0
        shape     ok.{}(jnp.ones(()), 2)                -> ValueError: leading axis
        option    ok.{}(jnp.ones((2, 3)), 0)            -> ValueError: block_size >= 1
        dtype     ok.{}(jnp.ones((2, 3), int), 2)       -> TypeError: int32
        tree      ok.{}(rows(), 2).mv(jnp.ones(3))      -> ValueError: structure
    Masked:
        nan       ok.{}(diagonal(NAN, 1.0, 1.0), True).mv(jnp.ones(3))  -> NaN
        singular  ok.{}(diagonal(), False).mv(jnp.ones(3))  -> right: not np.any(x)
        tree      ok.{}(ok.LowRank(rows()), {"w": True})  -> ValueError: prefix
        shape     ok.{}(diagonal(), jnp.array([True]))  -> ValueError: shape (1,)
        dtype     ok.{}(diagonal(), 1)                  -> TypeError: booleans
        object    ok.{}(jnp.eye(3), True)               -> TypeError: Lineax operator
    Damped:
        nan       ok.{}(diagonal(NAN, 1.0, 1.0), 1.0).mv(jnp.ones(3))  -> NaN
        option    ok.{}(diagonal(), -1.0)               -> ValueError: damping >= 0
        option    ok.{}(diagonal(), NAN)                -> ValueError: damping >= 0
        shape     ok.{}(diagonal(), jnp.ones(2))        -> ValueError: shape (2,)
        dtype     ok.{}(diagonal(), 1j)                 -> TypeError: damping
        dtype     ok.{}(lx.DiagonalLinearOperator(jnp.ones(2, "c8")), 1.0) \
                  -> TypeError: complex64
        object    ok.{}(jnp.eye(3), 1.0)                -> TypeError: Lineax operator
        object    ok.{}(lx.MatrixLinearOperator(jnp.ones((2, 2))), 1.0) \
                  -> ValueError: symmetric
    SquaredError:
        nan       ok.{}()(jnp.full(2, NAN), jnp.ones(2))  -> NaN
        shape     ok.{}()(jnp.ones(2), jnp.ones(3))     -> ValueError: shape (2,)
        nan       ok.{}()(jnp.ones(2), jnp.array([1.0, NAN]), jnp.array([True, \
                  False]))  -> right: x == 0
        shape     ok.{}()(jnp.ones(2), jnp.ones(2), jnp.ones(3, bool)) \
                  -> ValueError: shape (2,)
        dtype     ok.{}()(jnp.ones(2), jnp.ones(2), jnp.ones(2)) \
                  -> ValueError: booleans
        empty     ok.{}()(jnp.ones(0), jnp.ones(0))     -> right: x == 0
        empty     ok.{}()(jnp.ones(2), jnp.ones(2), jnp.zeros(2, bool)) \
                  -> right: x == 0
    SoftmaxCrossEntropy:
        nan       ok.{}()(jnp.full((2, 3), NAN), jnp.zeros(2, int))  -> NaN
        huge      ok.{}()(jnp.full((2, 3), 1e38), jnp.zeros(2, int)) \
                  -> right: abs(x - np.log(3)) < 1e-6
        shape     ok.{}()(jnp.ones((2, 3)), jnp.zeros(3, int)) \
                  -> ValueError: shape (2,)
        dtype     ok.{}()(jnp.ones((2, 3)), jnp.zeros(2))  -> TypeError: integer
        option    ok.{}()(jnp.ones((2, 3)), jnp.full(2, 7))  -> NaN
        option    ok.{}()(jnp.ones((2, 3)), jnp.full(2, -1))  -> NaN
        empty     ok.{}()(jnp.ones((0, 3)), jnp.zeros(0, int))  -> right: x == 0

    CG Neumann Nystrom GMRES:
        nan       solve("{}", diagonal(), [1.0, NAN, 1.0], 1.0)  -> nonfinite_input
        nan       solve("{}", diagonal(), [1.0, INF, 1.0], 1.0)  -> nonfinite_input
        nan       solve("{}", diagonal(NAN, 1.0, 1.0), [1.0, 1.0, 1.0], 1.0) \
                  -> nonfinite_operator
        zero      solve("{}", diagonal(), [0.0, 0.0, 0.0], 1.0) \
                  -> right: not np.any(x.value)
        huge      solve("{}", diagonal(), [1e38, -1e38, 1e38], 1.0) \
                  -> right: error(x, 1e38) < 1e-4
        tiny      solve("{}", diagonal(), [1e-30, -1e-30, 1e-30], 1.0) \
                  -> right: error(x, 1e-30) < 1e-4
    Nystrom:
        empty     solve("{}", lx.DiagonalLinearOperator(jnp.zeros(0)), jnp.zeros(0)) \
                  -> ValueError: rank=3
    CG Neumann GMRES:
        empty     solve("{}", lx.DiagonalLinearOperator(jnp.zeros(0)), jnp.zeros(0), \
                  1.0)  -> right
    CG Neumann:
        singular  solve("{}", diagonal(-1.0, 1.0, 1.0), [1.0, 1.0, 1.0])  -> indefinite
    CG:
        singular  solve("{}", diagonal(0.0, 1.0, 1.0), [1.0, 1.0, 1.0])  -> indefinite
        option    ok.{}(rtol=0.0)                       -> ValueError: rtol > 0
        option    ok.{}(rtol=NAN)                       -> ValueError: rtol > 0
        option    ok.{}(max_steps=0)                    -> ValueError: max_steps >= 1
        option    ok.invert(hilbert(), ok.{}(max_steps=2)).solve(jnp.ones(9)) \
                  -> max_steps_reached
        singular  ok.invert(hilbert(), ok.{}(rtol=1e-7), \
                  damping=1e-5).solve(jnp.ones(9))  -> inaccurate
        singular  ok.invert(diagonal(), ok.{}(preconditioner=diagonal(-1.0, 1.0, \
                  1.0))).solve(jnp.ones(3))  -> bad_preconditioner
        object    ok.{}(preconditioner=jnp.eye(3))      -> TypeError: Lineax operator
        object    lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(2)), jnp.ones(2), \
                  ok.{}())  -> ValueError: symmetric
        option    lx.linear_solve(diagonal(), jnp.ones(3), ok.{}(), options={"y0": 1}) \
                  -> ValueError: options
    CG Neumann Nystrom (ok.Inverse:
        tree      solve("{}", diagonal(), (1.0,))       -> ValueError: structure
        shape     solve("{}", diagonal(), jnp.ones(2))  -> ValueError: shape (2,)
        dtype     solve("{}", diagonal(), jnp.ones(3, "f2"))  -> TypeError: float16
        dtype     solve("{}", diagonal(), jnp.ones(3, int))  -> TypeError: int32
    Neumann:
        option    ok.{}(0)                              -> ValueError: num_terms >= 1
        option    ok.{}(3, step_size=0.0)               -> ValueError: step_size > 0
        option    ok.{}(3, step_size=NAN)               -> ValueError: step_size > 0
        option    ok.invert(diagonal(), ok.{}(9, step_size=10.0)).solve(jnp.ones(3)) \
                  -> diverging
    Nystrom:
        option    ok.{}(0, key=jr.key(0))               -> ValueError: rank >= 1
        option    ok.invert(diagonal(), ok.{}(4, key=jr.key(0)))  -> ValueError: rank=4
        object    ok.{}(2, key=0)                       -> TypeError: one random key
        singular  solve("{}", diagonal(), [1.0, 1.0, 1.0], 0.0)  -> undamped
        singular  solve("{}", diagonal(-1.0, 1.0, 1.0), [1.0, 1.0, 1.0], 2.0) \
                  -> indefinite
        zero      solve("{}", diagonal(0.0, 0.0, 0.0), [1.0, 1.0, 1.0], 1.0) \
                  -> right: finite(x.value)
        tiny      solve("{}", diagonal(1e-30, 1e-30, 1e-30), [1.0, 1.0, 1.0], 1.0) \
                  -> right: np.allclose(x.value, 1)
        huge      solve("{}", diagonal(1e30, 1.0, 1.0), [1.0, 1.0, 1.0], 1.0) \
                  -> nonfinite_operator
    GMRES:
        singular  gmres([[1.0, 0.0], [0.0, 0.0]], [1.0, 1.0])  -> stalled
        singular  gmres([[1.0, 0.0], [0.0, 0.0]], [1.0, 2e-4])  -> stalled
        singular  solve("{}", diagonal(-1.0, 1.0, 1.0), [1.0, 1.0, 1.0]) \
                  -> right: np.allclose(x.value, [-1, 1, 1])
        option    ok.{}(rtol=-1.0)                      -> ValueError: rtol > 0
        option    ok.{}(restart=0)                      -> ValueError: restart >= 1
        option    ok.{}(max_steps=1.5)                  -> ValueError: max_steps >= 1
        shape     gmres([[1.0, 0.0]], [1.0])            -> ValueError: like it
        option    lx.linear_solve(diagonal(), jnp.ones(3), ok.{}(), options={"y0": 1}) \
                  -> ValueError: options
    Woodbury:
        nan       woodbury(ok.LowRank(rows(NAN)), params())  -> nonfinite_operator
        nan       woodbury(ok.LowRank(rows()), like(NAN))  -> nonfinite_input
        zero      woodbury(ok.LowRank(rows(0.0)), params()) \
                  -> right: np.allclose(x.value["w"], [1, -2])
        zero      woodbury(ok.LowRank(rows()), like(0.0)) \
                  -> right: not np.any(x.value["w"])
        huge      woodbury(ok.LowRank(rows(1e30)), params())  -> nonfinite_operator
        huge      woodbury(ok.LowRank(rows()), like(1e38))  -> singular
        tiny      woodbury(ok.LowRank(rows(1e-30)), params()) \
                  -> right: np.allclose(x.value["w"], [1, -2])
        singular  woodbury(ok.LowRank(rows()), params(), 0.0)  -> undamped
        singular  woodbury(ok.LowRank(rows()), params(), jnp.array(-1.0))  -> undamped
        singular  woodbury(ok.LowRank(rows()), params(), jnp.array(NAN))  -> undamped
        singular  woodbury(ok.BlockLowRank(rows(NAN), 2), params()) \
                  -> nonfinite_operator
        empty     woodbury(ok.LowRank(jnp.zeros((0, 3))), jnp.ones(3)) \
                  -> right: np.allclose(x.value, 1)
        empty     woodbury(ok.LowRank(()), ())          -> right: x.value == ()
        object    woodbury(diagonal(), jnp.ones(3))     -> ValueError: LowRank
    invert:
        nan       ok.{}(ok.LowRank(rows(NAN)), ok.Woodbury(), \
                  damping=1.0).mv(params())  -> nonfinite_operator
        nan       ok.{}(diagonal(NAN, 1.0, 1.0), ok.CG()).mv(jnp.ones(3)) \
                  -> nonfinite_operator
        singular  ok.{}(diagonal(0.0, 1.0, 1.0), ok.CG()).mv(jnp.ones(3))  -> indefinite
        singular  ok.{}(symmetric([[1.0, 1.0], [1.0, 1.0]]), \
                  lx.LU()).mv(jnp.array([1.0, 2.0]))  -> singular
        option    ok.{}(diagonal(), ok.CG(), damping=-1.0)  -> ValueError: damping >= 0
        option    ok.{}(diagonal(), ok.CG(), damping=INF)  -> ValueError: damping >= 0
        object    ok.{}(diagonal(), "cg")               -> TypeError: method
        object    ok.{}(jnp.eye(3), ok.CG())            -> TypeError: Lineax operator
        object    ok.{}(lx.MatrixLinearOperator(jnp.eye(2)), ok.CG()) \
                  -> ValueError: symmetric
        dtype     ok.{}(lx.DiagonalLinearOperator(jnp.ones(2, "c8")), ok.CG()) \
                  -> TypeError: complex64
    Inverse:
        nan       inverse().mv(like(NAN))               -> nonfinite_input
        tree      inverse().mv({"w": jnp.ones(2)})      -> ValueError: structure
        dtype     inverse().mv({"b": jnp.ones(1, "f2"), "w": jnp.ones(2)}) \
                  -> TypeError: float16
        option    inverse().entry(0, 3)                 -> IndexError: 0 <= b < 3
        option    inverse().entry(-1, 0)                -> IndexError: 0 <= a < 3
        dtype     inverse().entry(0.0, 0)               -> TypeError: integers
        option    jax.jit(lambda a: inverse().entry(a, a))(3)        -> NaN
    Inverse (CG):
        missing   ok.invert(diagonal(), ok.CG()).diagonal() \
                  -> NotImplementedError: hutchinson_diag
    solve_rows:
        nan       ok.{}(inverse(ok.LowRank(rows(NAN))), jnp.ones(2)) \
                  -> nonfinite_operator
        nan       ok.{}(inverse(), jnp.full(2, NAN))    -> NaN
        zero      ok.{}(inverse(), jnp.zeros(2))        -> right: not np.any(x["w"])
        singular  ok.{}(inverse(damping=0.0), jnp.ones(2))  -> undamped
        shape     ok.{}(inverse(), jnp.ones(3))         -> ValueError: shape (3,)
        object    ok.{}(ok.invert(diagonal(), ok.CG()), jnp.ones(2)) \
                  -> ValueError: Woodbury
        object    ok.{}(diagonal(), jnp.ones(2))        -> TypeError: ok.invert
    nystrom_preconditioner:
        object    ok.{}(inverse())                      -> ValueError: Nystrom
        object    ok.{}(diagonal())                     -> TypeError: ok.invert
        nan       preconditioner(NAN)                   -> nonfinite_operator
        singular  preconditioner(-9.0)                  -> indefinite
    NystromPreconditioner (ok.nystrom_preconditioner):
        tree      preconditioner().mv(())               -> ValueError: structure
        shape     preconditioner().mv(jnp.ones(2))      -> ValueError: shape (2,)
        dtype     preconditioner().mv(jnp.ones(3, int))  -> TypeError: int32

    influence:
        nan       influence(params=like(NAN))           -> nonfinite_input
        nan       influence(train=batch(3, NAN))        -> NaN
        zero      influence(test=batch(2, 0.0))         -> right
        empty     influence(train=batch(0))             -> ValueError: empty train
        empty     influence(test=batch(0))              -> ValueError: empty test
        shape     influence(train=(jnp.ones((3, 2)), jnp.ones(2))) \
                  -> ValueError: first axis
        tree      influence(params={"w": jnp.ones(2)})  -> ValueError: structure
        dtype     influence(params={"b": jnp.ones(1, int), "w": jnp.ones(2)}) \
                  -> TypeError: int32
        option    influence(chunk=0)                    -> ValueError: chunk >= 1
        function  influence(example_loss=lambda p, e: p["w"]) \
                  -> ValueError: one real scalar
        object    influence(example_loss=3.0)           -> TypeError: function
        object    influence(inverse=jnp.eye(3))         -> TypeError: Lineax operator
        singular  influence(inverse=inverse(damping=0.0))  -> undamped
    obs_saliency:
        nan       ok.{}(like(NAN), inverse())           -> NaN
        nan       ok.{}(params(), inverse(ok.LowRank(rows(NAN))))  -> nonfinite_operator
        zero      ok.{}(like(0.0), inverse())           -> right: not np.any(x["w"])
        tree      ok.{}({"w": jnp.ones(2)}, inverse())  -> ValueError: structure
        dtype     ok.{}(jnp.ones(3, int), ok.invert(diagonal(), ok.CG())) \
                  -> TypeError: int32
        object    ok.{}(params(), jnp.eye(3))           -> TypeError: Lineax operator
        singular  ok.{}(params(), inverse(damping=0.0))  -> undamped
    obs_summed obs_joint:
        nan       ok.{}(like(NAN), inverse(), removed())  -> nonfinite_input
        zero      ok.{}(params(), inverse(), removed(False)) \
                  -> right: np.allclose(x["w"], [1, -2])
        tree      ok.{}(params(), inverse(), {"w": removed()["w"]}) \
                  -> ValueError: boolean array in removed
        shape     ok.{}(params(), inverse(), {"b": jnp.array([True]), \
                  "w": jnp.ones(3, bool)})  -> ValueError: (3,)
        dtype     ok.{}(params(), inverse(), like(1.0))  -> TypeError: boolean
        object    ok.{}(params(), jnp.eye(3), removed())  -> TypeError: Lineax operator
    obs_prune:
        nan       prune(params=like(NAN))               -> RuntimeError: NaN or infinite
        nan       prune(inverse=inverse(ok.LowRank(rows(NAN))))  -> nonfinite_operator
        option    prune(sparsity=1.0)                   -> ValueError: sparsity
        option    prune(sparsity=NAN)                   -> ValueError: sparsity
        option    prune(sparsity=-0.1)                  -> ValueError: sparsity
        tree      prune(params={"w": jnp.ones(2)})      -> ValueError: structure
        tree      prune(mask={"w": True})               -> ValueError: prefix
        shape     prune(kept={"b": True, "w": True})    -> ValueError: kept
        object    prune(inverse=jnp.eye(3))             -> TypeError: Lineax operator
        object    prune(update="joint")                 -> TypeError: function
    obs_prune_gradually:
        option    gradually(sparsity=1.0)               -> ValueError: sparsity
        option    gradually(num_rounds=0)               -> ValueError: num_rounds >= 1
        object    gradually(make_inverse=inverse())     -> TypeError: function
        dtype     gradually(kept=like(1.0))             -> ValueError: boolean
        zero      gradually(kept=jax.tree.map(jnp.zeros_like, removed())).params \
                  -> right: not np.any(x["w"])
    obs_prune_gradually (ok.obs_prune):
        nan       gradually(params=like(NAN))           -> RuntimeError: NaN or infinite
    """,
)
