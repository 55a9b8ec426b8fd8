"""The protocol of iterative solvers: two pure functions, and a residual."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Solver(NamedTuple):
    """An iterative solver, as pure functions.

    `init` returns a state: a NamedTuple with at least the iterate and `count`, the
    number of calls. `step(state, data)` returns the next state and an info with at
    least `value`, `residual_norm` and `result`. A step jits once, scans, and vmaps.

    Attributes:
        init: from the starting point to a state; init(x, y) for bilevel problems.
        step: (state, data) -> (state, info); the data is a batch or the `args`.
        residual: (y, args) -> a pytree that is zero at a solution, or None.
    """

    init: Callable[..., Any]
    step: Callable[[Any, Any], tuple[Any, Any]]
    residual: Callable[[Any, Any], Any] | None = None
