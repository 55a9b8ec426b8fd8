"""The report of `ok.check_implicit`: numbers, and what they mean."""

from typing import Any, NamedTuple

import numpy as np

from .._results import RESULTS


class ImplicitReport(NamedTuple):
    """The quality of a derivative of a solution, in numbers and in words.

    Attributes:
        residual: |F(y, args)|.
        distance: |A⁻¹F| / |y|, a Newton step: how far y is from the solution.
        condition_number: of A = ∂_yF; if large, an estimate from below.
        backward_residual: |b - A x| / |b|, for A or Aᵀ, whichever is larger.
        error: of the implicit derivative, relative to the finite difference.
        noise: the relative difference of two finite differences.
        verdict: the conclusion.
    """

    residual: float
    distance: float
    condition_number: float
    backward_residual: float
    error: float
    noise: float
    verdict: str

    def __str__(self) -> str:
        """One line for each number."""
        lines = [
            f"optimality residual   {self.residual:.1e}",
            f"distance to solution  {self.distance:.1e} of its norm",
            f"condition number      {self.condition_number:.1e}",
            f"backward residual     {self.backward_residual:.1e}",
            f"error of derivative   {self.error:.1e} against finite differences",
            f"  which differ by     {self.noise:.1e} among themselves",
            self.verdict,
        ]
        return "\n".join(lines)


def verdict(
    report: ImplicitReport, outcome: Any, *, rtol: float, eps: float, damping: Any
) -> str:
    """Returns the first cause that explains the error of the derivative, in words.

    `outcome` is the result of the linear solves, `rtol` the accepted error, `eps` that
    of the solution's dtype, and `damping` λ or None.
    """
    off = f"off by about {report.distance:.0e} of its norm"
    if outcome != RESULTS.successful:
        return f"The linear solve of the derivative failed. {RESULTS[outcome]}"
    if not np.isfinite(report.error):
        return "The solver returned NaN or infinity at or near these args."
    if report.error <= rtol:
        agrees = "The implicit derivative agrees with finite differences"
        if report.distance > rtol:
            return f"{agrees}, but the solver has not converged: y is {off}."
        return f"{agrees}."
    if report.condition_number * eps > 0.1:
        return (
            "The Jacobian of the optimality conditions is singular to rounding: the "
            "solution is not a differentiable function of args here. Regularise the "
            "problem, or use damping."
        )
    if report.distance > 1e-2 * report.error:
        return (
            "The solver has not converged, or it solves a different problem from the "
            f"one that the condition describes: y is {off}, and the derivative is "
            "off by a constant times that. Run the solver longer, or to a smaller "
            "tolerance."
        )
    if report.backward_residual > rtol:
        return (
            "The derivative is biased by its cheap linear solve, whose residual is "
            f"{report.backward_residual:.0e}. Use more terms, or an exact `solver=`."
        )
    if report.noise > report.error / 3:
        return (
            "Finite differences are too noisy to tell. Run the solver to a smaller "
            "tolerance, use float64, or pass a larger `step`."
        )
    if damping is not None and damping > 0:
        return (
            f"The derivative is biased by damping={float(damping):g}, which shrinks it "
            f"unless the curvature is much larger. Check again without damping: if the "
            f"error stays, it has another cause."
        )
    # |A⁻¹r| / |x| <= κ |r| / |b|
    explained = report.condition_number * report.backward_residual
    if report.error <= explained:
        return (
            f"The tolerance of the linear solve may be the cause: its residual of "
            f"{report.backward_residual:.0e} allows an error of {explained:.0e} at "
            f"this condition number. Check again with a smaller tolerance, such as "
            f"`solver=ok.CG(1e-10)` or `ok.GMRES(1e-10)` in float64, or with "
            f"`lx.LU()`."
        )
    return (
        "The optimality function is not what the solver solves: a term, a scale or a "
        "constraint differs, or the solution is not isolated, has a kink here, or "
        "depends on something that is not in args."
    )
