"""Hypergradients by forward mode: Z_{t+1} = A_t Z_t + B_t along the steps of y."""

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
from ._base import Batches, Objective
from ._hypergradient import AbstractPath, Pulled, Response


class ForwardMode(AbstractPath):
    """The hypergradient by forward mode through T steps of y.

        Z_{t+1} = A_t Z_t + B_t    ∇Φ ≈ ∇_x F + Z_Tᵀ ∇_y F

    It gives the same number as `ok.bilevel.Unrolled` without truncation, but its memory
    does not grow with T: Z has one row like y for each entry of x. It costs T
    gradients, and a derivative of each for every entry of x. Use it for few
    hyperparameters and many steps.

    `num_steps` is T. `inner`, which needs an `eps_root` if it is `optax.adam`, and
    `project_y` are as for `ok.bilevel.Unrolled`. `chunk` is the number of rows of Z to
    advance at a time, by default all.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> lower = lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: jnp.sum(y)
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
        self.num_steps, self.inner, self.project_y = int(num_steps), inner, project_y
        self.chunk = None if chunk is None else int(chunk)

    def response(
        self, lower: Objective, x: Params, y: Params, batches: Batches, memory: PyTree
    ) -> Response:
        """One jvp of T steps for each entry of x."""
        start, structure = (y, self.inner.init(y)), structure_of(x)

        def arrive(x: Params) -> Params:
            step = self.step(lower, x)
            return batches.lower_y.loop(step, start, self.num_steps)[0]

        y = arrive(x)

        def pull(b: Params) -> Pulled:
            def entry(unit: Array) -> Array:
                Z = jax.jvp(arrive, (x,), (from_vector(unit, structure),))[1]
                return dot(Z, b)

            units = jnp.eye(to_vector(x).size, dtype=to_vector(x).dtype)
            size = len(units) if self.chunk is None else self.chunk
            entries = lax.map(entry, units, batch_size=size).astype(units.dtype)
            value = from_vector(entries, structure)
            return self.pulled(value, lower, x, y, batches.lower_y.last())

        return y, pull
