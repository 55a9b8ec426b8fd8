"""How one variable of a solver moves: an optax transform, then a projection."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._types import Params
from .._vector import norm, subtract

_ADVICE = "A step must return what it was given, so that it compiles once."

Projection: TypeAlias = Callable[[Params], Params]
"""From a variable to the nearest point of its set, as in `optax.projections`."""


class Move(NamedTuple):
    """A step of one variable.

    Attributes:
        check: of the public function.
        name: what the variable is to the user: "x" or "y".
        tx: the transform.
        project: None where the variable is unconstrained.
    """

    check: Check
    name: str
    tx: optax.GradientTransformationExtraArgs
    project: Projection | None

    def init(self, variable: Params) -> PyTree:
        """The state of the transform."""
        return self.tx.init(variable)

    def __call__(
        self, gradient: Params, memory: PyTree, variable: Params, **extra: Any
    ) -> tuple[Params, PyTree]:
        """The variable after a step, and the transform's state."""
        updates, following = self.tx.update(gradient, memory, variable, **extra)
        what = f"the state that the transform of {self.name} returns"
        self.check.like(what, following, memory, "the one it was given", _ADVICE)
        moved: Params = optax.apply_updates(variable, updates)
        return moved if self.project is None else self.project(moved), following

    def residual(self, gradient: Params, variable: Params) -> Float[Array, ""]:
        """|∇g|, or with a constraint |y - project(y - ∇g)|: zero where stationary."""
        return residual(gradient, variable, self.project)


def mover(
    check: Check, name: str, project: Projection | None = None, **tx: Any
) -> Move:
    """A `Move` by a transform, given under the name of the user's argument."""
    check.transform(**tx)
    check.optional.function(**{f"project_{name}": project})
    (transform,) = tx.values()

    def projected(variable: Params) -> Params:
        moved = project(variable)  # pyright: ignore  # not called where it is None
        check.like(f"project_{name}({name})", moved, variable, name, _ADVICE)
        return moved

    inner = optax.with_extra_args_support(transform)
    return Move(check, name, inner, None if project is None else projected)


def residual(
    gradient: Params, variable: Params, project: Projection | None
) -> Float[Array, ""]:
    """|∇g|, or with a constraint |y - project(y - ∇g)|: zero where stationary."""
    if project is None:
        return norm(gradient)
    return norm(subtract(variable, project(subtract(variable, gradient))))
