"""Step sizes and penalties of the first-order methods, and how they grow together.

The penalty λ may grow only as fast as the lower iterates can follow. A step size α of x
and a larger one γ of the lower iterates fall as powers of the step; λ rises as γ/α.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from .._check import Check
from .._vector import scale
from ._base import next_count

_ROUNDING = 1e-5  # so that rounding does not break a bound that holds with equality


Number: TypeAlias = float | Float[Array, ""]


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


class Penalty(NamedTuple):
    """A penalty of any kind, as three functions of the step k and of λ_k."""

    initial: Callable[[], Float[Array, ""]]
    next: Callable[[Int[Array, ""], Float[Array, ""]], Float[Array, ""]]
    is_within: Callable[[Int[Array, ""], Float[Array, ""]], Bool[Array, ""]]


class Settings(NamedTuple):
    """All that a penalty method needs to know about its steps."""

    outer: optax.GradientTransformation  # of x
    inner: optax.GradientTransformation  # of z
    inner_y: optax.GradientTransformation
    penalty: Penalty
    inner_steps: int | None = None  # T of a double loop; None for a single one
    decay: Any = None  # of the estimates; None for plain gradients


class AbstractSchedule(eqx.Module):
    """Step sizes that fall, and a penalty that grows with their ratio."""

    a: Number
    c: Number
    c_alpha: Number
    c_gamma: Number
    k0: Number
    initial_penalty: Number
    ratio: eqx.AbstractVar[Number]
    constants: eqx.AbstractVar[Constants | None]
    maker: ClassVar[str]
    """The function that makes such a schedule for a problem."""

    def __check_init__(self) -> None:
        """Raises unless the numbers are positive."""
        check = Check(f"ok.bilevel.{type(self).__name__}")
        names = "c_alpha", "c_gamma", "k0", "initial_penalty", "ratio"
        check.positive(**{name: getattr(self, name) for name in names})
        check.non_negative(a=self.a, c=self.c)
        if self.constants is not None:
            checked(check, self.constants)

    def alpha(self, count: Any) -> Float[Array, ""]:
        """α_k."""
        return self.c_alpha / (_real(count) + self.k0) ** self.a

    def gamma(self, count: Any) -> Float[Array, ""]:
        """γ_k."""
        return self.c_gamma / (_real(count) + self.k0) ** self.c

    @abc.abstractmethod
    def delta(self, count: Any, penalty: Any) -> Float[Array, ""]:
        """δ_k, for the penalty λ_k."""

    @abc.abstractmethod
    def is_within(self, count: Any, penalty: Any) -> Bool[Array, ""]:
        """Whether step k meets the conditions of the theorem, for the penalty λ_k."""

    def settings(self) -> Settings:
        """What a solver takes from the schedule."""
        penalty = Penalty(
            lambda: _real(self.initial_penalty),
            lambda k, penalty: penalty + self.delta(k, penalty),
            self.is_within,
        )
        return Settings(
            outer=_descent(lambda k, _: self.ratio * self.alpha(k)),
            inner=_descent(lambda k, _: self.gamma(k)),
            inner_y=_descent(lambda k, penalty: self.alpha(k) * penalty),
            penalty=penalty,
        )


def all_hold(*pairs: tuple[Any, Any]) -> Bool[Array, ""]:
    """Whether left <= right, up to rounding, in all pairs of positive numbers."""
    holds = jnp.asarray(True)
    for left, right in pairs:
        holds &= left <= (1.0 + _ROUNDING) * right
    return holds


def above_rounding(delta: Any, penalty: Any) -> Float[Array, ""]:
    """δ, less the rounding error of λ + δ."""
    return delta - 4 * jnp.finfo(jnp.result_type(float)).eps * penalty


def checked(check: Check, constants: Any, **numbers: Any) -> list[float]:
    """The constants of a problem as floats; raises unless all are positive."""
    check.instance(Constants, "an `ok.bilevel.Constants`", constants=constants)
    mu, l_g, l_f, l_F = constants
    check.positive(convexity=mu, lower=l_g, upper=l_f, **numbers)
    check.non_negative(total=l_F)
    check.at_most(l_g, "which is `lower`", convexity=mu)
    return [float(number) for number in constants]


def plain(count: Any) -> Any:
    """A count as a Python integer, since those of NumPy make poor static fields."""
    return int(count) if isinstance(count, np.integer) else count


def settled(
    check: Check,
    kind: type[AbstractSchedule],
    schedule: Any,
    needed: dict[str, Any],
    **optional: Any,
) -> Settings:
    """The settings of a schedule, or of separate arguments, never of both."""
    given = {k: v for k, v in (needed | optional).items() if v is not None}
    made = f"`schedule=ok.bilevel.{kind.maker}(...)`"
    if schedule is not None:
        text = f"takes {made} alone, got {', '.join(given)} too. To change a number of"
        check.that(
            not given, f"{text} it, use `dataclasses.replace(schedule, k0=5.0)`."
        )
        check.instance(kind, made, schedule=schedule)
        return schedule.settings()
    missing = ", ".join(name for name in needed if name not in given)
    check.that(not missing, f"needs {missing}, or {made} instead of all of them.")
    text = "takes a schedule as `schedule=`, which brings its step sizes along."
    is_one = any(isinstance(value, AbstractSchedule) for value in given.values())
    check.that(not is_one, text, TypeError)
    if "sigma" in given:
        penalty = as_sigma(check, given["sigma"])
    else:
        penalty = as_penalty(check, penalty=given["penalty"])
    outer, inner, decay = given["outer"], given["inner"], given.get("decay")
    T = None if "decay" in given else given.get("inner_steps", 1)
    return Settings(outer, inner, given.get("inner_y", inner), penalty, T, decay)


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


def as_penalty(check: Check, **given: Any) -> Penalty:
    """λ from a number > 0, or a function of the step."""
    (value,) = given.values()
    if callable(value):
        return Penalty(
            lambda: _real(value(jnp.zeros([], jnp.int32))),
            lambda k, _: _real(value(next_count(k))),
            lambda k, penalty: _real(value(next_count(k))) >= (1 - _ROUNDING) * penalty,
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
