"""Step sizes and penalties of the first-order methods, and how they grow together.

The penalty λ may grow only as fast as the lower iterates can follow. A step size α of x
and a larger one γ of the lower iterates fall as powers of the step; λ rises as γ/α.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from .._check import Check
from .._vector import scale

_ROUNDING = 1e-5  # so that rounding does not break a bound that holds with equality


class PenaltySchedule(eqx.Module):
    """Step sizes and penalty of F2SA and F3SA, from their constants.

    With k the number of steps so far,

        α_k = c_α / (k + k_0)^a    γ_k = c_γ / (k + k_0)^c
        δ_k = min(θ α_k λ_k², κ γ_k/α_k - λ_k)    λ_{k+1} = λ_k + δ_k

    so λ_k approaches κ γ_k/α_k, which grows as k^(a-c). Pass it as `penalty=`, and its
    transforms as `outer=`, `inner=` and `inner_y=`. Make one for a problem with
    `ok.bilevel.f2sa_schedule` or `ok.bilevel.f3sa_schedule`, and tune it with
    `dataclasses.replace(schedule, k0=5.0, ...)`.

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
        max_alpha: the largest α_k with proven convergence.
        max_gamma: the largest γ_k with proven convergence.
        inner_steps: T, the inner steps per step of x.
    """

    a: float
    c: float
    c_alpha: float
    c_gamma: float
    k0: float
    initial_penalty: float
    growth: float
    target: float
    ratio: float = 1.0
    max_alpha: float = float("inf")
    max_gamma: float = float("inf")
    inner_steps: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        """Raises unless the constants are positive."""
        check = Check("ok.bilevel.PenaltySchedule")
        names = "c_alpha", "c_gamma", "k0", "initial_penalty", "ratio", "target"
        check.positive(**{name: getattr(self, name) for name in names})
        check.non_negative(a=self.a, c=self.c)
        check.count(inner_steps=self.inner_steps)

    def alpha(self, count: Any) -> Float[Array, ""]:
        """α_k."""
        return self.c_alpha / (_real(count) + self.k0) ** self.a

    def gamma(self, count: Any) -> Float[Array, ""]:
        """γ_k."""
        return self.c_gamma / (_real(count) + self.k0) ** self.c

    def delta(self, count: Any, penalty: Any) -> Float[Array, ""]:
        """δ_k, for the penalty λ_k."""
        alpha = self.alpha(count)
        catch_up = self.target * self.gamma(count) / alpha - penalty
        return jnp.minimum(self.growth * alpha * penalty**2, catch_up)

    def decay(self, count: Any) -> Float[Array, ""]:
        """1 - η_k, the decay of F3SA's estimates: η_k = (k+1)^(-2c), η_1 = 1."""
        eta = (_real(count) + 1) ** (-2.0 * self.c)
        return jnp.where(jnp.asarray(count) <= 1, 0.0, 1.0 - eta)

    def is_within(self, count: Any, penalty: Any) -> Bool[Array, ""]:
        """Whether α_k λ_k <= γ_k <= max_gamma, α_k <= max_alpha and δ_k >= 0."""
        slack = 1.0 + _ROUNDING
        alpha, gamma = self.alpha(count), self.gamma(count)
        delta = self.delta(count, penalty)
        return (
            (alpha * penalty <= slack * gamma)
            & (gamma <= slack * self.max_gamma)
            & (alpha <= slack * self.max_alpha)
            & (delta >= -_ROUNDING * penalty)
        )

    def outer(self) -> optax.GradientTransformationExtraArgs:
        """Gradient descent of x with the step size ξ α_k."""
        return _descent(lambda k, _: self.ratio * self.alpha(k))

    def inner(self) -> optax.GradientTransformationExtraArgs:
        """Gradient descent of z with the step size γ_k."""
        return _descent(lambda k, _: self.gamma(k))

    def inner_y(self) -> optax.GradientTransformationExtraArgs:
        """Gradient descent of y with the step size α_k λ_k."""
        return _descent(lambda k, penalty: self.alpha(k) * penalty)


def scale_by_penalty() -> optax.GradientTransformationExtraArgs:
    """Multiplies by the penalty λ: from ∇f/λ + ∇g to ∇f + λ∇g.

    Put it before a transform whose step size is the papers' α, not α λ.

    Returns:
        A transform whose `update` needs `penalty=`, which `ok.bilevel.f2sa` passes.
    """
    return _scale(Check("ok.bilevel.scale_by_penalty"), lambda _, penalty: penalty)


def sigma_schedule(
    initial: float, power: float = 1 / 3, floor: float = 0.0
) -> Callable[[Any], Float[Array, ""]]:
    """Returns a weight σ of the upper objective that falls as a power of the step k.

        σ_k = max(floor, initial / (k + 1)^power)

    If σ is of the order of the desired accuracy ε at the last step K, the complexities
    of the source imply one power per method: 1/3 with exact gradients (K = ε^-3), 1/5
    for `ok.bilevel.penalty_momentum` on samples (ε^-5), 1/7 for `ok.bilevel.penalty` on
    single samples (ε^-7).

    Below the square root of the dtype's eps (3e-4 in float32), rounding divided by σ
    outweighs the gain: `floor` prevents this.

    Example:
        >>> import optkit as ok
        >>> float(ok.bilevel.sigma_schedule(1.0)(7))
        0.5
    """
    check = Check("ok.bilevel.sigma_schedule")
    check.positive(initial=initial)
    check.non_negative(power=power, floor=floor)

    def sigma(count: Any) -> Float[Array, ""]:
        return jnp.maximum(initial / (_real(count) + 1) ** power, floor)

    return sigma


class Penalty(NamedTuple):
    """A penalty of any kind, as three functions of the step k and of λ_k."""

    initial: Callable[[], Float[Array, ""]]
    next: Callable[[Int[Array, ""], Float[Array, ""]], Float[Array, ""]]
    is_within: Callable[[Int[Array, ""], Float[Array, ""]], Bool[Array, ""]]


def as_penalty(check: Check, **given: Any) -> Penalty:
    """λ from a number > 0, a function of the step, or a `PenaltySchedule`."""
    (value,) = given.values()
    if isinstance(value, PenaltySchedule):
        return Penalty(
            lambda: _real(value.initial_penalty),
            lambda k, penalty: penalty + value.delta(k, penalty),
            value.is_within,
        )
    if callable(value):
        return Penalty(
            lambda: _real(value(jnp.zeros([], jnp.int32))),
            lambda k, _: _real(value(k + 1)),
            lambda k, penalty: _real(value(k + 1)) >= (1 - _ROUNDING) * penalty,
        )
    check.positive(**given)
    return Penalty(
        lambda: _real(value), lambda k, penalty: penalty, lambda k, _: jnp.asarray(True)
    )


def as_sigma(check: Check, sigma: Any) -> Penalty:
    """The penalty 1/σ, for a number σ > 0 or a function of the step."""
    if callable(sigma):
        return as_penalty(check, sigma=lambda count: 1.0 / _real(sigma(count)))
    check.positive(sigma=sigma)
    return as_penalty(check, sigma=1.0 / sigma)


def _descent(step_size: Callable[[Any, Any], Any]) -> Any:
    """Gradient descent whose step size depends on the solver's k and λ."""
    check = Check("ok.bilevel.PenaltySchedule")
    return _scale(check, lambda k, penalty: -step_size(k, penalty))


def _scale(check: Check, factor: Callable[[Any, Any], Any]) -> Any:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params
        text = "needs `penalty=` in `update`, as `ok.bilevel.f2sa` passes it."
        check.that("penalty" in extra, text, TypeError)
        return scale(factor(extra.get("count", 0), extra["penalty"]), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _real(value: Any) -> Float[Array, ""]:
    """A scalar in JAX's default float dtype, not weak."""
    return jnp.asarray(value).astype(float)
