"""The schedule of the convergence theorem of F3SA."""

from typing import Any, ClassVar

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
)

# (a, c), by whether f and g are noisy. There is no row for a noisy g alone.
_EXPONENTS = {
    (True, True): (3 / 5, 2 / 5),
    (True, False): (1 / 2, 1 / 4),
    (False, False): (1 / 3, 0.0),
}


class MomentumSchedule(AbstractSchedule):
    """All the settings of F3SA, from a few numbers.

    α_k, γ_k and the steps are those of `ok.bilevel.PenaltySchedule`, with one inner
    step. The penalty follows their ratio, and an estimate decays with 1 - η_k:

        λ_{k+1} = γ_k/α_k    η_k = (k+1)^(-2c)    η_0 = η_1 = 1

    The conditions of the theorem are

        α_k λ_k <= γ_k    δ_k >= 0    2 (1 - γ_k/γ_{k-1}) <= η_{k+1}
        and, if the constants are known,
        γ_k <= 1/(16 l_g)    ξ α_k <= 1/l_F    δ_k <= μ α_k λ_k² / 8
        λ_k >= 2 l_f / μ     c_η l_g³ γ_k² / μ <= η_{k+1}

    Pass it to `ok.bilevel.f3sa` or to `ok.bilevel.penalty_momentum` as `schedule=`.
    Make one for a problem with `ok.bilevel.f3sa_schedule`, and tune it with
    `dataclasses.replace`.

    Attributes:
        a: the exponent of the step sizes of x.
        c: the exponent of the step sizes of the lower iterates, at most a.
        c_alpha: c_α.
        c_gamma: c_γ.
        k0: the shift of the count.
        initial_penalty: λ_0.
        ratio: ξ; the step size of x is ξ α_k.
        c_eta: c_η, the constant in the theorem's bound on η_k.
        constants: of the problem; None if they are not known.
    """

    ratio: Number = 1.0
    c_eta: Number = 1.0
    constants: Constants | None = None
    maker: ClassVar[str] = "f3sa_schedule"

    def delta(self, count: Any, penalty: Any) -> Float[Array, ""]:
        """δ_k, for the penalty λ_k."""
        return self.gamma(count) / self.alpha(count) - penalty

    def eta(self, count: Any) -> Float[Array, ""]:
        """η_k, the weight of the new gradient in an estimate."""
        k = jnp.asarray(count).astype(float)
        return jnp.where(k <= 1, 1.0, (k + 1) ** (-2.0 * self.c))

    def decay(self, count: Any) -> Float[Array, ""]:
        """1 - η_k."""
        return 1.0 - self.eta(count)

    def is_within(self, count: Any, penalty: Any) -> Bool[Array, ""]:
        """Whether step k meets the conditions of the theorem, for the penalty λ_k."""
        k = jnp.asarray(count).astype(float)
        alpha, gamma, eta = self.alpha(k), self.gamma(k), self.eta(k + 1)
        delta, last = self.delta(k, penalty), self.gamma(jnp.maximum(k - 1, 0))
        always = (
            (alpha * penalty, gamma),
            (penalty, penalty + delta),
            (2 * (1 - gamma / last), eta),
        )
        if self.constants is None:
            return all_hold(*always)
        mu, l_g, l_f, l_F = self.constants
        return all_hold(
            *always,
            (gamma * 16 * l_g, 1.0),
            (alpha * self.ratio * l_F, 1.0),
            (2 * l_f / mu, penalty),
            (above_rounding(delta, penalty), mu * alpha * penalty**2 / 8),
            (self.c_eta * l_g**3 / mu * gamma**2, eta),
        )

    def settings(self) -> Settings:
        """What a solver takes from the schedule."""
        return super().settings()._replace(decay=self.decay)


def f3sa_schedule(
    constants: Constants,
    *,
    noisy_upper: bool = True,
    noisy_lower: bool = True,
    ratio: float = 1.0,
    c_eta: float = 1.0,
) -> MomentumSchedule:
    """Makes the schedule of F3SA's convergence theorem.

        noise in      a    c    λ_k grows as   mean of |∇Φ|²
        f and g      3/5  2/5   k^(1/5)        K^(-2/5)
        f only       1/2  1/4   k^(1/4)        K^(-1/2)
        none         1/3   0    k^(1/3)        K^(-2/3)

    With the letters of `ok.bilevel.f2sa_schedule`, κ = l_g/μ and λ_0 = 2 l_f / μ,

        c_γ = 8 / (μ k_0^(1-c))    c_α = 8 / (μ λ_0 k_0^(1-a))
        k_0 = max(128 κ √(c_η κ), 128 ξ l_F / μ, (64 c_η κ³)^(1/(2-2c)))

    Departs: (1) the last term of k_0 is not in the paper. Its theorem wants c_η l_g³
    γ_k²/μ <= η_{k+1} in every step; with the first two terms alone and c = 2/5, this
    fails from some step on if κ is large. (2) k_0 is also at least 128 κ and 8 ξ l_F /
    (μ λ_0), which the theorem's bounds on γ_k and α_k need if c_η κ < 1 or λ_0 < 1/16.

    Args:
        constants: of the problem, an `ok.bilevel.Constants`.
        noisy_upper: whether gradients of f come from samples.
        noisy_lower: whether gradients of g do; if so, both count as noisy.
        ratio: ξ. The theorem bounds it by μ / l_g times an unstated constant, which
            `info.result` cannot report.
        c_eta: c_η. The theorem holds if it is large enough, but does not say how large.

    Returns:
        The argument for `schedule=`, with all step sizes, the penalty and the decay.

    Reference:
        Kwon et al. 2023, arXiv:2301.10945, Theorem 2 and its corollary.
    """
    check = Check("ok.bilevel.f3sa_schedule")
    mu, l_g, l_f, l_F = checked(check, constants, ratio=ratio, c_eta=c_eta)
    kappa, xi, penalty = l_g / mu, ratio, 2 * l_f / mu
    a, c = _EXPONENTS[noisy_upper or noisy_lower, noisy_lower]
    k0 = max(
        128 * kappa * max(1.0, (c_eta * kappa) ** 0.5),
        (64 * c_eta * kappa**3) ** (1 / (2 - 2 * c)),
        xi * l_F / mu * max(128, 8 / penalty),
    )
    return MomentumSchedule(
        a=a,
        c=c,
        c_alpha=8 / (mu * penalty * k0 ** (1 - a)),
        c_gamma=8 / (mu * k0 ** (1 - c)),
        k0=k0,
        initial_penalty=penalty,
        ratio=xi,
        c_eta=c_eta,
        constants=Constants(mu, l_g, l_f, l_F),
    )
