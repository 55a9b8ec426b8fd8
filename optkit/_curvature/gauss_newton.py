"""The generalised Gauss-Newton matrix as an operator.

A product with C = JᵀHJ applies the Jacobian J of the model, then the Hessian H of the
loss at the outputs, then Jᵀ. It holds the outputs z and Jv for all examples at once, or
for one chunk k at a time:

    C v = Σ_k B_k J_kᵀH_kJ_k v / Σ_k B_k        B_k the examples that H_k is a mean over
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._linearize import linearize
from .._types import Params
from .._vector import axpy, cast_like, structure_of, widen, zeros_like
from .base import AbstractCurvature, unknown_diagonal
from .head import AbstractHead, AbstractLikelihoodHead, Convex
from .linearised import linearised

_ADVICE = "`ok.empirical_fisher` needs only gradients."


class GaussNewton(AbstractCurvature):
    """JᵀHJ at the params. Made by `ok.gauss_newton`."""

    model_fn: Callable[..., Any] = eqx.field(static=True)
    head: AbstractHead
    params: Params
    inputs: PyTree
    targets: tuple[PyTree, ...]
    chunk: int | None = eqx.field(static=True, default=None)
    maker: ClassVar[str] = "ok.gauss_newton"
    is_psd: ClassVar[bool] = True  # the head is convex

    def product(self, vector: Params) -> Params:
        """JᵀHJv."""
        data = self.inputs, *self.targets
        if self.chunk is None:
            return self._product(vector, data)[0]
        num_chunks = jax.tree.leaves(data)[0].shape[0] // self.chunk

        # A chunk is of equally spaced examples, so that it lies on all devices.
        def part(leaf: Any, i: Array) -> Array:
            rest = jnp.shape(leaf)[1:]
            return jnp.reshape(leaf, (self.chunk, num_chunks, *rest))[:, i]

        def add(carry: Any, i: Array) -> Any:
            total, count = carry
            product, b = self._product(
                vector, jax.tree.map(lambda leaf: part(leaf, i), data)
            )
            return (axpy(b, product, total), count + b), None

        first = zeros_like(widen(vector)), jnp.zeros((), jnp.float32)
        steps = jnp.arange(num_chunks, dtype=jnp.int32)
        (total, count), _ = lax.scan(add, first, steps)
        mean = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), total)
        return cast_like(mean, vector)

    def _product(self, vector: Params, data: tuple[PyTree, ...]) -> tuple[Params, Any]:
        """JᵀHJv over some examples, and the number that H is a mean over."""
        inputs, *targets = data

        def model(params: Params) -> PyTree:
            return self.model_fn(params, inputs)

        check = Check(self.maker)
        outputs, jacobian = linearize(check, model, self.params, advice=_ADVICE)
        w = self.head.hvp(outputs, jacobian(vector), *targets)
        product = jax.linear_transpose(jacobian, self.params)(w)[0]
        count = jnp.ones((), jnp.float32)
        if isinstance(self.head, AbstractLikelihoodHead):
            count = self.head.num_terms(outputs, *targets).astype(jnp.float32)
            count = jnp.where(jnp.isfinite(count), count, 0)  # none are left
        return product, count

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.params)

    def diagonal(self) -> Params:
        """Not known, so it raises a `NotImplementedError`."""
        raise unknown_diagonal("`C = ok.gauss_newton(...)`", "C")


def gauss_newton(
    model_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    params: Params,
    inputs: PyTree,
    *targets: PyTree,
    chunk: int | None = None,
) -> GaussNewton:
    """Returns the generalised Gauss-Newton matrix of a loss of a model's outputs.

    C = JᵀHJ, with J the Jacobian of the outputs z = model_fn(params, inputs) in the
    params, and H the Hessian of loss_fn(z, *targets) in z. It is the Hessian of the
    loss without the curvature of the model, and it is positive semidefinite if loss_fn
    is convex. Only loss_fn averages over examples.

    Args:
        model_fn: model_fn(params, inputs) -> outputs, a pytree of real arrays.
        loss_fn: a convex loss_fn(outputs, *targets) -> a real scalar. JAX
            differentiates it twice, except that `ok.SquaredError()` and
            `ok.SoftmaxCrossEntropy()` have H in closed form.
        params: real floating leaves.
        inputs: the model's second argument; a pytree if it needs several.
        *targets: further arguments of loss_fn. Optional for the two heads above, whose
            H does not depend on them.
        chunk: for how many examples to hold the model's outputs at a time; default all.
            It must divide the number of examples, which is the length of the first axis
            of all inputs and targets. The model must treat them independently, and
            loss_fn must be a mean over them. Chunks do not change the product.

    Returns:
        A positive semidefinite curvature. A product costs about two gradients;
        `lx.linearise(C)` keeps the model's pass for further products, unless C is
        chunked.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> def model(w, x):
        ...     return x @ w
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> ok.gauss_newton(model, ok.SquaredError(), jnp.zeros(2), x).as_matrix()
        Array([[ 5.,  7.],
               [ 7., 10.]], dtype=float32)

    Reference:
        Schraudolph 2002, Fast curvature matrix-vector products, section 3.
    """
    check = Check("ok.gauss_newton")
    check.function(model_fn=model_fn, loss_fn=loss_fn)
    check.real(params=params)
    check.optional.count(chunk=chunk)
    if chunk is not None:
        check.batch(data=(inputs, *targets))
        n = jax.tree.leaves((inputs, *targets))[0].shape[0]
        text = f"needs a chunk that divides the number of examples, {n}, got {chunk}."
        check.that(n % chunk == 0, text)
    head = loss_fn if isinstance(loss_fn, AbstractHead) else Convex(loss_fn)
    return GaussNewton(model_fn, head, params, inputs, targets, chunk)


@lx.linearise.register(GaussNewton)
def _(operator: GaussNewton) -> lx.AbstractLinearOperator:
    # The model's pass over all chunks would need the memory that chunks save.
    return operator if operator.chunk else linearised(operator, operator.params)
