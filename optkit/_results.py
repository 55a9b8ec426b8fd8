"""How a solve ended, and what to do if it failed."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, PyTree

# As Equinox does, so that both agree: it does not publish what it read.
_ON_ERROR = os.environ.get("EQX_ON_ERROR", "raise")


class RESULTS(lx.RESULTS):  # pyright: ignore  # Equinox can extend an enumeration
    """How a solve ended: the results of Lineax and those of optkit."""

    indefinite = (
        "The damped curvature is not positive definite: along some direction its "
        "curvature is negative, or zero to rounding. Raise `damping`, use a curvature "
        "that cannot be indefinite such as `ok.gauss_newton` or `ok.empirical_fisher`, "
        "or use a method that allows it: `lx.LU()` or `ok.GMRES()`. In the derivative "
        "of a minimum, it means that the solver stopped elsewhere, or that the minimum "
        "is not isolated: see `ok.check_implicit`."
    )
    inaccurate = (
        "The conjugate gradient residual stopped falling above `rtol`, because of "
        "rounding. Raise `rtol` or `damping`, pass a `preconditioner`, or compute in "
        "float64."
    )
    diverging = (
        "The Neumann series is diverging: the last term is larger than the one before. "
        "Lower `step_size` below 2 / (largest eigenvalue) or, for a Hessian, leave it "
        "None to have it estimated. If the curvature is indefinite, raise `damping`."
    )
    undamped = (
        "A curvature of low rank has no inverse without damping. Pass a number > 0: "
        "`ok.invert(..., damping=...)` or `ok.implicit_minimum(..., damping=...)`."
    )
    nonfinite_operator = (
        "The curvature is NaN or infinite. Check the params and the batch that it was "
        "made from."
    )
    bad_preconditioner = (
        "The preconditioner is not positive definite: rᵀMr <= 0 for a residual r. Pass "
        "a positive definite one, such as `ok.nystrom_preconditioner(P)`, or none."
    )
    stalled = (
        "GMRES stopped making progress above `rtol`: the operator is singular or too "
        "badly conditioned for this dtype, or `restart` is too small. Raise `restart` "
        "or `rtol`, use `lx.LU()` if the matrix fits in memory, or compute in float64."
    )
    nonfinite_solution = (
        "The solution to differentiate is NaN or infinite. Check how the solver ended, "
        "its starting point `y0`, and `args`."
    )
    singular_matrix = (
        "The matrix of a linear solve is singular to rounding, or not finite. Add "
        "damping or a small regulariser to the problem. In the derivative of a "
        "solution, the matrix is the Jacobian of the optimality conditions there: "
        "check its conditioning with `ok.check_implicit`."
    )
    inexact_solve = (
        "A linear solve missed its tolerance: the true residual |b - A x| / |b| is too "
        "large. Its matrix may be singular or badly conditioned. Allow more steps, "
        "pass another `solver=`, or compute in float64. In the derivative of a "
        "solution, the matrix is the Jacobian of the optimality conditions: check it "
        "with `ok.check_implicit`."
    )
    nonfinite_iterate = (
        "An iterate became NaN or infinite: the iteration diverged, or its mapping is "
        "not finite there. The best iterate before it is returned. Check `y0` and "
        "`args`; lower `mixing`, raise `ridge`, or damp the mapping."
    )
    nonfinite_gradient = (
        "A gradient or an iterate is NaN or infinite: the step was not taken, and the "
        "variables are unchanged. Check the batch; if it is finite, lower the step "
        "sizes. To differentiate through steps of `optax.adam`, give it an `eps_root`."
    )
    bad_penalty = (
        "The penalty is not positive and finite: the step was not taken, and the "
        "variables are unchanged. Pass a schedule that stays above zero."
    )
    cancellation = (
        "The two lower iterates agree to rounding, so the difference of their "
        "gradients, times the penalty, is noise. Cap the penalty (a dtype allows about "
        "1 / sqrt(eps)), or compute in a wider dtype."
    )
    schedule_bounds = (
        "The step sizes or the penalty are outside the bounds under which the method "
        "is known to converge. The step was taken."
    )


_NEAREST_IN_LINEAX = {
    "indefinite": lx.RESULTS.breakdown,
    "inaccurate": lx.RESULTS.stagnation,
    "diverging": lx.RESULTS.breakdown,
    "undamped": lx.RESULTS.singular,
    "nonfinite_operator": lx.RESULTS.breakdown,
    "bad_preconditioner": lx.RESULTS.breakdown,
    "stalled": lx.RESULTS.stagnation,
    "nonfinite_solution": lx.RESULTS.nonfinite_input,
    "singular_matrix": lx.RESULTS.singular,
    "inexact_solve": lx.RESULTS.stagnation,
    "nonfinite_input": lx.RESULTS.nonfinite_input,
    "max_steps_reached": lx.RESULTS.max_steps_reached,
}


def nearest_in_lineax(outcome: Any) -> Any:
    """Lineax's own result that is closest in meaning."""
    result = lx.RESULTS.successful
    for name, nearest in _NEAREST_IN_LINEAX.items():
        result = lx.RESULTS.where(outcome == getattr(RESULTS, name), nearest, result)
    return result


def first_failure(*cases: tuple[Any, Any]) -> Any:
    """The result of the first case (holds, result) that holds, else success."""
    outcome: Any = RESULTS.successful
    for holds, result in reversed(cases):
        outcome = RESULTS.where(holds, result, outcome)
    return outcome


def gives_nan() -> bool:
    """Whether failures give NaN instead of raising an error."""
    return _ON_ERROR == "nan"


def raise_if(
    failed: Bool[Array, ""], value: PyTree, error_if: Callable[..., PyTree]
) -> PyTree:
    """Returns `value`; if it `failed`, calls `error_if(value, failed)`.

    Under `jax.vmap`, Equinox raises if any member of the batch has failed, which is all
    that a program can do. With `EQX_ON_ERROR=nan` in the environment, it would also
    replace all members by NaN. Here only the failed ones and their derivatives are NaN.
    """
    if not gives_nan():
        return error_if(value, failed)
    one = jnp.where(failed, jnp.nan, 1.0)
    return jax.tree.map(lambda x: x * one.astype(x.dtype), value)


def raise_failure(outcome: Any, value: PyTree) -> PyTree:
    """Returns `value`, or raises the text of an outcome that is a failure."""
    return raise_if(outcome != RESULTS.successful, value, outcome.error_if)
