"""Backpropagation through a solver's steps, instead of implicit differentiation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .._vector import constant


def unroll(
    step: Callable[[Params, PyTree], Params],
    y0: Params,
    args: PyTree,
    *,
    num_steps: int,
    truncate: int | None = None,
    checkpoint_every: int | None = None,
) -> Params:
    """Runs y <- step(y, args) `num_steps` times, differentiable through the last K.

    With Ξ the step, A_t = ∂_yΞ and B_t = ∂_θΞ at y_t, and K of the T steps kept:

        ẏ = Σ_{t=T-K..T-1} A_{T-1} ... A_{t+1} B_t θ̇

    At a fixed point this is Σ_{j<K} Aʲ B θ̇, the first K terms of the Neumann series
    for (I - A)⁻¹ B, which `ok.Neumann(K)` in `ok.implicit_fixed_point` sums without
    storing anything. If steps contract by ρ, the truncation error is ρᴷ. Unlike an
    implicit derivative, this is the derivative of the computed y, converged or not. If
    K = T, y0 has a derivative too.

    Args:
        step: step(y, args) -> y, pure; it may close over traced values.
        y0: the starting point. Its derivative is zero if K < T.
        args: what the steps depend on.
        num_steps: T >= 1.
        truncate: K in 1, ..., T; default T. The first T - K steps store nothing and
            have no derivative.
        checkpoint_every: c >= 1. Reverse mode then stores K/c iterates and what c
            steps need, and evaluates each step once more; c = √K stores the least. By
            default it stores what all K steps need.

    Returns:
        y after T steps.

    Raises:
        ValueError: if `step` returns something unlike y.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> def step(y, theta):
        ...     return 0.5 * y + theta
        >>> def last(theta, **options):
        ...     return ok.unroll(step, 0.0, theta, num_steps=50, **options)
        >>> print(jax.grad(last)(1.0), jax.grad(lambda t: last(t, truncate=3))(1.0))
        2.0 1.75

    Reference:
        Shaban et al. 2019, arXiv:1810.10667, section 3 (K-RMD).
    """
    check = Check("ok.unroll")
    check.function(step=step)
    last = num_steps if truncate is None else truncate
    size = last if checkpoint_every is None else checkpoint_every
    check.count(num_steps=num_steps, truncate=last, checkpoint_every=size)
    check.at_most(num_steps, "the number of steps", truncate=last)
    y = jax.tree.map(jnp.asarray, y0)

    def checked(y: Params, args: PyTree) -> Params:
        new = jax.tree.map(jnp.asarray, step(y, args))
        check.like("step(y, args)", new, y, "y")
        return new

    def steps(y: Params, inputs: Any, count: int) -> Params:
        def body(y: Params, _: None) -> tuple[Params, None]:
            step, args = inputs
            return step(y, args), None

        return lax.scan(body, y, None, length=count)[0]

    inputs = eqx.filter_closure_convert(checked, y, args), args
    if last < num_steps:
        fixed, fixed_args = constant(inputs)
        first = num_steps - last
        y = lax.fori_loop(0, first, lambda _, y: fixed(y, fixed_args), constant(y))
        y = constant(y)
    if checkpoint_every is None:
        return steps(y, inputs, last)
    chunk = eqx.filter_checkpoint(lambda y, inputs: steps(y, inputs, size))
    body = lambda y, _: (chunk(y, inputs), None)  # noqa: E731
    y, _ = lax.scan(body, y, None, length=last // size)
    rest = last % size
    return steps(y, inputs, rest) if rest else y
