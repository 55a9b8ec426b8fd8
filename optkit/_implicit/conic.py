"""Conic programs: the equations of their primal and dual solution."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._geometry.cone import Cone


class ConicProgram(NamedTuple):
    """The data of min cᵀx with A x + s = b, s in K."""

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

    The unknown is an `ok.optimality.ConicSolution(x, y, s)`. The third row says that s
    is in K, y in K*, and sᵀy = 0. The derivative exists if Π is differentiable at
    y - s and the solution is unique; otherwise the Jacobian is singular. It is not
    symmetric.

    Args:
        cone: the sizes of K, static.
        program: a function from `args` to an `ok.optimality.ConicProgram(c, A, b)`. By
            default `args` is the program.

    Returns:
        A residual, for `ok.implicit_root`.

    Raises:
        ValueError: when called, if shapes do not match the cone and A.
        TypeError: if `cone` is not an `ok.optimality.Cone`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> F = ok.optimality.conic(ok.optimality.Cone(non_negative=1))
        >>> one = jnp.ones(1)  # min x with -x + s = -3, s >= 0
        >>> program = ok.optimality.ConicProgram(one, -jnp.ones((1, 1)), -3 * one)
        >>> solution = ok.optimality.ConicSolution(3 * one, one, 0 * one)
        >>> print(*F(solution, program))
        [0.] [0.] [0.]

    Reference:
        Busseti, Moursi and Boyd 2019, arXiv:1811.02157, section 3. Departs: (1) the
        embedding is taken at w = 1 without its last row, which the others imply; this
        removes the direction in which the homogeneous residual is singular; (2) y and
        s are two unknowns instead of one, y - s.
    """
    check = Check("ok.optimality.conic")
    check.instance(Cone, "an `ok.optimality.Cone`", cone=cone)
    sizes = cone._replace(second_order=min(cone.second_order, default=0))
    check.non_negative(**sizes._asdict())

    def residual(y: ConicSolution, args: PyTree) -> ConicSolution:
        x, dual, s = y
        c, A, b = args if program is None else program(args)
        m, n = cone.size(), jnp.size(c)
        advice = "The rows of A must match the cone."
        check.shapes(advice, A=(A, (m, n)), b=(b, (m,)), c=(c, (n,)))
        check.shapes(advice, primal=(x, (n,)), dual=(dual, (m,)), slack=(s, (m,)))
        return ConicSolution(
            jnp.matmul(A.T, dual, precision=lax.Precision.HIGHEST) + c,
            jnp.matmul(A, x, precision=lax.Precision.HIGHEST) + s - b,
            dual - cone.project_dual(dual - s),
        )

    return residual
