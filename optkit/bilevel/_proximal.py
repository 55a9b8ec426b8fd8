"""The proximal term of the penalty methods: a pull towards a moving center."""

from typing import Any, NamedTuple

from .._check import Check
from .._types import Params
from .._vector import axpy, subtract


class Proximal(NamedTuple):
    """A proximal term ½|y - center|²/ρ, and a center that follows y."""

    prox_step: Any = None  # ρ; None is infinity
    averaging: Any = 1.0  # β, the weight of the new y in the center, which at 1 is y

    def check(self, check: Check) -> None:
        """Raises if a number is out of range."""
        check.optional.positive(prox_step=self.prox_step)
        check.positive(averaging=self.averaging)
        check.at_most(1, "a weight", averaging=self.averaging)

    @property
    def has_centers(self) -> bool:
        """Whether the centers differ from y and z."""
        number = isinstance(self.averaging, int | float)
        return not (number and self.averaging == 1)

    def pull(self, grads: Params, y: Params, center: Params) -> Params:
        """The gradient plus (y - center)/ρ."""
        if self.prox_step is None:
            return grads
        return axpy(1 / self.prox_step, axpy(-1.0, center, y), grads)

    def average(self, center: Params, y: Params) -> Params:
        """(1 - β) center + β y."""
        return axpy(self.averaging, subtract(y, center), center)
