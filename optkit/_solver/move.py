"""How a solver moves one variable: by an optax transform, then by a projection."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._types import Params
from .._vector import norm, subtract

_ADVICE = "Keep structure, shapes and dtypes, so that a step compiles once."

Projection: TypeAlias = Callable[[Params], Params]
"""From a variable to the nearest point of its set, as in `optax.projections`."""


class Move(NamedTuple):
    """A step of one variable."""

    check: Check  # of the public function
    name: str  # of the variable for the user, "x" or "y"
    tx: optax.GradientTransformationExtraArgs
    project: Projection | None

    def init(self, variable: Params) -> PyTree:
        """The opt_state of the transform."""
        return self.tx.init(variable)

    def __call__(
        self, gradient: Params, opt_state: PyTree, variable: Params, **extra: Any
    ) -> tuple[Params, PyTree]:
        """The variable after a step, and the next opt_state."""
        updates, following = self.tx.update(gradient, opt_state, variable, **extra)
        what = f"the state that the transform of {self.name} returns"
        self.check.like(what, following, opt_state, "the one it was given", _ADVICE)
        moved: Params = optax.apply_updates(variable, updates)
        return moved if self.project is None else self.project(moved), following

    def residual(self, gradient: Params, variable: Params) -> Float[Array, ""]:
        """|∇g|, or |y - project(y - ∇g)| with a constraint: zero if stationary."""
        return residual(gradient, variable, self.project)


def mover(
    check: Check, name: str, project: Projection | None = None, **tx: Any
) -> Move:
    """Makes a `Move` from a transform, passed under the user's name for it."""
    check.transform(**tx)
    check.optional.function(**{f"project_{name}": project})
    (transform,) = tx.values()

    def projected(variable: Params) -> Params:
        moved = project(variable)  # pyright: ignore  # not called if it is None
        check.like(f"project_{name}({name})", moved, variable, name, _ADVICE)
        return moved

    inner = optax.with_extra_args_support(transform)
    return Move(check, name, inner, None if project is None else projected)


def residual(
    gradient: Params, variable: Params, project: Projection | None
) -> Float[Array, ""]:
    """|∇g|, or |y - project(y - ∇g)| with a constraint: zero if stationary."""
    if project is None:
        return norm(gradient)
    return norm(subtract(variable, project(subtract(variable, gradient))))
