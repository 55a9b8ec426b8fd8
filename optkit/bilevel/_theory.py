"""The schedules of the convergence theorems of F2SA and F3SA.

The penalty grows as k^(a-c); a and c are the exponents of the step sizes of the upper
and of the lower variable. The best exponents depend on what is noisy.
"""

from fractions import Fraction
from typing import Any, NamedTuple

from .._check import Check
from ._schedules import PenaltySchedule


class Constants(NamedTuple):
    """The constants of a problem in the theory of F2SA.

    Attributes:
        convexity: μ, the strong convexity of g in y.
        lower: l_g, the smoothness of g: the Lipschitz constant of its gradient.
        upper: l_f, the smoothness of f.
        total: l_F, the smoothness of x ↦ f(x, y*(x)); 0 leaves its bound out.
    """

    convexity: float
    lower: float
    upper: float
    total: float = 0.0


def f2sa_schedule(
    constants: Constants,
    *,
    inner_steps: int = 32,
    noisy_upper: bool = True,
    noisy_lower: bool = True,
    ratio: float = 1.0,
) -> PenaltySchedule:
    """Makes the schedule of F2SA's convergence theorem.

        noise in      a    c    λ_k grows as   mean of |∇Φ|²
        f and g      5/7  4/7   k^(1/7)        K^(-2/7)
        f only       3/5  2/5   k^(1/5)        K^(-2/5)
        none         1/3   0    k^(1/3)        K^(-2/3)

    With μ, l_g, l_f, l_F the constants, T the inner steps and ξ the ratio,

        k_0 = 4/μ max(ξ l_F / 2, T l_g, l_f)    λ_0 = 2 l_f / μ
        c_γ = 1 / (μ k_0^(1-c))    c_α = 1 / (2 λ_0 μ k_0^(1-a))
        θ = T μ / 16    κ = 1/2

    These are safe, and therefore slow. A smaller k_0 and larger c_α and c_γ, set with
    `dataclasses.replace`, are much faster as long as they do not diverge.

    Args:
        constants: of the problem, an `ok.bilevel.Constants`.
        inner_steps: T. The theorem needs at least 32, or a small ξ.
        noisy_upper: whether gradients of f come from samples.
        noisy_lower: whether gradients of g do; if so, both count as noisy.
        ratio: ξ.

    Returns:
        The argument for `penalty=`, with transforms for `outer=`, `inner=`, `inner_y=`.

    Example:
        >>> import optkit as ok
        >>> constants = ok.bilevel.Constants(convexity=1, lower=2, upper=1)
        >>> schedule = ok.bilevel.f2sa_schedule(constants)
        >>> round(schedule.initial_penalty, 3), round(schedule.k0, 3)
        (2.0, 256.0)

    Reference:
        Kwon et al. 2023, arXiv:2301.10945.
    """
    check = Check("ok.bilevel.f2sa_schedule")
    check.count(inner_steps=inner_steps)
    mu, l_g, l_f, l_F = _checked(check, constants, ratio)
    T, xi = inner_steps, ratio
    a, c = _exponents(noisy_upper, noisy_lower, _F2SA)
    penalty, k0 = 2 * l_f / mu, 4 / mu * max(xi * l_F / 2, T * l_g, l_f)
    return PenaltySchedule(
        a=a,
        c=c,
        c_alpha=1 / (2 * penalty * mu * k0 ** (1 - a)),
        c_gamma=1 / (mu * k0 ** (1 - c)),
        k0=k0,
        initial_penalty=penalty,
        growth=T * mu / 16,
        target=0.5,
        ratio=xi,
        max_alpha=_max_alpha(l_f, xi * l_F),
        max_gamma=min(1 / (4 * l_g), 1 / (4 * T * mu)),
        inner_steps=T,
    )


def f3sa_schedule(
    constants: Constants,
    *,
    noisy_upper: bool = True,
    noisy_lower: bool = True,
    ratio: float = 1.0,
) -> PenaltySchedule:
    """Makes the schedule of F3SA's convergence theorem.

        noise in      a    c    λ_k grows as   mean of |∇Φ|²
        f and g      3/5  2/5   k^(1/5)        K^(-2/5)
        f only       1/2  1/4   k^(1/4)        K^(-1/2)
        none         1/3   0    k^(1/3)        K^(-2/3)

    With the letters of `ok.bilevel.f2sa_schedule`,

        c_γ = 8 / (μ k_0^(1-c))    c_α = 8 / (μ λ_0 k_0^(1-a))    λ_0 = 2 l_f / μ
        θ = ∞    κ = 1    k_0 = max(128 l_g, 64 l_f / λ_0, ...) / μ

    Departs: (1) k_0 is the smallest for which the bounds γ_k <= 1/(16 l_g) and, as for
    F2SA, α_k <= 1/(8 l_f) and 1/(2 ξ l_F) hold from the first step. The arguments are
    those of `ok.bilevel.f2sa_schedule`, except `inner_steps`.

    Returns:
        The argument for `penalty=`, with transforms for `outer=`, `inner=`, `inner_y=`,
        and its `decay` for `decay=`.

    Reference:
        Kwon et al. 2023, arXiv:2301.10945.
    """
    check = Check("ok.bilevel.f3sa_schedule")
    mu, l_g, l_f, l_F = _checked(check, constants, ratio)
    penalty, xi = 2 * l_f / mu, ratio
    a, c = _exponents(noisy_upper, noisy_lower, _F3SA)
    k0 = max(128 * l_g, 64 * l_f / penalty, 16 * xi * l_F / penalty) / mu
    return PenaltySchedule(
        a=a,
        c=c,
        c_alpha=8 / (mu * penalty * k0 ** (1 - a)),
        c_gamma=8 / (mu * k0 ** (1 - c)),
        k0=k0,
        initial_penalty=penalty,
        growth=float("inf"),
        target=1.0,
        ratio=xi,
        max_alpha=_max_alpha(l_f, xi * l_F),
        max_gamma=1 / (16 * l_g),
    )


_Table = dict[tuple[bool, bool], tuple[Fraction, Fraction]]
_HALF, _THIRD = Fraction(1, 2), Fraction(1, 3)
# (a, c), by whether f and g are noisy. There is no row for a noisy g alone.
_F2SA: _Table = {
    (True, True): (Fraction(5, 7), Fraction(4, 7)),
    (True, False): (Fraction(3, 5), Fraction(2, 5)),
    (False, False): (_THIRD, Fraction(0)),
}
_F3SA: _Table = {
    (True, True): (Fraction(3, 5), Fraction(2, 5)),
    (True, False): (_HALF, Fraction(1, 4)),
    (False, False): (_THIRD, Fraction(0)),
}


def _exponents(
    noisy_upper: bool, noisy_lower: bool, table: _Table
) -> tuple[float, float]:
    a, c = table[noisy_upper or noisy_lower, noisy_lower]
    return float(a), float(c)


def _max_alpha(l_f: float, l_F: float) -> float:
    return min(1 / (8 * l_f), 1 / (2 * l_F) if l_F else float("inf"))


def _checked(
    check: Check, constants: Any, ratio: Any
) -> tuple[float, float, float, float]:
    check.instance(Constants, "an `ok.bilevel.Constants`", constants=constants)
    mu, l_g, l_f, l_F = constants
    check.positive(convexity=mu, lower=l_g, upper=l_f, ratio=ratio)
    check.non_negative(total=l_F)
    return float(mu), float(l_g), float(l_f), float(l_F)
