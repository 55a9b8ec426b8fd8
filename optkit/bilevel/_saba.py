"""SABA: SOBA's step without the noise of a finite sum, by the memory of SAGA.

Tables store the last value of every term. With n terms, a drawn index i, and a table
row m_i for each of the five quantities q of a step,

    d = q_i - m_i    direction = d + m̄    m̄ <- m̄ + d / n    m_i <- q_i

m̄ is the mean of the table. d vanishes as the iterates converge, so step sizes can stay
constant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.guard import guard
from .._solver.move import Projection
from .._solver.solver import Solver
from .._types import Params, wide_dtype
from .._vector import cast_like, subtract, where, widen
from ._base import (
    Batch,
    Batches,
    BilevelInfo,
    Objective,
    lower_gradient,
    objectives_of,
    upper_gradients,
)
from ._soba import Quantities, SobaState, is_finite, movers


class Term(NamedTuple):
    """Terms of a finite sum, and their indices.

    If the index has shape (), `batch` is the batch of one term. If it has shape (b,),
    all leaves of `batch` have a leading axis of b, which must not be split on a mesh
    with explicit axes: the tables have whole rows.
    """

    index: Int[Array, "..."]
    batch: Batch


class SabaMemory(NamedTuple):
    """The table of one level, and its mean."""

    rows: PyTree  # m, with a leading axis of n on every leaf
    mean: PyTree  # m̄ and its rounding error, stacked; in float32 or wider


class SabaState(NamedTuple):
    """What the next step of `ok.bilevel.saba` needs."""

    x: Params
    y: Params
    v: Params  # towards -H⁻¹ ∇_y F; in float32 or wider
    outer: PyTree
    inner: PyTree
    linear: PyTree
    count: Int[Array, ""]  # of calls
    upper: SabaMemory  # of (∇_x F, ∇_y F)
    lower: SabaMemory  # of (∇_y g, J v, H v)


def saba(
    upper: Objective,
    lower: Objective,
    *,
    num_upper: int,
    num_lower: int,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    linear: optax.GradientTransformation | None = None,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Single-loop implicit bilevel descent on finite sums, without their noise.

        D_y = ⟨∇_y g⟩    D_v = ⟨H v⟩ + ⟨∇_y F⟩    D_x = ⟨J v⟩ + ⟨∇_x F⟩
        ⟨q⟩ = q_i - m_i + m̄    m̄ <- m̄ + (q_i - m_i) / n    m_i <- q_i

    with the update of `ok.bilevel.soba`. F and g are means of n terms of equal weight.
    A term is one example, or a fixed minibatch, which divides the memory by its size.
    With constant step sizes, the iterates converge to the solution, at a linear rate on
    well-conditioned problems.

    The tables start at zero. So in the first pass over the terms, m̄ is the sum of the
    values so far, divided by n, and q_i is added to it: directions grow from those of
    `ok.bilevel.soba` to nearly twice as long. If that is too long, begin with one step
    on all terms at once, `Term(jnp.arange(n), batches)`, which fills the tables and
    moves along the full gradients.

    Besides the state of `ok.bilevel.soba`, it stores `num_lower` (2|y| + |x|) +
    `num_upper` (|y| + |x|) numbers, and the means of these tables with their rounding
    errors. `upper` is one term F_i of `num_upper`, and `lower` one term g_j of
    `num_lower`. The other arguments are those of `ok.bilevel.soba`.

    Returns:
        An `ok.Solver`. A batch is `Batches(upper_x=Term(i, batch_i), lower_x=Term(j,
        batch_j))` of `ok.bilevel`, with i and j drawn independently. A step that is not
        finite, or an index out of range, changes only `count`.

    Raises:
        TypeError: if a batch is not made of terms.
        ValueError: if an index has another shape, or another length than its batch.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> data = jnp.array([0.0, 1.0, 5.0])
        >>> def lower(x, y, batch):
        ...     return 0.5 * jnp.sum((y - x - batch) ** 2)  # y* = x + 2
        >>> def upper(x, y, batch):
        ...     return 0.5 * jnp.sum((y - batch) ** 2)  # y* = 2, so x* = 0
        >>> options = {"outer": optax.sgd(0.05), "inner": optax.sgd(0.2)}
        >>> solver = ok.bilevel.saba(upper, lower, num_upper=3, num_lower=3, **options)
        >>> def batches(k):
        ...     i, j = k % 3, 2 * k // 3 % 3
        ...     terms = ok.bilevel.Term(i, data[i]), ok.bilevel.Term(j, data[j])
        ...     return ok.bilevel.Batches(upper_x=terms[0], lower_x=terms[1])
        >>> state = solver.init(jnp.ones(1), jnp.ones(1))
        >>> state, history = ok.run(solver, state, batches, 600)
        >>> print(abs(state.x) < 1e-4)
        [ True]

    Reference:
        Dagréou, Ablin, Vaiter and Moreau 2022, arXiv:2201.13409, section 3.
    """
    check = Check("ok.bilevel.saba")
    check.count(num_upper=num_upper, num_lower=num_lower)
    objectives = objectives_of(check, upper, lower)
    moves = movers(check, outer, inner, linear, project_x, project_y)

    def init(x: Params, y: Params) -> SabaState:
        variables = moves.init(check, x, y)
        x, y = variables.x, variables.y
        memories = _empty((x, y), num_upper), _empty((y, x, y), num_lower)
        return SabaState(*variables, *memories)

    def step(state: SabaState, batch: Batch) -> tuple[SabaState, BilevelInfo]:
        upper_term, lower_term = _terms(check, batch, num_upper, num_lower)
        before = SobaState(*state[:-2])
        x, y, v = before.x, before.y, cast_like(before.v, before.y)

        def upper_of(batch: Batch) -> tuple[Array, PyTree]:
            F, F_x, F_y = upper_gradients(objectives[0], x, y, batch)
            return F, (F_x, F_y)

        def lower_of(batch: Batch) -> tuple[Array, PyTree]:
            g, g_y, pull = lower_gradient(objectives[1], x, y, batch)
            return g, (g_y, *pull(v))

        F, in_F, upper_change = _level(state.upper, upper_term, upper_of)
        g, in_g, lower_change = _level(state.lower, lower_term, lower_of)
        q = Quantities(*in_F, *in_g)
        after, along = moves(before, q)
        info = moves.info(before, q, along, jnp.mean(F), jnp.mean(g))
        # If the directions are finite, so are the means.
        is_fine = is_finite(after, along)
        is_lost, always = (~is_fine, RESULTS.nonfinite_gradient), {"count": after.count}
        kept, info = guard(before, after, info, fatal=(is_lost,), always=always)
        upper_memory = _remembered(state.upper, upper_change, is_fine)
        lower_memory = _remembered(state.lower, lower_change, is_fine)
        return SabaState(*kept, upper=upper_memory, lower=lower_memory), info

    return Solver(init, jax.jit(step))


def _terms(
    check: Check, batch: Any, num_upper: int, num_lower: int
) -> tuple[Term, Term]:
    """The terms of the upper and of the lower level; an index has shape () or (b,)."""
    wanted = "`Batches(upper_x=Term(i, batch_i), lower_x=Term(j, batch_j))`"
    check.instance(Batches, wanted, batch=batch)
    check.instance(Term, wanted, upper_x=batch.upper_x, lower_x=batch.lower_x)

    def checked(name: str, term: Term, num: int) -> Term:
        index = check.index(f"{name}.index", term.index, num)
        if index.ndim:
            shape = (jnp.shape(index)[0],)
            check.shapes("An index is () or (b,).", **{f"{name}.index": (index, shape)})
            check.batch(**{f"{name}.batch": (index, term.batch)})
        return Term(index, term.batch)

    return (
        checked("upper_x", batch.upper_x, num_upper),
        checked("lower_x", batch.lower_x, num_lower),
    )


def _empty(tree: PyTree, num: int) -> SabaMemory:
    """Tables of zeros, sharded like the variables."""

    def rows(leaf: Array) -> Array:
        return jnp.broadcast_to(jnp.zeros_like(leaf), (num, *leaf.shape))

    def mean(leaf: Array) -> Array:
        zeros = jnp.zeros_like(leaf, wide_dtype(leaf))
        return jnp.stack([zeros, zeros])

    return SabaMemory(jax.tree.map(rows, tree), jax.tree.map(mean, tree))


def _level(
    memory: SabaMemory, term: Term, of_batch: Callable[[Batch], tuple[Array, PyTree]]
) -> tuple[Array, PyTree, tuple[Array, SabaMemory]]:
    """The values of the terms, the directions, and new rows and mean at an index."""
    index = jnp.atleast_1d(term.index)
    if term.index.ndim:
        values, new = jax.vmap(of_batch)(term.batch)
    else:  # without `vmap`, for which XLA on CPU would transpose the batch
        value, new = of_batch(term.batch)
        values, new = jax.tree.map(lambda leaf: leaf[None], (value, new))
    d = subtract(widen(new), widen(_fetched(memory, index)))
    # A term drawn twice in one step changes its row once.
    same = index[:, None] == index[None, :]
    is_first = ~jnp.any(jnp.tril(same, -1), axis=1)

    def direction(d: Array, mean: Array) -> Array:
        return jnp.mean(d, axis=0) + mean[0]

    def moved(d: Array, mean: Array) -> Array:
        # Kahan summation, since the sum never ends.
        once = jnp.where(jnp.expand_dims(is_first, range(1, d.ndim)), d, 0)
        change = jnp.sum(once, axis=0) / _num_terms(memory) + mean[1]
        total = mean[0] + change
        return jnp.stack([total, change - (total - mean[0])])

    directions = jax.tree.map(direction, d, memory.mean)
    change = SabaMemory(new, jax.tree.map(moved, d, memory.mean))
    return values, directions, (index, change)


def _num_terms(memory: SabaMemory) -> int:
    return len(jax.tree.leaves(memory.rows)[0])


def _fetched(memory: SabaMemory, index: Array) -> PyTree:
    """The rows at an index, or NaN if one of them does not exist."""

    def fetch(rows: PyTree) -> PyTree:
        return jax.tree.map(lambda m: m[index], rows)

    def refuse(rows: PyTree) -> PyTree:
        return jax.tree.map(lambda m: jnp.full_like(m[index], jnp.nan), rows)

    # The result of a branch is in memory before a table is written, so the compiler
    # need not copy the table.
    is_within = jnp.all((index >= 0) & (index < _num_terms(memory)))
    return lax.cond(is_within, fetch, refuse, memory.rows)


def _remembered(
    memory: SabaMemory, change: tuple[Array, SabaMemory], is_fine: Bool[Array, ""]
) -> SabaMemory:
    """The memory after the step if it was fine, else the memory before it."""
    index, (new, mean) = change
    # The tables are large, so only rows are written; an index past the end writes none.
    index = jnp.where(is_fine, index, _num_terms(memory))
    write = lambda m, q: m.at[index].set(q, mode="drop")  # noqa: E731
    rows = jax.tree.map(write, memory.rows, new)
    return SabaMemory(rows, where(is_fine, mean, memory.mean))
