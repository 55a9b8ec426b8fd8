"""Conic programs: the equations of their solution, primal and dual."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._geometry.cone import Cone


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
    check = Check("ok.optimality.conic")
    check.instance(Cone, "an `ok.optimality.Cone`", cone=cone)
    check.non_negative(zero=cone.zero, non_negative=cone.non_negative)
    check.that(min(cone.second_order, default=0) >= 0, f"needs sizes >= 0, got {cone}.")

    def residual(y: ConicSolution, args: PyTree) -> ConicSolution:
        x, dual, s = y
        c, A, b = args if program is None else program(args)
        m, n = cone.size(), jnp.size(c)
        advice = "Each row of A belongs to one cone."
        check.shapes(advice, A=(A, (m, n)), b=(b, (m,)), c=(c, (n,)))
        check.shapes(advice, primal=(x, (n,)), dual=(dual, (m,)), slack=(s, (m,)))
        return ConicSolution(
            jnp.matmul(A.T, dual, precision=lax.Precision.HIGHEST) + c,
            jnp.matmul(A, x, precision=lax.Precision.HIGHEST) + s - b,
            dual - cone.project_dual(dual - s),
        )

    return residual
