"""A compiled, resumable loop around a solver, with reports."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree

from .._check import Check
from .solver import Solver


class Run(NamedTuple):
    """The end and the history of a run.

    Attributes:
        state: the last state of the solver.
        history: an info of NumPy arrays, with a leading axis of steps.
    """

    state: Any
    history: Any


def run(
    solver: Solver,
    state: Any,
    batches: Callable[[Int[Array, ""]], Any] | Iterable[Any],
    num_steps: int,
    *,
    report: Callable[[int, Any], Any] | None = None,
    every: int = 100,
    first: int | None = None,
) -> Run:
    """Takes steps of a solver, and returns the last state and the history.

        for k = first, ..., first + num_steps - 1:  state, info <- step(state, batch_k)

    If `batches` is a function of the step, batches are made inside one compiled loop
    that returns to Python after every `every` steps. It compiles once per solver and
    function of batches, for any number of steps, so a run resumed from a saved
    state equals an uninterrupted one bit for bit. To save a state, store
    `jax.tree.leaves(state)`; to load it, unflatten them into the structure of
    `solver.init(x, y)`.

    Args:
        solver: any `ok.Solver`; for many seeds, `ok.Solver(jax.vmap(init),
            jax.vmap(step, in_axes=(0, None)))`.
        state: from `solver.init`, or from an earlier run, which then continues. It is
            neither changed nor donated.
        batches: a pure, traced function of the step number: `lambda k:
            jax.tree.map(lambda a: a[jax.random.randint(jax.random.fold_in(key, k),
            (64,), 0, n)], data)`. Or an iterable with one batch per step, such as a
            data loader, whose position you must restore yourself.
        num_steps: how many steps to take, >= 1. The run ends early if an iterable does.
        report: report(number, info), called after every `every` steps and after the
            last, with the number of steps since `solver.init` and the last info in
            NumPy. Use it for a progress bar, or raise an error in it to stop.
        every: the number of steps in a compiled loop.
        first: the number of the first step; default is the `count` of the state.

    Returns:
        The last state, and the history. `history.result == ok.RESULTS.successful` is
        an array that says which steps succeeded. A step that is not finite is
        discarded, and the run continues with the next batch.

    Raises:
        TypeError: if `solver` is not an `ok.Solver`, or if `batches` is neither a
            function nor an iterable.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> lower = lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: 0.5 * jnp.sum((y - 1) ** 2 + x**2)
        >>> transforms = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5)}
        >>> solver = ok.bilevel.soba(upper, lower, **transforms)
        >>> state = solver.init(jnp.zeros(2), jnp.zeros(2))
        >>> state, history = ok.run(solver, state, lambda k: None, 100)
        >>> print(state.x.round(4), history.value.shape)
        [0.5 0.5] (100,)
    """
    check = Check("ok.run")
    wanted = "an `ok.Solver` such as `ok.bilevel.soba(...)`"
    check.instance(Solver, wanted, solver=solver)
    check.count(num_steps=num_steps, every=every)
    start = int(np.ravel(state.count)[0]) if first is None else first
    if callable(batches):
        text = "needs a hashable function. Pass `lambda step: batches(step)`."
        check.that(_is_hashable(batches), text, TypeError)
        chunks = _compiled(solver, batches, state, (start, start + num_steps, every))
    else:
        wanted = "a function of the step (`lambda step: batch`) or an iterable"
        check.instance(Iterable, wanted, batches=batches)
        taken = islice(batches, num_steps)
        chunks = _stepwise(solver, taken, state, (start, every))
    history, last = [], state
    for following, position, infos in chunks:
        last = following
        history.append(infos)
        if report is not None:
            report(position, jax.tree.map(lambda a: a[-1], infos))
    text = "needs batches, got an iterable without batches. Pass a new one."
    check.that(history, text)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *history)
    return Run(last, joined)


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


Chunks = Iterator[tuple[Any, int, Any]]
"""The state, the number of steps up to it, and the infos since the last chunk."""


def _compiled(
    solver: Solver, batch_of: Any, state: Any, span: tuple[int, int, int]
) -> Chunks:
    start, stop, every = span
    for position in range(start, stop, every):
        end = min(position + every, stop)
        numbers = np.int32(position), np.int32(end)
        state, infos = _advance(solver, batch_of, every, state, *numbers)
        size = end - position
        yield state, end, jax.tree.map(lambda a, n=size: np.asarray(a)[:n], infos)


# The ends of a chunk are data, not shapes: chunks of any length run the same program,
# and the result does not depend on where a run is cut.
@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    solver: Solver,
    batch_of: Callable[[Array], Any],
    every: int,
    state: Any,
    position: Int[Array, ""],
    end: Int[Array, ""],
) -> tuple[Any, PyTree]:
    def step(k: Array, state: Any) -> tuple[Any, Any]:
        state, info = solver.step(state, batch_of(k))
        return state, jax.tree.map(jnp.asarray, info)

    def body(k: Array, carry: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
        state, infos = carry
        state, info = step(k, state)
        i = k - position
        return state, jax.tree.map(lambda a, b: a.at[i].set(b), infos, info)

    like = jax.eval_shape(step, position, state)[1]
    infos = jax.tree.map(lambda s: jnp.zeros((every, *s.shape), s.dtype), like)
    return lax.fori_loop(position, end, body, (state, infos))


def _stepwise(
    solver: Solver, batches: Iterator[Any], state: Any, span: tuple[int, int]
) -> Chunks:
    position, every = span

    def steps() -> Iterator[Any]:
        nonlocal state
        for batch in batches:
            state, info = solver.step(state, batch)
            yield info

    infos = steps()
    while chunk := list(islice(infos, every)):
        position += len(chunk)
        yield state, position, jax.tree.map(lambda *a: np.stack(a), *chunk)
