"""Weight decay as a proximal step."""

from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Int

from .._check import Check
from .._types import MaskOrFn, ScalarOrSchedule
from ._base import decaying, leafwise


class ProximalDecayState(NamedTuple):
    """The step count, at which schedules are read."""

    count: Int[Array, ""]


def proximal_weight_decay(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: MaskOrFn = None,
) -> optax.GradientTransformationExtraArgs:
    """Shrinks the params by the proximal map of the squared norm.

    Make it the last link of a chain. With u the signed update of the links before it,
    η the learning rate and λ the weight decay, the update is (u - η λ θ) / (1 + η λ):

        θ <- (θ + u) / (1 + η λ) = argmin_x |x - (θ + u)|^2 / 2 + η λ |x|^2 / 2

    Args:
        learning_rate: the same as in the chain, a number >= 0 or a schedule, which is
            read at this link's own step count.
        weight_decay: λ, a number >= 0 or a schedule, read at the same count.
        mask: optax's mask of the leaves that decay.

    Returns:
        A transform whose `update` needs params. Arithmetic is in float32 or wider.

    Raises:
        ValueError: for a negative rate; in `update`, without params like the updates.
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
    return shrink(check, learning_rate, weight_decay, mask)


def shrink(
    check: Check, η: Any, λ: Any, mask: MaskOrFn
) -> optax.GradientTransformationExtraArgs:
    """`proximal_weight_decay`, with errors that name the caller."""
    check.non_negative(learning_rate=η, weight_decay=λ)

    def rule(u: Any, θ: Any, s: Any, t: Any, η: Any, λ: Any) -> Any:
        return (u - η * λ * θ) / (1 + η * λ), s

    state = ProximalDecayState
    tx = leafwise(check, rule, state, moments={}, hyper=(η, λ), reads=("params",))
    return decaying(tx, λ, mask)
