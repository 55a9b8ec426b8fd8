"""Conic programs: the equations of their solution, primal and dual."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._geometry.projections import second_order_cone


class ConicProgram(NamedTuple):
    """The data of min cᵀx with A x + s = b, s in K.

    Attributes:
        c: the costs.
        A: the matrix.
        b: the right-hand side.
    """

    c: Float[Array, " n"]
    A: Float[Array, "m n"]
    b: Float[Array, " m"]


class ConicSolution(NamedTuple):
    """The unknowns of a conic program, as solvers return them.

    Attributes:
        primal: x.
        dual: y in the dual cone K*.
        slack: s = b - A x in K.
    """

    primal: Float[Array, " n"]
    dual: Float[Array, " m"]
    slack: Float[Array, " m"]


class Cone(NamedTuple):
    """The sizes of a product of cones, in the order of the rows of A.

    Attributes:
        zero: rows that are equations, s = 0.
        non_negative: rows with s >= 0.
        second_order: the sizes of the blocks s = (t, v) with |v| <= t.
    """

    zero: int = 0
    non_negative: int = 0
    second_order: tuple[int, ...] = ()

    def size(self) -> int:
        """The number of rows."""
        return self.zero + self.non_negative + sum(self.second_order)

    def project_dual(self, v: Float[Array, " m"]) -> Float[Array, " m"]:
        """The nearest point of the dual cone K*: free, >= 0, second-order again."""
        start = self.zero + self.non_negative
        parts = [v[: self.zero], jax.nn.relu(v[self.zero : start])]
        for size in self.second_order:
            parts.append(second_order_cone(v[start : start + size]))
            start += size
        return jnp.concatenate(parts)


def conic(
    cone: Cone, program: Callable[[PyTree], ConicProgram] | None = None
) -> Callable[[ConicSolution, PyTree], ConicSolution]:
    """The optimality equations of min cᵀx with A x + s = b, s in a cone K.

        dual feasibility      Aᵀy + c = 0
        primal feasibility    A x + s - b = 0
        complementarity       y - Π(y - s) = 0        Π the projection onto K*

    The unknown is an `ok.optimality.ConicSolution(x, y, s)`. The third row says all of
    s in K, y in K* and sᵀy = 0. The derivative exists where Π has one at y - s and the
    solution is unique: else the Jacobian is singular. It is not symmetric.

    Args:
        cone: the sizes of K, static.
        program: from `args` to an `ok.optimality.ConicProgram(c, A, b)`. None where
            `args` is one.

    Returns:
        A residual `(y, args)`, for `ok.implicit_root`.

    Raises:
        ValueError: when called, for a program whose rows are not as many as the
            cone's, or other shapes than those of A.
        TypeError: for something else than an `ok.optimality.Cone`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> F = ok.optimality.conic(ok.optimality.Cone(non_negative=1))
        >>> program = ok.optimality.ConicProgram(  # min x with -x + s = -3, s >= 0
        ...     jnp.array([1.0]), jnp.array([[-1.0]]), jnp.array([-3.0])
        ... )
        >>> solution = ok.optimality.ConicSolution(
        ...     jnp.array([3.0]), jnp.array([1.0]), jnp.array([0.0])
        ... )
        >>> print(*F(solution, program))
        [0.] [0.] [0.]

    Reference:
        Busseti, Moursi and Boyd 2019, arXiv:1811.02157, section 3. Departs: (1) the
        embedding at w = 1, which leaves out its last row, implied by the others, and
        with it the direction in which the homogeneous residual is singular; (2) y and
        s are unknowns beside each other instead of as y - s.
    """
    call = "ok.optimality.conic"
    if not isinstance(cone, Cone):
        raise TypeError(f"`{call}` needs an `ok.optimality.Cone`, got {cone!r}.")
    if min(cone.zero, cone.non_negative, *cone.second_order) < 0:
        raise ValueError(f"`{call}` needs sizes >= 0 of the cones, got {cone}.")

    def residual(y: ConicSolution, args: PyTree) -> ConicSolution:
        x, dual, s = y
        c, A, b = args if program is None else program(args)
        if A.shape[0] != cone.size():
            raise ValueError(
                f"`{call}` got a matrix A of {A.shape[0]} rows and {cone} of "
                f"{cone.size()}. Each row of A belongs to one cone."
            )
        shapes = [v.shape for v in (b, dual, s)], [v.shape for v in (c, x)]
        if {*shapes[0]} != {A.shape[:1]} or {*shapes[1]} != {A.shape[1:]}:
            raise ValueError(
                f"`{call}` needs b, dual and slack of shape {A.shape[:1]} and c and "
                f"primal of {A.shape[1:]}, as A has them, got {shapes[0]} and "
                f"{shapes[1]}."
            )
        return ConicSolution(
            jnp.matmul(A.T, dual, precision=lax.Precision.HIGHEST) + c,
            jnp.matmul(A, x, precision=lax.Precision.HIGHEST) + s - b,
            dual - cone.project_dual(dual - s),
        )

    return residual
