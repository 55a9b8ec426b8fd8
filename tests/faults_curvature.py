"""Faults of curvatures, and of what is estimated of them."""

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
from fault_outcomes import INF, NAN, Raises, Right, Shows, all_zero
from faulty import Fault, Kind, Row, named

import optkit as ok


def params() -> dict[str, Any]:
    """Three entries in two leaves."""
    return {"b": jnp.array([0.5]), "w": jnp.array([1.0, -2.0])}


def like(number: float) -> Any:
    """Params of one number."""
    return jax.tree.map(lambda x: 0 * x + number, params())


def cast(tree: Any, dtype: Any) -> Any:
    """A tree in one dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def loss(p: Any) -> jax.Array:
    """A quartic, convex."""
    return sum(jnp.sum(x**2 + 0.1 * x**4) for x in jax.tree.leaves(p)) * 1.0


def model(p: Any, x: Any) -> jax.Array:
    """Two outputs for each example."""
    if not p:
        return 0 * x
    return x @ jnp.stack([p["w"], p["w"] ** 2], axis=1) + p["b"]


def example_loss(p: Any, example: Any) -> jax.Array:
    """Of one example."""
    x, y = example
    return 0.5 * jnp.sum((model(p, x[None])[0] - y) ** 2)


def batch(size: int = 3, number: float = 1.0) -> Any:
    """Inputs and targets."""
    x = jnp.full((size, 2), number) * jnp.arange(1.0, size + 1)[:, None]
    return x, jnp.ones(size)


def diagonal(*entries: float) -> Any:
    """A symmetric operator on a vector of three."""
    return lx.DiagonalLinearOperator(jnp.array(entries or (1.0, 2.0, 3.0)))


def rows(p: Any) -> Any:
    """Two rows of the shapes of the params."""
    return jax.tree.map(lambda x: jnp.stack([x, 2 * x]), p)


@dataclass(frozen=True, kw_only=True)
class Curvature(Row):
    """`make(p, ...)` is the operator C at p, or made of rows or entries like p."""

    def with_option(self, name: str, value: Any) -> Any:
        """A product with another value of an option."""
        return self.make(params(), **{name: value}).mv(params())

    def at(self, p: Any, v: Any = None) -> Any:
        """The product C v."""
        return self.make(p).mv(params() if v is None else v)


@dataclass(frozen=True, kw_only=True)
class Product(Row):
    """`make(p, v, ...)` is the product itself."""

    def with_option(self, name: str, value: Any) -> Any:
        """A product with another value of an option."""
        return self.make(params(), params(), **{name: value})

    def at(self, p: Any, v: Any = None) -> Any:
        """The product C v."""
        return self.make(p, params() if v is None else v)


# fmt: off
OF_VECTORS = [
    Fault("tree", "a vector that lacks a leaf", Raises(ValueError, "structure"),
        lambda C: C.at(params(), {"w": jnp.ones(2)})),
    Fault("shape", "a vector of another shape", Raises(ValueError, "(3,)"),
        lambda C: C.at(params(), {"b": jnp.ones(1), "w": jnp.ones(3)})),
    Fault("dtype", "a vector in float16", Raises(TypeError, "float16"),
        lambda C: C.at(params(), cast(params(), "f2"))),
]
OF_CURVATURES = [
    Fault("nan", "params of NaN", Shows(), lambda C: C.at(like(NAN))),
    Fault("nan", "an infinite vector", Shows(), lambda C: C.at(params(), like(INF))),
    Fault("zero", "params of 0", Right(), lambda C: C.at(like(0.0))),
    Fault("zero", "a vector of 0", Right(all_zero),
        lambda C: C.at(params(), like(0.0))),
    Fault("huge", "params of 1e30", Shows(), lambda C: C.at(like(1e30))),
    Fault("tiny", "params of 1e-30", Right(), lambda C: C.at(like(1e-30))),
    Fault("empty", "no params", Right(lambda x: x == ()), lambda C: C.at((), ())),
    *OF_VECTORS,
    Fault("dtype", "integer params", Raises(TypeError, "int32"),
        lambda C: C.at(cast(params(), int))),
    Fault("dtype", "complex params", Raises(TypeError, "complex64"),
        lambda C: C.at(cast(params(), "c8"), cast(params(), "c8"))),
]
# fmt: on


def of_loss(name: str) -> list[Fault]:
    """What the loss, an argument of this name, must not return."""

    def fault(returned: str, loss: Any, error: Any, match: str) -> Fault:
        what = f"a loss that returns {returned}"
        end = Raises(error, match)
        return Fault("function", what, end, lambda C: C.with_option(name, loss))

    def array(p: Any, *_: Any) -> Any:
        return jax.tree.leaves(p)[-1]

    return [
        fault("an array", array, ValueError, "one real scalar"),
        fault("a tuple", lambda p, *_: (1.0, 2.0), ValueError, "one real scalar"),
        fault("an integer", lambda p, *_: jnp.argmax(array(p)), TypeError, "int32"),
    ]


# fmt: off
NO_DIAGONAL = Fault("missing", "a diagonal that is not known",
    Raises(NotImplementedError, "hutchinson_diag"),
    lambda C: C.make(params()).diagonal())
# fmt: on


def gauss_newton(
    p: Any, model_fn: Any = model, loss_fn: Any = None, inputs: Any = None
) -> Any:
    """Of the squared error of the model."""
    loss_fn = ok.SquaredError() if loss_fn is None else loss_fn
    inputs = batch()[0] if inputs is None else inputs
    return ok.gauss_newton(model_fn, loss_fn, p, inputs)


def fisher(
    p: Any, example_loss: Any = example_loss, data: Any = None, **options: Any
) -> Any:
    """Of three examples."""
    data = batch() if data is None else data
    return ok.empirical_fisher(example_loss, p, data, **options)


def masked(p: Any, operator: Any = None, mask: Any = True) -> Any:
    """Of a diagonal."""
    operator = lx.DiagonalLinearOperator(p) if operator is None else operator
    return ok.Masked(operator, mask)


def damped(p: Any, operator: Any = None, damping: Any = 1.0) -> Any:
    """Of a diagonal."""
    operator = lx.DiagonalLinearOperator(p) if operator is None else operator
    return ok.Damped(operator, damping)


# Of a diagonal, which Lineax takes to be floating.
LINEAR = {"params of 1e30": Right(), "integer params": Right()}
# fmt: off
CURVATURES = Kind("Curvatures", OF_CURVATURES, [
    Product("hvp", lambda p, v, loss=loss: ok.hvp(loss, p, v), {"loss": opt.FUNCTION},
        faults=of_loss("loss")),
    Product("value_grad_and_hvp",
        lambda p, v, loss=loss: ok.value_grad_and_hvp(loss)(p, v)[2],
        {"loss": opt.FUNCTION}, faults=of_loss("loss")),
    Curvature("hessian", lambda p, loss=loss: ok.hessian(loss, p),
        {"loss": opt.FUNCTION}, faults=[*of_loss("loss"), NO_DIAGONAL]),
    Curvature("gauss_newton", gauss_newton,
        {"model_fn": opt.FUNCTION, "loss_fn": opt.FUNCTION}, faults=[
        *of_loss("loss_fn"),
        NO_DIAGONAL,
        Fault("nan", "inputs of NaN", Shows(),
            lambda C: C.with_option("inputs", jnp.full((3, 2), NAN))),
        Fault("empty", "no examples", Right(all_zero),
            lambda C: C.with_option("inputs", jnp.ones((0, 2)))),
    ]),
    Curvature("empirical_fisher", fisher,
        {"example_loss": opt.FUNCTION, "chunk": opt.COUNT},
        differs=named("ok.LowRank", OF_VECTORS), faults=[
        *of_loss("example_loss"),
        Fault("nan", "inputs of NaN", Shows(),
            lambda C: C.with_option("data", batch(3, NAN))),
        Fault("zero", "gradients of 0", Right(all_zero),
            lambda C: C.with_option("example_loss", lambda p, _: 0.0 * loss(p))),
        Fault("empty", "no examples", Raises(ValueError, "batch"),
            lambda C: C.with_option("data", batch(0))),
        Fault("shape", "inputs and targets of two lengths",
            Raises(ValueError, "first axis"),
            lambda C: C.with_option("data", (jnp.ones((3, 2)), jnp.ones(2)))),
        Fault("shape", "a batch without axes", Raises(ValueError, "first axis"),
            lambda C: C.with_option("data", 1.0)),
    ]),
    Curvature("LowRank", lambda p: ok.LowRank(rows(p)), faults=[
        Fault("empty", "no rows", Right(all_zero),
            lambda _: ok.LowRank(jnp.zeros((0, 3))).mv(jnp.ones(3))),
        Fault("shape", "leaves of two numbers of rows",
            Raises(ValueError, "leading axis"),
            lambda _: ok.LowRank((jnp.ones((2, 3)), jnp.ones((3, 3))))),
        Fault("shape", "rows without an axis", Raises(ValueError, "leading axis"),
            lambda _: ok.LowRank(jnp.ones(()))),
    ]),
    Curvature("BlockLowRank",
        lambda p, block_size=2: ok.BlockLowRank(rows(p), block_size),
        {"block_size": opt.COUNT}, faults=[
        Fault("empty", "rows without entries", Right(lambda x: x.size == 0),
            lambda _: ok.BlockLowRank(jnp.zeros((2, 0)), 2).mv(jnp.ones(0))),
        Fault("shape", "rows without an axis", Raises(ValueError, "leading axis"),
            lambda _: ok.BlockLowRank(jnp.ones(()), 2)),
    ]),
    Curvature("Masked", masked, {"operator": opt.OPERATOR}, differs=LINEAR, faults=[
        Fault("singular", "a mask that hides all", Right(all_zero),
            lambda C: C.with_option("mask", False)),
        Fault("tree", "a mask of another structure", Raises(ValueError, "prefix"),
            lambda C: C.with_option("mask", {"w": True})),
        Fault("shape", "a mask of another shape", Raises(ValueError, "(3,)"),
            lambda C: C.with_option("mask", {"b": True, "w": jnp.ones(3, bool)})),
        Fault("dtype", "a mask of integers", Raises(TypeError, "booleans"),
            lambda C: C.with_option("mask", 1)),
    ]),
    Curvature("Damped", damped, {"operator": opt.OPERATOR, "damping": opt.NON_NEGATIVE},
        differs=LINEAR, faults=[
        Fault("shape", "two dampings", Raises(ValueError, "(2,)"),
            lambda C: C.with_option("damping", jnp.ones(2))),
        Fault("dtype", "a complex damping", Raises(TypeError, "damping"),
            lambda C: C.with_option("damping", 1j)),
    ]),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Head(Row):
    """The loss of a model's outputs."""

    targets: Callable[[int], Any]  # for this number of examples

    def at(
        self,
        outputs: float = 1.0,
        size: int = 2,
        targets: Any = None,
        where: Any = None,
    ) -> Any:
        """The loss where all outputs but the last are this number."""
        z = jnp.full((size, 3), outputs)
        targets = self.targets(size) if targets is None else targets
        return self.make()(z, targets, *([] if where is None else [where]))


def only_first() -> Any:
    """The first of two examples, as booleans."""
    return jnp.array([True, False])


def hidden_nan(head: Head) -> Any:
    """Of two examples, of which the second is NaN, and left out."""
    z = jnp.array([[0.0, 0.0, 0.0], [NAN, 0.0, 0.0]])
    return head.make()(z, head.targets(2), only_first())


# fmt: off
HEADS = Kind("Losses of a model's outputs", [
    Fault("nan", "outputs of NaN", Shows(), lambda head: head.at(NAN)),
    Fault("nan", "NaN that `where` leaves out", Right(), hidden_nan),
    Fault("huge", "outputs of 1e38", Right(), lambda head: head.at(1e38)),
    Fault("empty", "no examples", Right(all_zero), lambda head: head.at(size=0)),
    Fault("empty", "a `where` that leaves out all", Right(all_zero),
        lambda head: head.at(where=jnp.zeros(2, bool))),
    Fault("shape", "targets of another length", Raises(ValueError, "shape"),
        lambda head: head.at(targets=head.targets(3))),
    Fault("shape", "a `where` of another length", Raises(ValueError, "(2,)"),
        lambda head: head.at(where=jnp.ones(3, bool))),
    Fault("dtype", "a `where` of numbers", Raises(ValueError, "booleans"),
        lambda head: head.at(where=jnp.ones(2))),
], [
    Head("SquaredError", ok.SquaredError, targets=lambda size: jnp.ones((size, 3)),
        differs={"outputs of 1e38": Shows()}, faults=[
        Fault("nan", "targets of NaN that `where` leaves out", Right(all_zero),
            lambda head: head.make()(jnp.ones((2, 1)), jnp.array([[1.0], [NAN]]),
                only_first())),
    ]),
    Head("SoftmaxCrossEntropy", ok.SoftmaxCrossEntropy,
        targets=lambda size: jnp.zeros(size, int),
        differs={"outputs of 1e38": Right(lambda x: abs(x - np.log(3)) < 1e-6)},
        faults=[
        Fault("dtype", "labels that are not integers", Raises(TypeError, "integer"),
            lambda head: head.at(targets=jnp.zeros(2))),
        Fault("option", "a label of no class", Shows(),
            lambda head: head.at(targets=jnp.full(2, 7))),
        Fault("option", "a negative label", Shows(),
            lambda head: head.at(targets=jnp.full(2, -1))),
    ]),
])
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Estimator(Row):
    """`make(operator, ...)` is an estimate of an operator."""

    def with_option(self, name: str, value: Any) -> Any:
        """The estimate with another value of an option."""
        return self.make(**{"operator": diagonal(), name: value})

    def of(self, number: float) -> Any:
        """The estimate of a multiple of the identity."""
        return self.make(diagonal(number, number, number))


def tagged(method: Any) -> Any:
    """The method, on operators with the tag that it needs."""

    def make(operator: Any, **options: Any) -> Any:
        is_linear = isinstance(operator, lx.AbstractLinearOperator)
        is_one = is_linear and lx.is_symmetric(operator)
        tag = lx.positive_semidefinite_tag
        given = lx.TaggedLinearOperator(operator, tag) if is_one else operator
        return method(given, **options)

    return make


PROBES = {"key": opt.KEY, "num_probes": opt.COUNT}
# fmt: off
TOO_MANY = Fault("option", "more probes than params",
    Raises(ValueError, "num_probes=4"), lambda f: f.with_option("num_probes", 4))
ESTIMATORS = Kind("Estimators of an operator", [
    Fault("nan", "an operator of NaN", Shows(),
        lambda f: f.make(diagonal(NAN, 1.0, 1.0))),
    Fault("zero", "an operator of 0", Right(all_zero), lambda f: f.of(0.0)),
    Fault("huge", "an operator of 3e38", Right(), lambda f: f.of(3e38)),
    Fault("tiny", "an operator of 1e-30", Right(), lambda f: f.of(1e-30)),
], [
    Estimator("hutchinson_diag",
        partial(ok.hutchinson_diag, key=jr.key(0), num_probes=2),
        PROBES | {"operator": opt.OPERATOR}),
    Estimator("hutchinson_trace",
        partial(ok.hutchinson_trace, key=jr.key(0), num_probes=2),
        PROBES | {"operator": opt.OPERATOR}, differs={"an operator of 3e38": Shows()}),
    Estimator("xtrace", partial(ok.xtrace, key=jr.key(0), num_probes=2),
        PROBES | {"operator": opt.OPERATOR}, differs={"an operator of 3e38": Shows()},
        faults=[TOO_MANY]),
    Estimator("xdiag", partial(ok.xdiag, key=jr.key(0), num_probes=2),
        PROBES | {"operator": opt.OPERATOR}, differs={"an operator of 3e38": Shows()},
        faults=[TOO_MANY]),
    Estimator("xnystrace", tagged(partial(ok.xnystrace, key=jr.key(0), num_probes=2)),
        PROBES | {"operator": opt.OPERATOR}, differs={"an operator of 3e38": Shows()},
        faults=[TOO_MANY, Fault("object", "an operator that may be indefinite",
            Raises(ValueError, "ok.xtrace"),
            lambda f: ok.xnystrace(diagonal(), key=jr.key(0), num_probes=2))]),
    Estimator("spectrum",
        partial(ok.spectrum, key=jr.key(0), num_probes=1, num_steps=2),
        PROBES | {"operator": opt.OPERATOR, "num_steps": opt.COUNT,
            "num_vectors": opt.COUNT},
        differs={"an operator of 0": Right(lambda s: np.allclose(s.nodes, 0)),
            "an operator of 3e38": Shows()}, covers=("Spectrum",), faults=[
        Fault("nan", "the mean of a spectrum of NaN", Shows(),
            lambda f: f.make(diagonal(NAN, 1.0, 1.0)).mean(jnp.square)),
        Fault("option", "more steps than params", Raises(ValueError, "num_steps=4"),
            lambda f: f.with_option("num_steps", 4)),
    ]),
])
# fmt: on


def diag_of_loss(p: Any, loss: Any = loss, **options: Any) -> Any:
    """Value, gradient and Hessian diagonal."""
    return ok.value_grad_and_diag(loss)(p, **({"key": jr.key(0)} | options))


def diag_of_model(
    p: Any,
    model_fn: Any = model,
    head: Any = None,
    size: int = 3,
    targets: Any = None,
    **options: Any,
) -> Any:
    """Value, gradient and Gauss-Newton diagonal."""
    head = ok.SquaredError() if head is None else head
    x, y = batch(size)[0], jnp.ones((size, 2))
    f = ok.value_grad_and_gauss_newton_diag(model_fn, head)
    return f(p, x, y if targets is None else targets, **({"key": jr.key(0)} | options))


@dataclass(frozen=True, kw_only=True)
class Diagonal(Row):
    """`make(p, ...)` is the value, the gradient and the diagonal at p."""

    def with_option(self, name: str, value: Any) -> Any:
        """The same with another value of an option."""
        return self.make(params(), **{name: value})


# fmt: off
DIAGONALS = Kind("Gradient and curvature diagonal in one pass", [
    Fault("nan", "params of NaN", Shows(), lambda f: f.make(like(NAN))),
    Fault("huge", "params of 1e30", Shows(), lambda f: f.make(like(1e30))),
    Fault("tiny", "params of 1e-30", Right(), lambda f: f.make(like(1e-30))),
    Fault("empty", "no params", Right(lambda x: x[2] == ()), lambda f: f.make(())),
    Fault("dtype", "integer params", Raises(TypeError, "int32"),
        lambda f: f.make(cast(params(), int))),
    Fault("dtype", "complex params", Raises(TypeError, "complex64"),
        lambda f: f.make(cast(params(), "c8"))),
], [
    Diagonal("value_grad_and_diag", diag_of_loss, {"loss": opt.FUNCTION} | PROBES,
        faults=of_loss("loss")),
    Diagonal("value_grad_and_gauss_newton_diag", diag_of_model,
        {"model_fn": opt.FUNCTION} | PROBES, faults=[
        Fault("empty", "no examples", Right(), lambda f: f.with_option("size", 0)),
        Fault("object", "a function as head", Raises(TypeError, "head"),
            lambda f: f.with_option("head", loss)),
        Fault("shape", "targets of another shape",
            Raises(ValueError, "(3, 2)", call="ok.SquaredError"),
            lambda f: f.with_option("targets", jnp.ones(3))),
    ]),
])
# fmt: on

KINDS = [CURVATURES, HEADS, ESTIMATORS, DIAGONALS]
