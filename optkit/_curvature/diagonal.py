"""The diagonal of the curvature: by random probes, or by sampled labels.

For random signs z, E[z ∘ Hz] = diag H: one Hessian-vector product per probe, and the
pass that makes it makes the loss and the gradient too. For a Gauss-Newton matrix and
labels sampled from the model, the squared gradient will do: no second derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import Params, wide_dtype
from .._vector import signs
from .estimate import Estimate, average
from .head import AbstractLikelihoodHead

ValueGradDiag = tuple[Array, Params, Params]


def value_grad_and_diag(
    loss: Callable[..., Any],
) -> Callable[..., ValueGradDiag]:
    """Makes a function that returns loss, gradient and estimated Hessian diagonal.

    With z uniform random signs, one forward-over-reverse pass gives all three:

        (loss, g), Hz = jvp(value_and_grad(loss))(params; z)        diag ≈ z ∘ Hz

    The estimate is unbiased and signed: entry i has variance Σ_{j≠i} H_ij², divided
    by the number of probes. Take no modulus or square before averaging: that biases
    it upward. More probes reuse the pass through the loss.

    Args:
        loss: loss(params, *args) -> a real scalar.

    Returns:
        A function (params, *args, key=, num_probes=1) -> (value, gradient, diagonal).
        The diagonal is a pytree like the params. Over devices, average it where
        the gradient is averaged. The function raises a ValueError for a loss that is
        not a scalar or num_probes < 1, and a TypeError for params not real floating.

    Raises:
        TypeError: for a loss that is no function.

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
    value_fn = check.scalar(loss)

    def value_grad_diag(
        params: Params, *args: PyTree, key: Array, num_probes: int = 1
    ) -> ValueGradDiag:
        check.real(params=params)
        check.count(num_probes=num_probes)
        check.key(key)
        value_and_grad = jax.value_and_grad(lambda p: value_fn(p, *args))
        if num_probes == 1:
            z = signs(key, params)
            (value, grads), (_, hz) = jax.jvp(value_and_grad, (params,), (z,))
            return value, grads, jax.tree.map(jnp.multiply, z, hz)

        (value, grads), tangents = jax.linearize(value_and_grad, params)

        def draw(key: Array) -> Params:
            z = signs(key, params)
            return jax.tree.map(jnp.multiply, z, tangents(z)[1])

        return value, grads, average(draw, key, num_probes).mean

    return value_grad_diag


def value_grad_and_gauss_newton_diag(
    model_fn: Callable[..., Any], head: Callable[..., Any]
) -> Callable[..., ValueGradDiag]:
    """Makes a function that returns loss, gradient and Gauss-Newton diagonal.

    The Gauss-Newton-Bartlett estimate, as in Sophia-G. With z = model_fn(params,
    inputs), J its Jacobian, and ŷ_b drawn independently from the model for each of
    the B terms that the loss averages:

        ĝ = ∇ 1/B Σ_b loss_b(z_b, ŷ_b)        diag(JᵀHJ) = E[B ĝ ∘ ĝ]

    It is never negative, and costs a second backward pass: no second derivatives.

    The identity needs labels from the model (the data's give another matrix), terms
    that are independent (no batch statistics across them), and B the number of all
    terms in ĝ. So over devices or micro-batches, average these diagonals where the
    gradient is averaged; do not square an averaged gradient.

    Args:
        model_fn: model_fn(params, inputs) -> outputs, one array.
        head: the loss of the outputs: `ok.SoftmaxCrossEntropy()`, which averages over
            all labels, so tokens rather than sequences, or `ok.SquaredError()`.

    Returns:
        A function (params, inputs, *targets, key=, num_probes=1) -> (value, gradient,
        diagonal). The diagonal is a pytree like the params. The function raises a
        ValueError for num_probes < 1, and a TypeError for params not real floating.

    Raises:
        TypeError: for a head that cannot sample, or a model that is no function.

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
        outputs, pullback = jax.vjp(lambda p: model_fn(p, inputs), params)
        value, cotangent = jax.value_and_grad(head)(outputs, *targets)

        def draw(key: Array) -> Params:
            (g,) = pullback(head.sample(outputs, *targets, key=key))
            return jax.tree.map(_square, g)

        (grads,) = pullback(cotangent)
        return value, grads, average(draw, key, num_probes).mean

    return value_grad_diag


def hutchinson_diag(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int
) -> Estimate:
    """Estimates the diagonal of a symmetric operator by z ∘ Cz, averaged over probes.

    With z uniform random signs, the estimate is unbiased. Entry i of one probe has
    variance Σ_{j≠i} C_ij², so it is exact for a diagonal C; with k probes the error
    falls as 1/√k. For a spectrum that decays, matfree's XDiag needs fewer products:
    see `ok.hutchinson_trace` for how to call it.

    Args:
        operator: any symmetric Lineax operator, such as `ok.hessian(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, the number of products. Under `jax.jit` all of it
            compiles once; outside, each call traces the operator again.

    Returns:
        An `ok.Estimate` of two pytrees like the params, in their dtypes; with one
        probe there is no standard error.

    Raises:
        ValueError: for num_probes < 1, or an operator not known to be symmetric.
        TypeError: for something else than a real Lineax operator, or one random key.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
        >>> print(ok.hutchinson_diag(C, key=jax.random.key(0), num_probes=1).mean)
        [ 6. 12.]

    Reference:
        Bekas, Kokiopoulou and Saad 2007, An estimator for the diagonal of a matrix.
    """
    check = Check("ok.hutchinson_diag")
    check.symmetric(operator)
    check.count(num_probes=num_probes)
    check.key(key)
    linear = lx.linearise(operator)

    def draw(key: Array) -> Params:
        z = signs(key, operator.in_structure())
        return jax.tree.map(jnp.multiply, z, linear.mv(z))

    return average(draw, key, num_probes)


def _square(g: Array) -> Array:
    return (g.astype(wide_dtype(g)) ** 2).astype(g.dtype)
