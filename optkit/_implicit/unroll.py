"""The other end from implicit differentiation: backpropagation through the steps."""

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

    With Ξ a step, A_t = ∂_yΞ and B_t = ∂_θΞ at y_t, T steps and K of them kept:

        ẏ = Σ_{t=T-K..T-1} A_{T-1} ... A_{t+1} B_t θ̇

    At a fixed point that is Σ_{j<K} Aʲ B θ̇, the first K terms of the Neumann series
    for (I - A)⁻¹ B: `ok.Neumann(K)` in `ok.implicit_fixed_point` gives it without
    storing anything. Steps that contract by ρ make the truncation wrong by ρᴷ. What
    unrolling has and no implicit derivative: it is the derivative of what was computed,
    converged or not, and with K = T of y0 too.

    Args:
        step: step(y, args) -> y, pure; it may close over traced values.
        y0: where to start. Its derivative is zero where K < T.
        args: what the steps depend on.
        num_steps: T >= 1.
        truncate: K in 1, ..., T. None is T. The first T - K steps are run once, store
            nothing and have no derivative.
        checkpoint_every: c >= 1. Reverse mode then stores K/c iterates, and what c
            steps need, for one more evaluation of each step; c = √K stores least. None
            stores all that K steps need, for no more evaluations.

    Returns:
        y after T steps.

    Raises:
        ValueError: for numbers of steps below 1, K > T, or a step that returns
            something unlike y.
        TypeError: for a step that is no function.

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

    captured = eqx.filter_closure_convert(checked, y, args)
    if last < num_steps:
        fixed, fixed_args = constant((captured, args))
        y = lax.fori_loop(
            0, num_steps - last, lambda _, y: fixed(y, fixed_args), constant(y)
        )
        y = constant(y)

    def steps(y: Params, inputs: Any, count: int) -> Params:
        def body(y: Params, _: None) -> tuple[Params, None]:
            step, args = inputs
            return step(y, args), None

        return lax.scan(body, y, None, length=count)[0]

    if checkpoint_every is None:
        return steps(y, (captured, args), last)
    chunk = eqx.filter_checkpoint(lambda y, inputs: steps(y, inputs, size))
    y, _ = lax.scan(
        lambda y, _: (chunk(y, (captured, args)), None), y, None, length=last // size
    )
    rest = last % size
    return steps(y, (captured, args), rest) if rest else y
