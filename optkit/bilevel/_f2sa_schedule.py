"""The schedule of the convergence theorem of F2SA."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._check import Check
from ._schedules import (
    AbstractSchedule,
    Constants,
    Number,
    Settings,
    above_rounding,
    all_hold,
    checked,
    plain,
)

# (a, c), by whether f and g are noisy. There is no row for a noisy g alone.
_EXPONENTS = {
    (True, True): (5 / 7, 4 / 7),
    (True, False): (3 / 5, 2 / 5),
    (False, False): (1 / 3, 0.0),
}


class PenaltySchedule(AbstractSchedule):
    """All the settings of F2SA, from a few numbers.

    With k the number of steps so far,

        α_k = c_α / (k + k_0)^a    γ_k = c_γ / (k + k_0)^c
        δ_k = min(θ α_k λ_k², κ γ_k/α_k - λ_k)    λ_{k+1} = λ_k + δ_k

    so λ_k approaches κ γ_k/α_k, which grows as k^(a-c). The step size of x is ξ α_k,
    that of z is γ_k, and that of y is α_k along ∇f + λ_k ∇g. Pass it to
    `ok.bilevel.f2sa` or to `ok.bilevel.penalty` as `schedule=`. Make one for a problem
    with `ok.bilevel.f2sa_schedule`, and tune it with `dataclasses.replace(schedule,
    k0=5.0, ...)`. `info.result` reports each step that breaks a condition of the
    theorem:

        α_k λ_k <= γ_k    δ_k >= 0    and, if the constants are known,
        γ_k <= 1/(4 l_g), 1/(4 T μ)      λ_k >= 2 l_f / μ
        α_k <= 1/(8 l_f), 1/(2 ξ l_F)    δ_k <= T μ α_k λ_k² / 16

    Attributes:
        a: the exponent of the step sizes of x.
        c: the exponent of the step sizes of the lower iterates, at most a.
        c_alpha: c_α.
        c_gamma: c_γ.
        k0: the shift of the count.
        initial_penalty: λ_0.
        growth: θ, which limits the growth of the penalty.
        target: κ, the limit of α_k λ_k / γ_k.
        ratio: ξ; the step size of x is ξ α_k.
        inner_steps: T, the inner steps per step of x.
        constants: of the problem; None if they are not known.
    """

    growth: Number
    target: Number
    ratio: Number = 1.0
    inner_steps: int = eqx.field(static=True, default=1, converter=plain)
    constants: Constants | None = None
    maker: ClassVar[str] = "f2sa_schedule"

    def __check_init__(self) -> None:
        """Raises unless the numbers are positive."""
        check = Check("ok.bilevel.PenaltySchedule")
        check.positive(target=self.target)
        check.count(inner_steps=self.inner_steps)

    def delta(self, count: Any, penalty: Any) -> Float[Array, ""]:
        """δ_k, for the penalty λ_k."""
        alpha = self.alpha(count)
        catch_up = self.target * self.gamma(count) / alpha - penalty
        return jnp.minimum(self.growth * alpha * penalty**2, catch_up)

    def is_within(self, count: Any, penalty: Any) -> Bool[Array, ""]:
        """Whether step k meets the conditions of the theorem, for the penalty λ_k."""
        alpha, gamma = self.alpha(count), self.gamma(count)
        delta = self.delta(count, penalty)
        always = (alpha * penalty, gamma), (penalty, penalty + delta)
        if self.constants is None:
            return all_hold(*always)
        (mu, l_g, l_f, l_F), T = self.constants, self.inner_steps
        return all_hold(
            *always,
            (gamma * 4 * l_g, 1.0),
            (gamma * 4 * T * mu, 1.0),
            (alpha * 8 * l_f, 1.0),
            (alpha * 2 * self.ratio * l_F, 1.0),
            (2 * l_f / mu, penalty),
            (above_rounding(delta, penalty), T * mu * alpha * penalty**2 / 16),
        )

    def settings(self) -> Settings:
        """What a solver takes from the schedule."""
        return super().settings()._replace(inner_steps=self.inner_steps)


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

    T does not depend on the step. The theorem bounds ξ/T by μ times an absolute
    constant that it does not state; in the proof, ξ/T <= μ/(96 l_g). `info.result`
    cannot report this one condition; it reports all others.

    Departs: (1) k_0 is also at least ξ l_F / (λ_0 μ), without which the bound on α_k
    fails in the first steps if λ_0 < 1/2.

    Args:
        constants: of the problem, an `ok.bilevel.Constants`.
        inner_steps: T. The paper takes 32 or more, or a small ξ.
        noisy_upper: whether gradients of f come from samples.
        noisy_lower: whether gradients of g do; if so, both count as noisy.
        ratio: ξ.

    Returns:
        The argument for `schedule=`, with all step sizes, the penalty and T.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> constants = ok.bilevel.Constants(convexity=1, lower=2, upper=1)
        >>> schedule = ok.bilevel.f2sa_schedule(constants)
        >>> round(schedule.initial_penalty, 3), round(schedule.k0, 3)
        (2.0, 256.0)
        >>> lower = lambda x, y, batch: jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: jnp.sum((y - 1) ** 2) / 2
        >>> solver = ok.bilevel.f2sa(upper, lower, schedule=schedule)

    Reference:
        Kwon et al. 2023, arXiv:2301.10945, Theorem 1 and its corollary.
    """
    check = Check("ok.bilevel.f2sa_schedule")
    check.count(inner_steps=inner_steps)
    mu, l_g, l_f, l_F = checked(check, constants, ratio=ratio)
    T, xi, penalty = inner_steps, ratio, 2 * l_f / mu
    a, c = _EXPONENTS[noisy_upper or noisy_lower, noisy_lower]
    k0 = max(4 / mu * max(xi * l_F / 2, T * l_g, l_f), xi * l_F / (penalty * mu))
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
        inner_steps=T,
        constants=Constants(mu, l_g, l_f, l_F),
    )
