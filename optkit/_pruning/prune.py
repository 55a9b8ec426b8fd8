"""The optimal brain surgeon removes weights and moves the others to compensate.

To second order, setting weight i to zero costs w_i² / (2 P_ii), with P the inverse
curvature, if the others move by -P e_i w_i / P_ii.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, PyTree

from .._check import Check
from .._curvature.base import diagonal_of
from .._results import raise_if
from .._types import Params
from .._vector import all_finite, smallest
from .base import check_inverse, only, ranks
from .update import obs_summed


class Pruned(NamedTuple):
    """Params with zeros, and booleans that mark the kept weights."""

    params: Params
    kept: PyTree[Bool[Array, "..."]]


UpdateRule = Callable[[Params, lx.AbstractLinearOperator, PyTree], Params]
"""(params, inverse, removed) -> new params."""


def obs_prune(
    params: Params,
    inverse: lx.AbstractLinearOperator,
    *,
    sparsity: float | np.number,
    kept: PyTree | None = None,
    mask: PyTree = True,
    update: UpdateRule = obs_summed,
) -> Pruned:
    """Removes the weights of least saliency and moves the others to compensate.

    Args:
        params: the weights of a trained model.
        inverse: P, with a known diagonal, as in `ok.obs_saliency`. In a later round,
            use the curvature of the loss as a function of the kept weights, so that the
            gradients of the removed ones are zero.
        sparsity: the fraction, in [0, 1), of the n weights in `mask` that are zero
            afterwards, including those already removed. Their number is `sparsity` n,
            rounded down, as in the authors' code: 0.29 of 100 are 29, and 0.99 of 10
            are 9. Of equal saliencies, the first ones are removed.
        kept: what the last round kept; its zeros stay zero. Default: all.
        mask: a pytree prefix of booleans that marks the weights that may be removed.
            The others, such as biases, move but are never removed.
        update: how the others move: `ok.obs_summed`, `ok.obs_joint`, or any function
            (params, inverse, removed) -> params.

    Returns:
        The new params, and the boolean pytree of what is kept.

    Raises:
        RuntimeError: if the weights are not finite, or P_ii is not positive for a
            weight that may be removed.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=1e-3)
        >>> pruned = ok.obs_prune(jnp.array([1.0, 0.5, 1.0]), P, sparsity=1 / 3)
        >>> pruned.params.round(2)  # the first weight takes over from the second
        Array([1.5, 0. , 1. ], dtype=float32)

    Reference:
        Frantar et al. 2021, arXiv:2107.03356, section 3.1 and the authors' code.
    """
    check = Check("ok.obs_prune")
    _check_sparsity(check, sparsity)
    check.function(update=update)
    check_inverse(check, params, inverse)
    kept, may = _masks(check, params, kept, mask)
    count = np.asarray(_share(sparsity, int(_num_true(may))))
    return _round(check, params, inverse, count, kept, may, update)


@eqx.filter_jit
def _round(
    check: Check,
    params: Params,
    inverse: lx.AbstractLinearOperator,
    count: ArrayLike,
    kept: PyTree,
    may: PyTree,
    update: UpdateRule,
) -> Pruned:
    """One round, compiled once for all rounds."""
    diagonal = diagonal_of(inverse)
    candidates = jax.tree.map(jnp.logical_and, kept, may)
    # Others do not matter, and their zeros would spoil the scale of the ranks.
    diagonal = jax.tree.map(lambda c, p: jnp.where(c, p, 1), candidates, diagonal)
    text = f"`{check.call}` got weights that are NaN or infinite, so they have no "
    text = f"{text}saliency. Check the training that produced them."
    params = raise_if(~all_finite(params), params, partial(eqx.error_if, msg=text))
    text = f"`{check.call}` got an inverse with a diagonal that is not positive and "
    text = f"{text}finite, so weights have no saliency. Raise `damping` in `ok.invert`."
    is_bad = ~all_finite(jax.tree.map(lambda p: jnp.where(p > 0, p, jnp.nan), diagonal))
    params = raise_if(is_bad, params, partial(eqx.error_if, msg=text))
    gone = jax.tree.map(lambda k, m: m & ~k, kept, may)
    newly = count - _num_true(gone)
    removed = smallest(newly, ranks(only(candidates, params), diagonal), candidates)
    kept = jax.tree.map(lambda k, r: k & ~r, kept, removed)
    removed = jax.tree.map(jnp.logical_or, gone, removed)
    return Pruned(only(kept, update(params, inverse, removed)), kept)


def obs_prune_gradually(
    params: Params,
    make_inverse: Callable[[Params, PyTree], lx.AbstractLinearOperator],
    *,
    sparsity: float | np.number,
    num_rounds: int = 16,
    kept: PyTree | None = None,
    mask: PyTree = True,
    update: UpdateRule = obs_summed,
) -> Pruned:
    """Prunes in rounds, with a new estimate of the curvature for each.

    With s_0 the sparsity of `kept` and s the target, round i of n ends at

        1 - s_i = (1 - s_0) ((1 - s) / (1 - s_0))^(i / n)

    so every round removes the same fraction of what is left. The number of weights is
    rounded, and after the last round it is that of `ok.obs_prune`.

    Args:
        params: the weights of a trained model.
        make_inverse: make_inverse(params, kept) -> P at these params. Its loss should
            multiply the params by `kept`: then the removed weights have no curvature,
            and P does not move them.
        sparsity: the target, in [0, 1): see `ok.obs_prune`.
        num_rounds: n >= 1.
        kept: what is kept at the start. Default: all.
        mask: see `ok.obs_prune`.
        update: see `ok.obs_prune`.

    Returns:
        The new params, and the boolean pytree of what is kept.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> w = jnp.array([1.0, -2.0, 0.1, 0.7])
        >>> def example_loss(w, x):
        ...     return 0.5 * jnp.dot(x, w) ** 2
        >>> xs = jax.random.normal(jax.random.key(0), (8, 4))
        >>> def make_inverse(w, kept):
        ...     loss = lambda w, x: example_loss(w * kept, x)
        ...     C = ok.empirical_fisher(loss, w, xs)
        ...     return ok.invert(C, ok.Woodbury(), damping=1e-2)
        >>> pruned = ok.obs_prune_gradually(w, make_inverse, sparsity=0.5, num_rounds=2)
        >>> int(pruned.kept.sum())
        2

    Reference:
        Frantar et al. 2021, arXiv:2107.03356, whose code takes 16 rounds a step.
        Departs: (1) with `C.block_diagonal(B)`, blocks hold the same positions in all
        rounds. The authors' code makes new blocks of the kept weights in each round,
        so that theirs hold B kept weights and ours fewer and fewer.
    """
    check = Check("ok.obs_prune_gradually")
    _check_sparsity(check, sparsity)
    check.function(make_inverse=make_inverse, update=update)
    check.count(num_rounds=num_rounds)
    kept, may = _masks(check, params, kept, mask)
    kept = jax.tree.map(jnp.asarray, kept)
    pruned, size = Pruned(only(kept, params), kept), int(_num_true(may))
    alive = int(_num_true(jax.tree.map(jnp.logical_and, kept, may)))
    target = _share(sparsity, size)
    if size - alive >= target:
        return pruned
    for i in range(1, num_rounds + 1):
        left = alive * ((size - target) / alive) ** (i / num_rounds)
        inverse = make_inverse(pruned.params, pruned.kept)
        check_inverse(check, pruned.params, inverse)
        count = np.asarray(size - round(left))
        pruned = _round(check, pruned.params, inverse, count, pruned.kept, may, update)
    return pruned


def _check_sparsity(check: Check, sparsity: Any) -> None:
    is_number = isinstance(sparsity, int | float | np.number)
    text = f"needs 0 <= sparsity < 1, the fraction of zeros, got {sparsity!r}."
    check.that(is_number and 0.0 <= sparsity < 1.0, text)


def _masks(
    check: Check, params: Params, kept: PyTree | None, mask: PyTree
) -> tuple[PyTree, PyTree]:
    """Broadcasts both to one boolean per entry; static ones stay static."""

    def one(m: Any, w: Any) -> Any:
        module = jnp if isinstance(m, jax.Array) else np
        return module.broadcast_to(m, jnp.shape(w))

    kept = check.booleans("kept", True if kept is None else kept, params, "the params")
    is_known = not any(isinstance(m, Tracer) for m in jax.tree.leaves(mask))
    text = "needs a mask that is not traced, because it sets the number of weights to "
    check.that(is_known, f"{text}remove. Close over it, or use NumPy.", TypeError)
    mask = check.booleans("mask", mask, params, "the params")
    return jax.tree.map(one, kept, params), jax.tree.map(one, mask, params)


def _num_true(mask: PyTree) -> Any:
    return sum(m.sum() for m in jax.tree.leaves(mask))


def _share(sparsity: Any, size: int) -> int:
    """The product, rounded down; k if `sparsity` is k / size to its precision."""
    nearest = round(float(sparsity) * size)
    if size and type(sparsity)(nearest / size) == sparsity:
        return nearest
    return math.floor(Fraction(float(sparsity)) * size)
