"""Loss heads: the convex function between a model's outputs and the scalar loss.

A head provides what the Gauss-Newton matrix JᵀHJ needs: the product with its Hessian H
at the outputs, and random vectors w with E[w wᵀ] = H. Both are in closed form, and
include the loss's mean over examples.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._types import wide_dtype

_SHAPES = "Reshape: shapes are not broadcast."


class AbstractHead(eqx.Module):
    """A convex loss of a model's outputs: head(outputs, *targets) -> scalar."""

    @abc.abstractmethod
    def __call__(self, outputs: PyTree, *targets: PyTree) -> Float[Array, ""]:
        """The mean loss over the examples."""

    @abc.abstractmethod
    def hvp(self, outputs: PyTree, vector: PyTree, *targets: PyTree) -> PyTree:
        """H v, with H the Hessian at the outputs, and v a pytree like the outputs."""


class AbstractLikelihoodHead(AbstractHead):
    """A head that is the mean negative log-likelihood of independent targets."""

    @abc.abstractmethod
    def sample(self, outputs: Array, *targets: PyTree, key: Array) -> Array:
        """A random w like the outputs with E[w] = 0 and E[w wᵀ] = H.

        It reads the mask among the targets, if any, but not their values.
        """

    @abc.abstractmethod
    def num_terms(self, outputs: Array, *targets: PyTree) -> Float[Array, ""]:
        """B, the number of targets that the mean is over."""


class SquaredError(AbstractLikelihoodHead):
    """Half the squared error, averaged over the first axis only.

        1/B Σ_b ½ ‖z_b - y_b‖²        H = I / B

    B is the length of the first axis of the outputs z. The squares of one example are
    summed; for a mean over output columns, divide by their number. With `where`, a
    boolean for each b, the mean is over the true ones only, and B is their number.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> ok.SquaredError()(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
        Array(1.25, dtype=float32)
    """

    def __call__(
        self, outputs: Array, targets: Array, where: Array | None = None
    ) -> Float[Array, ""]:
        """The mean over b of half the squared norm of the error."""
        Check("ok.SquaredError").shapes(_SHAPES, targets=(targets, outputs.shape))
        weight = self._weight(outputs, where)
        error = outputs.astype(weight.dtype) - targets.astype(weight.dtype)
        return 0.5 * jnp.sum(weight * _kept(error, weight, where) ** 2)

    def hvp(
        self, outputs: Array, vector: Array, targets: Any = None, where: Any = None
    ) -> Array:
        """v / B."""
        del targets
        weight = self._weight(outputs, where)
        return (weight * vector.astype(weight.dtype)).astype(vector.dtype)

    def sample(
        self, outputs: Array, targets: Any = None, where: Any = None, *, key: Array
    ) -> Array:
        """Random signs over √B, the choice of w with the least variance."""
        del targets
        weight = self._weight(outputs, where)
        z = jr.rademacher(key, outputs.shape, weight.dtype)
        return (jnp.sqrt(weight) * z).astype(outputs.dtype)

    def num_terms(
        self, outputs: Array, targets: Any = None, where: Any = None
    ) -> Float[Array, ""]:
        """The length of the first axis, or the number of true entries of `where`."""
        del targets
        return 1 / jnp.max(self._weight(outputs, where))

    def _weight(self, outputs: Array, where: Any) -> Array:
        return _weight(Check("ok.SquaredError"), outputs, outputs.ndim - 1, where)


class SoftmaxCrossEntropy(AbstractLikelihoodHead):
    """Cross-entropy of logits with integer labels, averaged over all leading axes.

        1/B Σ_b (logsumexp z_b - z_b[y_b])        H_b = (diag(p_b) - p_b p_bᵀ) / B

    p = softmax(z) along the last axis of the logits z. B is the number of labels:
    examples, or tokens in all sequences. With `where`, a boolean for each label, the
    mean is over the true ones only, and B is their number (at least 1). A label among
    them that is not a class, such as -1, makes the loss and its gradient NaN.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> ok.SoftmaxCrossEntropy()(jnp.zeros((3, 4)), jnp.array([0, 1, 2]))
        Array(1.3862944, dtype=float32)
    """

    def __call__(
        self, outputs: Array, labels: Array, where: Array | None = None
    ) -> Float[Array, ""]:
        """The mean over b of the negative log-probability of label b."""
        check = Check("ok.SoftmaxCrossEntropy")
        check.shapes(_SHAPES, labels=(labels, outputs.shape[:-1]))
        text = f"needs integer labels, got {jnp.result_type(labels)}. Cast them."
        is_integer = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
        check.that(is_integer, text, TypeError)
        weight, logits = self._prepared(outputs, where)
        labels = _kept(labels, weight[..., 0], where)
        # An index of -1 would count from the end.
        is_class = (labels >= 0) & (labels < outputs.shape[-1])
        labels = jnp.where(is_class, labels, 0)
        log_p = jax.nn.log_softmax(logits)
        taken = jnp.take_along_axis(log_p, labels[..., None], axis=-1)
        shown = jnp.where(is_class, 1, jnp.nan).astype(taken.dtype)
        return -jnp.sum(weight * taken * shown[..., None])

    def hvp(
        self, outputs: Array, vector: Array, labels: Any = None, where: Any = None
    ) -> Array:
        """(p ∘ v - p pᵀv) / B."""
        del labels
        weight, logits = self._prepared(outputs, where)
        p = jax.nn.softmax(logits)
        pv = p * vector.astype(weight.dtype)
        product = weight * (pv - p * jnp.sum(pv, axis=-1, keepdims=True))
        return product.astype(vector.dtype)

    def sample(
        self, outputs: Array, labels: Any = None, where: Any = None, *, key: Array
    ) -> Array:
        """(p - onehot(ŷ)) / √B with each label ŷ drawn from p."""
        del labels
        weight, logits = self._prepared(outputs, where)
        drawn = jr.categorical(key, logits)
        onehot = jax.nn.one_hot(drawn, logits.shape[-1], dtype=weight.dtype)
        score = jnp.sqrt(weight) * (jax.nn.softmax(logits) - onehot)
        return score.astype(outputs.dtype)

    def num_terms(
        self, outputs: Array, labels: Any = None, where: Any = None
    ) -> Float[Array, ""]:
        """The number of labels, or of true entries of `where`."""
        del labels
        return 1 / jnp.max(_weight(Check("ok.SoftmaxCrossEntropy"), outputs, 1, where))

    def _prepared(self, outputs: Array, where: Any) -> tuple[Array, Array]:
        """Returns 1/B for each label, and the logits in the same dtype."""
        weight = _weight(Check("ok.SoftmaxCrossEntropy"), outputs, 1, where)
        return weight, _kept(outputs.astype(weight.dtype), weight, where)


class Convex(AbstractHead):
    """Any convex function loss_fn(outputs, *targets), by automatic differentiation."""

    loss_fn: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, outputs: PyTree, *targets: PyTree) -> Float[Array, ""]:
        """loss_fn(outputs, *targets)."""
        return Check("ok.gauss_newton").scalar(self.loss_fn)(outputs, *targets)

    def hvp(self, outputs: PyTree, vector: PyTree, *targets: PyTree) -> PyTree:
        """The derivative of the gradient along v."""
        grad = jax.grad(lambda z: self(z, *targets))
        return jax.jvp(grad, (outputs,), (vector,))[1]


def _weight(check: Check, outputs: Array, num_kept: int, where: Any) -> Array:
    """1/B for each term of the mean, followed by `num_kept` axes of length one."""
    shape = outputs.shape[: outputs.ndim - num_kept]
    dtype = wide_dtype(outputs)
    if where is None:
        count = max(1, math.prod(shape))
        return jnp.full([1] * outputs.ndim, 1.0 / count, dtype)
    where = jnp.asarray(where)
    got = f"{where.dtype} of shape {where.shape}"
    text = f"needs a `where` of booleans of shape {shape}, got {got}."
    check.that(where.shape == shape and where.dtype == bool, text)
    kept = where.reshape(*shape, *[1] * num_kept)
    return kept.astype(dtype) / jnp.maximum(jnp.sum(kept), 1).astype(dtype)


def _kept(x: Array, weight: Array, where: Any) -> Array:
    """x, but 0 where the weight is 0: entries left out may be NaN, or a label -100."""
    return x if where is None else jnp.where(weight > 0, x, 0)
