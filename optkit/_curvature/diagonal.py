"""Estimates of the diagonal by random probes or by sampled labels.

For random signs z, E[z ∘ Hz] = diag H. One probe costs one Hessian-vector product, and
the same pass yields the loss and its gradient. For a Gauss-Newton matrix, the squared
gradient at labels sampled from the model needs no second derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._check import Check
from .._linearize import forward_mode
from .._types import Params, wide_dtype
from .._vector import dot, multiply, scale, signs
from .estimate import Estimate, average, over_probes
from .head import AbstractLikelihoodHead

ValueGradDiag = tuple[Any, Params, Params]


def value_grad_and_diag(
    loss: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., ValueGradDiag]:
    """Makes a function that returns loss, gradient and an estimated Hessian diagonal.

    With random signs z, one forward-over-reverse pass gives all three:

        (loss, g), Hz = jvp(value_and_grad(loss))(params; z)        diag ≈ z ∘ Hz

    The estimate is unbiased and signed. Entry i has variance Σ_{j≠i} H_ij², divided
    by the number of probes. Average before you take absolute values or squares, which
    would otherwise be biased upward. All probes share one pass through the loss.

    Args:
        loss: loss(params, *args) -> a real scalar.
        has_aux: whether it returns a pair (scalar, aux), as in `jax.value_and_grad`.
            The new function then returns this pair in place of the value.

    Returns:
        A function (params, *args, key=, num_probes=1) -> (value, gradient, diagonal).
        The diagonal is a pytree like the params. Across devices, average it where you
        average the gradient.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> f = ok.value_grad_and_diag(lambda x: jnp.sum(x**3))
        >>> value, grad, diag = f(jnp.array([1.0, 2.0]), key=jax.random.key(0))
        >>> print(value, grad, diag)
        9.0 [ 3. 12.] [ 6. 12.]

    Reference:
        Bekas, Kokiopoulou and Saad 2007, An estimator for the diagonal of a matrix.
    """
    check = Check("ok.value_grad_and_diag")
    value_fn = check.scalar(loss, has_aux=has_aux)

    def value_grad_diag(
        params: Params, *args: PyTree, key: Array, num_probes: int = 1
    ) -> ValueGradDiag:
        check.real(params=params)
        check.count(num_probes=num_probes)
        check.key(key)

        def gradient(params: Params) -> tuple[Params, Any]:
            value, grads = jax.value_and_grad(value_fn, has_aux=has_aux)(params, *args)
            return grads, value

        if num_probes == 1:
            z = signs(key, params)
            with forward_mode(check):
                grads, hz, value = jax.jvp(gradient, (params,), (z,), has_aux=True)
            return value, grads, multiply(z, hz)

        with forward_mode(check):
            grads, tangents, value = jax.linearize(gradient, params, has_aux=True)

        def draw(key: Array) -> Params:
            z = signs(key, params)
            return multiply(z, tangents(z))

        return value, grads, average(draw, key, num_probes).mean

    return value_grad_diag


def value_grad_and_gauss_newton_diag(
    model_fn: Callable[..., Any],
    head: Any,
    *,
    has_aux: bool = False,
    max_norm: float | None = None,
) -> Callable[..., ValueGradDiag]:
    """Makes a function that returns loss, gradient and Gauss-Newton diagonal.

    This is the Gauss-Newton-Bartlett estimate of Sophia-G. With z = model_fn(params,
    inputs), J its Jacobian, and ŷ_b drawn independently from the model for each of
    the B terms that the loss averages:

        ĝ = ∇ 1/B Σ_b loss_b(z_b, ŷ_b)        diag(JᵀHJ) = E[B ĝ ∘ ĝ]

    It is never negative. It costs a second backward pass, but no second derivatives.

    The identity needs labels from the model (those of the data give another matrix),
    independent terms (no batch statistics across them), and all B terms in one ĝ. So
    across devices or micro-batches, average these diagonals where you average the
    gradient; do not square an averaged gradient.

    Args:
        model_fn: model_fn(params, inputs) -> outputs, one array.
        head: the loss of the outputs, `ok.SquaredError()` or
            `ok.SoftmaxCrossEntropy()`. The latter averages over all labels: tokens
            rather than sequences.
        has_aux: whether `model_fn` returns a pair (outputs, aux). Then the new function
            returns (value, aux) in place of the value.
        max_norm: the largest norm of ĝ over all leaves; a longer one is scaled down, so
            the diagonal is no longer that of JᵀHJ. Sophia's authors clip ĝ at 1.

    Returns:
        A function (params, inputs, *targets, key=, num_probes=1) -> (value, gradient,
        diagonal), with a diagonal like the params.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> f = ok.value_grad_and_gauss_newton_diag(jnp.multiply, ok.SquaredError())
        >>> x, y, w = jnp.array([2.0]), jnp.array([1.0]), jnp.array([3.0])
        >>> value, grad, diag = f(w, x, y, key=jax.random.key(0))
        >>> print(value, grad, diag)
        12.5 [10.] [4.]

    Reference:
        Liu et al. 2023, arXiv:2305.14342, Algorithm 2.
    """
    check = Check("ok.value_grad_and_gauss_newton_diag")
    check.function(model_fn=model_fn)
    wanted = (
        "a head that samples labels, `ok.SoftmaxCrossEntropy()` or `ok.SquaredError()` "
        "(else `ok.hutchinson_diag(ok.gauss_newton(...), ...)`),"
    )
    check.instance(AbstractLikelihoodHead, wanted, head=head)
    check.optional.positive(max_norm=max_norm)

    def value_grad_diag(
        params: Params,
        inputs: PyTree,
        *targets: PyTree,
        key: Array,
        num_probes: int = 1,
    ) -> ValueGradDiag:
        check.real(params=params)
        check.count(num_probes=num_probes)
        check.key(key)
        outputs, pullback, *aux = jax.vjp(
            lambda p: model_fn(p, inputs), params, has_aux=has_aux
        )
        value, cotangent = jax.value_and_grad(head)(outputs, *targets)

        def draw(key: Array) -> Params:
            (g,) = pullback(head.sample(outputs, *targets, key=key))  # √B ĝ
            diag = jax.tree.map(_square, g)
            if max_norm is None:
                return diag
            square, limit = dot(g, g), max_norm**2 * head.num_terms(outputs, *targets)
            is_long = square > limit
            return scale(jnp.where(is_long, limit / square, 1), diag)

        (grads,) = pullback(cotangent)
        value = (value, *aux) if has_aux else value
        return value, grads, average(draw, key, num_probes).mean

    return value_grad_diag


def hutchinson_diag(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int
) -> Estimate:
    """Returns an estimate of the diagonal of a symmetric operator by random probes.

    It is an `ok.Estimate` of pytrees like the params: the average of z ∘ Cz over random
    signs z. It is unbiased. Entry i of one probe has variance Σ_{j≠i} C_ij², so it is
    exact for a diagonal C. The arguments are those of `ok.hutchinson_trace`. If the
    spectrum decays, matfree's XDiag needs fewer products; it is called like XTrace.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
        >>> print(ok.hutchinson_diag(C, key=jax.random.key(0), num_probes=1).mean)
        [ 6. 12.]

    Reference:
        Bekas, Kokiopoulou and Saad 2007, An estimator for the diagonal of a matrix.
    """
    check = Check("ok.hutchinson_diag")
    return over_probes(check, operator, key, num_probes, multiply)


def _square(g: Array) -> Array:
    return (g.astype(wide_dtype(g)) ** 2).astype(g.dtype)
