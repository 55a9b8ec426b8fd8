"""Hypergradients by forward mode: Z_{t+1} = A_t Z_t + B_t beside the steps of y."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._solver.move import Projection
from .._types import Params
from .._vector import dot, from_vector, structure_of, to_vector
from ._base import Batches, Objective, repeat, upper_slopes
from ._hypergradient import (
    AbstractHypergradient,
    HypergradientInfo,
    inner_step,
    unrolled_info,
)


class ForwardMode(AbstractHypergradient):
    """The hypergradient by forward mode through T steps of y.

        Z_{t+1} = A_t Z_t + B_t    ∇Φ ≈ ∇_x F + Z_Tᵀ ∇_y F

    The same number as `ok.bilevel.Unrolled` without truncation, for a memory that does not
    grow with T: Z has as many rows like y as x has entries. Costs T gradients and a
    derivative of each for every entry of x: for few hyperparameters and long paths.

    An `optax.adam` here needs an `eps_root`, such as 1e-8: the derivative of its square
    root is NaN where a gradient of y is zero, as of weights that do nothing yet.

    Args:
        num_steps: T >= 1.
        inner: the optax transform of y. Its state starts anew in every hypergradient.
        project_y: onto the constraint set of y, after each step.
        chunk: how many rows of Z to push at a time; None is all of them.

    Raises:
        ValueError: for numbers that are not positive integers.
        TypeError: for an `inner` that is not an optax transform.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> def lower(x, y, batch):
        ...     return 0.5 * jnp.sum((y - x) ** 2)
        >>> def upper(x, y, batch):
        ...     return jnp.sum(y)
        >>> method = ok.bilevel.ForwardMode(2, optax.sgd(0.5))
        >>> x, y = jnp.array([4.0]), jnp.array([0.0])
        >>> ok.bilevel.hypergradient(upper, lower, method=method)(x, y, None)[0]
        Array([0.75], dtype=float32)

    Reference:
        Franceschi et al. 2017, arXiv:1703.01785, section 3.2.
    """

    num_steps: int = eqx.field(static=True)
    inner: optax.GradientTransformation = eqx.field(static=True)
    project_y: Projection | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int,
        inner: optax.GradientTransformation,
        *,
        project_y: Projection | None = None,
        chunk: int | None = None,
    ) -> None:
        check = Check("ok.bilevel.ForwardMode")
        check.count(num_steps=num_steps)
        check.optional.count(chunk=chunk)
        check.transform(inner=inner)
        self.num_steps, self.inner = num_steps, inner
        self.project_y, self.chunk = project_y, chunk

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
        """One jvp of T steps for each entry of x."""
        given, is_shared = batches
        start = y, self.inner.init(y)

        def arrive(x: Params) -> Params:
            step = inner_step(
                Check("ok.bilevel.ForwardMode"),
                objectives[1],
                x,
                self.inner,
                self.project_y,
            )
            T = self.num_steps
            return repeat(step, start, given.lower_y, num_steps=T, is_shared=is_shared)[
                0
            ]

        y = arrive(x)
        F, F_x, F_y = upper_slopes(objectives[0], x, y, given.upper_x)
        structure = structure_of(x)

        def through(unit: Array) -> Array:
            Z = jax.jvp(arrive, (x,), (from_vector(unit, structure),))[1]
            return dot(Z, F_y)

        units = jnp.eye(to_vector(x).size, dtype=to_vector(x).dtype)
        size = len(units) if self.chunk is None else self.chunk
        sums = lax.map(through, units, batch_size=size)
        implicit = from_vector(sums.astype(units.dtype), structure)
        info = unrolled_info(objectives[1], (x, y, F, F_x), batches, self.project_y)
        return jax.tree.map(jnp.add, F_x, implicit), info, memory
