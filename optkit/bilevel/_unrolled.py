"""Hypergradients through the steps of y.

With y_{t+1} = Ξ(y_t, x), A_t = ∂_y Ξ and B_t = ∂_x Ξ,

    forward:  Z_{t+1} = A_t Z_t + B_t    Z_0 = 0               ∇Φ ≈ ∇_x F + Z_Tᵀ ∇_y F
    reverse:  h += B_tᵀ α, α <- A_tᵀ α   for t = T-1, ..., 0   from ∇_x F and ∇_y F

Both are exact for the y_T that they reach. Reverse mode stopped after K steps keeps the
last K terms of the sum. At a fixed point of gradient descent with step size γ these are
the first K terms of γ Σ (I - γH)ʲ, the sum of `ok.bilevel.Implicit(ok.Neumann(K, γ))`.
"""

from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from .._check import Check
from .._solver.move import Projection
from .._types import Params
from ._base import Batch, Batches, InnerBatches, Objective
from ._hypergradient import AbstractPath, Pulled, Response


class Unrolled(AbstractPath):
    """The hypergradient by reverse mode through T steps of y, or the last K of them.

        y_{t+1} = Ξ(y_t, x)    h = ∇_x F + Σ_{t=T-K+1..T} B_tᵀ A_{t+1}ᵀ ... A_Tᵀ ∇_y F

    With K = T it is the exact derivative of F(x, y_T(x)). For gradient descent with
    step size γ <= 1/L on a μ-strongly convex g, the terms left out with K < T are at
    most (1 - γμ)ᴷ / (γμ) |∇_y F| |B|. Constraints may be active, because the projection
    is part of the step.

    It stores the last K iterates of y and of the opt_state, and costs T gradients, plus
    about four for each of the last K steps.

    With `optax.adam`, set `eps_root`, for example to 1e-8: the derivative of its square
    root is NaN if a gradient of y is zero, as for weights that are not used yet.

    Args:
        num_steps: T >= 1.
        inner: the optax transform of y. Every hypergradient starts a new opt_state.
        truncate: K, at most T; default T.
        project_y: onto the constraint set of y, after each step.
        checkpoint: c. Store only every c-th iterate and repeat the steps between: this
            takes K/c + c iterates, fewest at c = √K, and one more gradient per step.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> lower = lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: jnp.sum(y)
        >>> method = ok.bilevel.Unrolled(2, optax.sgd(0.5))
        >>> gradient = ok.bilevel.hypergradient(upper, lower, method=method)
        >>> value, info = gradient(jnp.array([4.0]), jnp.array([0.0]), None)
        >>> print(info.y, value)  # y_2 = (1 - ½²) x
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
        last = num_steps if truncate is None else truncate
        check.count(num_steps=num_steps, truncate=last, checkpoint=checkpoint)
        check.at_most(num_steps, "the number of steps", truncate=last)
        check.transform(inner=inner)
        self.num_steps, self.truncate = int(num_steps), int(last)
        self.checkpoint, self.inner, self.project_y = int(checkpoint), inner, project_y

    def response(
        self, lower: Objective, x: Params, y: Params, batches: Batches, memory: PyTree
    ) -> Response:
        """T - K steps, then one vjp of K."""
        first = self.num_steps - self.truncate
        batches.lower_y.check(self.num_steps)
        early, late = batches.lower_y.split(first)
        start = early.loop(self.step(lower, x), (y, self.inner.init(y)), first)

        def arrive(x: Params) -> Params:
            return self._unroll(self.step(lower, x), start, late)[0]

        y, pull = jax.vjp(arrive, x)

        def pulled(b: Params) -> Pulled:
            return self.pulled(pull(b)[0], lower, x, y, late.last())

        return y, pulled

    def _unroll(self, step: Any, carry: PyTree, batches: InnerBatches) -> PyTree:
        """K steps of which reverse mode keeps the carry, or every c-th of it."""
        K, c = self.truncate, min(self.checkpoint, self.truncate)
        # Otherwise reverse mode would also store the intermediates of each gradient.
        step = jax.checkpoint(step)
        odd, whole = batches.split(K % c)
        carry = odd.loop(step, carry, K % c)
        if c == 1:
            return whole.loop(step, carry, K)

        @jax.checkpoint
        def segment(carry: PyTree, batch: Batch) -> PyTree:
            return whole._replace(batch=batch).loop(step, carry, c)

        return whole.grouped(c).loop(segment, carry, K // c)
