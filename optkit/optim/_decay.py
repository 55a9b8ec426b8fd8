"""Weight decay as a proximal step."""

from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Int

from .._check import Check
from .._types import MaskOrFn, ScalarOrSchedule
from ._base import leafwise


class ProximalDecayState(NamedTuple):
    """The step count, at which schedules are read."""

    count: Int[Array, ""]


def proximal_weight_decay(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: MaskOrFn = None,
) -> optax.GradientTransformation:
    """Shrinks the parameters by the proximal map of the squared norm.

    It is the last link of a chain: with u the signed update of the links before it,
    eta the learning rate of the same step and lambda the weight decay,

        theta <- (theta + u) / (1 + eta lambda)
               = argmin_x |x - (theta + u)|^2 / 2 + eta lambda |x|^2 / 2

    which is the update (u - eta lambda theta) / (1 + eta lambda).

    Args:
        learning_rate: what `optax.scale_by_learning_rate` before it was given: a
            number >= 0 or a schedule, read at this link's own step count.
        weight_decay: lambda, a number >= 0 or a schedule, read at the same count.
        mask: optax's mask of the leaves that decay.

    Returns:
        A transform whose `update` needs params. Arithmetic is in float32 or wider.

    Raises:
        ValueError: for a negative learning rate or weight decay; in `update`, if
            params are missing or unlike the updates.
        TypeError: in `init`, for integer leaves.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> tx = ok.optim.proximal_weight_decay(learning_rate=0.5, weight_decay=2.0)
        >>> params = jnp.array([4.0])
        >>> update, _ = tx.update(jnp.array([2.0]), tx.init(params), params)
        >>> (params + update).tolist()  # (4 + 2) / (1 + 0.5 * 2)
        [3.0]

    Reference:
        Xie et al. 2022, arXiv:2208.06677v4, Algorithm 1, last line; Zhuang et al.
        2022, arXiv:2202.00089.
    """
    check = Check("ok.optim.proximal_weight_decay")
    check.non_negative(learning_rate=learning_rate, weight_decay=weight_decay)

    def rule(u: Any, θ: Any, s: Any, t: Any, η: Any, λ: Any) -> Any:
        return (u - η * λ * θ) / (1 + η * λ), s

    tx = leafwise(
        check,
        rule,
        ProximalDecayState,
        moments={},
        hyper=(learning_rate, weight_decay),
        reads="params",
    )
    return tx if mask is None else optax.masked(tx, mask)
