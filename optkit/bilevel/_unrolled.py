"""Hypergradients through the steps of y: what x changes in the y they arrive at.

With y_{t+1} = Ξ(y_t, x), A_t = ∂_y Ξ and B_t = ∂_x Ξ,

    forward:  Z_{t+1} = A_t Z_t + B_t    Z_0 = 0               ∇Φ ≈ ∇_x F + Z_Tᵀ ∇_y F
    reverse:  h += B_tᵀ α, α <- A_tᵀ α   for t = T-1, ..., 0   from ∇_x F and ∇_y F

Both are exact for the y_T they arrive at. Reverse stopped after K steps keeps the last
K terms of the sum: at a fixed point of gradient descent with step size γ, the first K
terms of γ Σ (I - γH)ʲ, which is what `ok.bilevel.Implicit(ok.Neumann(K, γ))` sums.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._check import Check
from .._solver.move import Projection
from .._types import Params
from ._base import Batch, Batches, Objective, check_leading, repeat, upper_slopes
from ._hypergradient import (
    AbstractHypergradient,
    HypergradientInfo,
    inner_step,
    unrolled_info,
)


class Unrolled(AbstractHypergradient):
    """The hypergradient by reverse mode through T steps of y, or the last K of them.

        y_{t+1} = Ξ(y_t, x)    h = ∇_x F + Σ_{t=T-K+1..T} B_tᵀ A_{t+1}ᵀ ... A_Tᵀ ∇_y F

    With K = T it is the exact derivative of F(x, y_T(x)). For gradient descent of step
    size γ <= 1/L on a g that is μ-strongly convex, what K < T leaves out is at most
    (1 - γμ)ᴷ / (γμ) |∇_y F| |B|. Where a constraint is active, its projection stands
    inside of the step and is differentiated with it.

    Keeps the last K iterates of y, and of the transform's state; costs T gradients,
    and about four for each of the K.

    An `optax.adam` here needs an `eps_root`, such as 1e-8: the derivative of its square
    root is NaN where a gradient of y is zero, as of weights that do nothing yet.

    Args:
        num_steps: T >= 1.
        inner: the optax transform of y. Its state starts anew in every hypergradient.
        truncate: K, at most T; None is T.
        project_y: onto the constraint set of y, after each step.
        checkpoint: keep every c-th iterate only, and take the steps between again:
            memory K/c + c iterates, least at c = √K, for one more gradient a step.

    Raises:
        ValueError: for numbers of steps that are not positive integers, or K > T.
        TypeError: for an `inner` that is not an optax transform.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> def lower(x, y, batch):
        ...     return 0.5 * jnp.sum((y - x) ** 2)
        >>> def upper(x, y, batch):
        ...     return jnp.sum(y)
        >>> method = ok.bilevel.Unrolled(2, optax.sgd(0.5))
        >>> x, y = jnp.array([4.0]), jnp.array([0.0])
        >>> gradient, info = ok.bilevel.hypergradient(upper, lower, method=method)(x, y, None)
        >>> print(info.y, gradient)  # y_2 = (1 - ½²) x
        [3.] [0.75]

    Reference:
        Shaban et al. 2019, arXiv:1810.10667, sections 2 and 3.
    """

    num_steps: int = eqx.field(static=True)
    inner: optax.GradientTransformation = eqx.field(static=True)
    truncate: int = eqx.field(static=True)
    project_y: Projection | None = eqx.field(static=True)
    checkpoint: int = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int,
        inner: optax.GradientTransformation,
        *,
        truncate: int | None = None,
        project_y: Projection | None = None,
        checkpoint: int = 1,
    ) -> None:
        check = Check("ok.bilevel.Unrolled")
        check.count(num_steps=num_steps, checkpoint=checkpoint)
        check.optional.count(truncate=truncate)
        check.at_most(num_steps, "the number of steps", truncate=truncate or 1)
        check.transform(inner=inner)
        self.num_steps, self.inner, self.project_y = num_steps, inner, project_y
        self.truncate, self.checkpoint = truncate or num_steps, checkpoint

    @property
    def moves_y(self) -> bool:
        """True."""
        return True

    def init(self, y: Params) -> PyTree:
        """Nothing."""

    def estimate(
        self,
        objectives: tuple[Objective, Objective],
        x: Params,
        y: Params,
        batches: tuple[Batches, bool],
        memory: PyTree,
    ) -> tuple[Params, HypergradientInfo, PyTree]:
        """T - K steps, then one vjp of K."""
        T, K = self.num_steps, self.truncate
        given, is_shared = batches
        early, late = _split(given.lower_y, T, T - K, is_shared)
        start = y, self.inner.init(y)
        start = repeat(
            self._step(objectives[1], x),
            start,
            early,
            num_steps=T - K,
            is_shared=is_shared,
        )

        def arrive(x: Params) -> Params:
            step = self._step(objectives[1], x)
            return self._unroll(step, start, late, is_shared)[0]

        y, pull = jax.vjp(arrive, x)
        F, F_x, F_y = upper_slopes(objectives[0], x, y, given.upper_x)
        (through,) = pull(F_y)
        info = unrolled_info(objectives[1], (x, y, F, F_x), batches, self.project_y)
        return jax.tree.map(jnp.add, F_x, through), info, memory

    def _step(self, lower: Objective, x: Params) -> Any:
        return inner_step(
            Check("ok.bilevel.Unrolled"), lower, x, self.inner, self.project_y
        )

    def _unroll(self, step: Any, carry: PyTree, batches: Batch, is_shared: bool) -> Any:
        """K steps of which reverse mode keeps the carry, or every c-th of it."""
        # Without `checkpoint`, reverse mode keeps what is inside of the gradient too.
        K, c = self.truncate, min(self.checkpoint, self.truncate)
        step = jax.checkpoint(step)
        odd, whole = _split(batches, K, K % c, is_shared)
        carry = repeat(step, carry, odd, num_steps=K % c, is_shared=is_shared)
        if c == 1:
            return repeat(step, carry, whole, num_steps=K, is_shared=is_shared)
        if not is_shared:
            whole = jax.tree.map(lambda a: a.reshape(-1, c, *a.shape[1:]), whole)

        @jax.checkpoint
        def segment(carry: PyTree, batches: Batch) -> PyTree:
            return repeat(step, carry, batches, num_steps=c, is_shared=is_shared)

        return repeat(segment, carry, whole, num_steps=K // c, is_shared=is_shared)


def _split(batches: Batch, total: int, count: int, is_shared: bool) -> tuple[Any, Any]:
    """The batches of the first `count` inner steps, and of the others."""
    if is_shared:
        return batches, batches
    check_leading(batches, total)
    first = jax.tree.map(lambda a: a[:count], batches)
    return first, jax.tree.map(lambda a: a[count:], batches)
