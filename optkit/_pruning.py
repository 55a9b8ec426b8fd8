"""Prune weights by the optimal brain surgeon.

To second order, setting weight i to zero and letting the others make up for it costs
w_i² / (2 P_ii), with P the inverse curvature; the others move by -P e_i w_i / P_ii.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

from ._check import (
    check_function,
    check_positive_int,
    check_vector,
)
from ._curvature.base import (
    check_symmetric,
    diagonal_of,
)
from ._curvature.masked import Masked
from ._inverse.cg import CG
from ._inverse.inverse import invert
from ._types import Params
from ._vector import all_finite, smallest


class Pruned(NamedTuple):
    """Params with zeros, and where they are not zero."""

    params: Params
    kept: PyTree[Bool[Array, "..."]]


UpdateRule = Callable[[Params, lx.AbstractLinearOperator, PyTree], Params]
"""From params, P and the mask of what is removed to the new params."""


def obs_saliency(params: Params, inverse: lx.AbstractLinearOperator) -> Params:
    """What removing each weight costs, were it removed alone.

    With P the inverse of the curvature of the mean loss,

        s_i = w_i² / (2 P_ii)

    is the second-order increase of the loss when weight i is set to zero and all the
    others take their best step.

    Args:
        params: the weights w of a trained model.
        inverse: P, with a known diagonal: `ok.invert(..., ok.Woodbury(), damping)`.

    Returns:
        A pytree like the params, in units of the loss.

    Raises:
        ValueError: for an inverse on other params.
        TypeError: for params of another dtype than the inverse's.
        NotImplementedError: for a P whose diagonal is not known, as of `ok.CG()`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[3.0, 0.0], [0.0, 0.5]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=0.01)
        >>> ok.obs_saliency(jnp.array([1.0, 1.0]), P).round(2)
        Array([4.5 , 0.13], dtype=float32)

    Reference:
        Hassibi and Stork 1992; Frantar et al. 2021, arXiv:2107.03356 (M-FAC).
    """
    check_symmetric("ok.obs_saliency", inverse)
    check_vector("ok.obs_saliency", params, inverse.in_structure(), "params")
    return jax.tree.map(lambda w, p: w**2 / (2 * p), params, diagonal_of(inverse))


def obs_summed(
    params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> Params:
    """The sum of the single-weight updates, M-FAC's rule for many weights at once.

        w <- w - P Σ_{i in S} e_i w_i / P_ii,   then w_S = 0

    One product with P. Interactions within S are ignored, so remove few at a time:
    `ok.obs_prune_gradually`.

    Args:
        params: the weights w.
        inverse: P, with a known diagonal.
        removed: S, a pytree of boolean arrays like the params.

    Returns:
        The new params, zero in S.

    Raises:
        ValueError: for an inverse or a `removed` unlike the params.
        TypeError: for a `removed` that is not boolean.
        NotImplementedError: for a P whose diagonal is not known, as of `ok.CG()`.

    Reference:
        Frantar et al. 2021, arXiv:2107.03356, and the authors' code.
    """
    _check_removal("ok.obs_summed", params, inverse, removed)
    ratio = jax.tree.map(jnp.divide, params, diagonal_of(inverse))
    return _removed(params, inverse.mv(_only(removed, ratio)), removed)


def obs_joint(
    params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> Params:
    """The best update that zeroes all of S together.

        w <- w - P E (Eᵀ P E)⁻¹ Eᵀ w,   E the columns of the identity in S,

    minimises the second-order loss over all w with w_S = 0. The inner system is
    solved by conjugate gradients, |S| products with P at most in exact arithmetic:
    for small sets.

    Args:
        params: the weights w.
        inverse: P.
        removed: S, a pytree of boolean arrays like the params.

    Returns:
        The new params, zero in S.

    Raises:
        ValueError: for an inverse or a `removed` unlike the params.
        TypeError: for a `removed` that is not boolean.

    Reference:
        The equality-constrained quadratic program; Singh and Alistarh 2020,
        arXiv:2004.14340, appendix on joint removal.
    """
    _check_removal("ok.obs_joint", params, inverse, removed)
    rtol = 1e3 * max(jnp.finfo(w.dtype).eps for w in jax.tree.leaves(params))
    inner = invert(Masked(inverse, removed), CG(rtol=float(rtol)))
    multipliers = inner.mv(_only(removed, params))
    return _removed(params, inverse.mv(_only(removed, multipliers)), removed)


def obs_prune(
    params: Params,
    inverse: lx.AbstractLinearOperator,
    *,
    sparsity: float,
    kept: PyTree | None = None,
    mask: PyTree = True,
    update: UpdateRule = obs_summed,
) -> Pruned:
    """Removes the weights of least saliency, and moves the others to make up for it.

    Args:
        params: the weights of a trained model.
        inverse: P, with a known diagonal. In a later round, of the curvature of the
            loss as a function of the kept weights: the removed ones' gradients zero.
        sparsity: the fraction of the maskable weights that are zero afterwards, in
            [0, 1), the already removed ones counted. Ties at the threshold go
            together.
        kept: what the last round kept; its zeros stay zero. Default: all.
        mask: which weights may be removed: a pytree prefix of booleans. The others
            (biases, say) are moved but never removed.
        update: how the others move: `ok.obs_summed`, `ok.obs_joint`, or any function
            `(params, inverse, removed) -> params`.

    Returns:
        The new params, and the boolean pytree of what is kept.

    Raises:
        ValueError: for a sparsity outside [0, 1), or an inverse, `kept` or `mask` of
            another structure than the params.
        TypeError: for an `update` that is no function.
        NotImplementedError: for a P whose diagonal is not known, as of `ok.CG()`.

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
    _check_sparsity("ok.obs_prune", sparsity)
    check_function("ok.obs_prune", "update", update)
    check_symmetric("ok.obs_prune", inverse)
    check_vector("ok.obs_prune", params, inverse.in_structure(), "params")
    kept = _all_kept(params) if kept is None else kept
    _check_kept("ok.obs_prune", kept, params)
    may = _broadcast(mask, params)
    size = sum(int(m.sum()) for m in jax.tree.leaves(may))
    count = np.asarray(round(sparsity * size))
    return _prune(params, inverse, count, kept, may, update)


@eqx.filter_jit
def _prune(
    params: Params,
    inverse: lx.AbstractLinearOperator,
    count: ArrayLike,
    kept: PyTree,
    may: PyTree,
    update: UpdateRule,
) -> Pruned:
    """`obs_prune` after its checks, compiled once for all rounds."""
    params = eqx.error_if(
        params,
        ~all_finite(params),
        "`ok.obs_prune` got weights that are NaN or infinite, which have no saliency. "
        "Check the training that they come from.",
    )
    saliency = _only(kept, obs_saliency(params, inverse))
    removed = smallest(count, saliency, may)
    kept = jax.tree.map(lambda k, r: k & ~r, kept, removed)
    return Pruned(_only(kept, update(params, inverse, removed)), kept)


def obs_prune_gradually(
    params: Params,
    make_inverse: Callable[[Params, PyTree], lx.AbstractLinearOperator],
    *,
    sparsity: float,
    num_rounds: int = 16,
    kept: PyTree | None = None,
    mask: PyTree = True,
    update: UpdateRule = obs_summed,
) -> Pruned:
    """Prunes in rounds, with the curvature estimated anew at the start of each.

    With s_0 the sparsity of `kept` and s the target, round i of n ends at

        1 - s_i = (1 - s_0) ((1 - s) / (1 - s_0))^(i / n)

    so every round removes the same fraction of what is left.

    Args:
        params: the weights of a trained model.
        make_inverse: `make_inverse(params, kept)` returns P at these params. Let the
            loss see `kept` (multiply the params by it): then the removed weights
            have no curvature and P leaves them alone.
        sparsity: the target, in [0, 1): see `ok.obs_prune`.
        num_rounds: n >= 1.
        kept: what is kept at the start. Default: all.
        mask: see `ok.obs_prune`.
        update: see `ok.obs_prune`.

    Returns:
        The new params, and the boolean pytree of what is kept.

    Raises:
        ValueError: for a sparsity outside [0, 1), num_rounds < 1, and as
            `ok.obs_prune`.
        TypeError: for a `make_inverse` that is no function.

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
        Frantar et al. 2021, arXiv:2107.03356, the authors' code: 16 rounds a step.
    """
    _check_sparsity("ok.obs_prune_gradually", sparsity)
    check_function("ok.obs_prune_gradually", "make_inverse", make_inverse)
    check_positive_int("ok.obs_prune_gradually", "num_rounds", num_rounds)
    kept = _all_kept(params) if kept is None else kept
    _check_kept("ok.obs_prune_gradually", kept, params)
    pruned = Pruned(_only(kept, params), kept)
    start = _sparsity(kept, mask)
    if start >= sparsity:
        return pruned
    for i in range(1, num_rounds + 1):
        left = (1 - start) * ((1 - sparsity) / (1 - start)) ** (i / num_rounds)
        pruned = obs_prune(
            pruned.params,
            make_inverse(pruned.params, pruned.kept),
            sparsity=max(1 - left, 0.0),
            kept=pruned.kept,
            mask=mask,
            update=update,
        )
    return pruned


def _check_removal(
    call: str, params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> None:
    """Raises unless the inverse is on the params and `removed` are booleans like them.

    Args:
        call: the public function to name in the message.
        params: the weights.
        inverse: P.
        removed: S.

    Raises:
        TypeError: for an inverse that is no operator, or a mask that is not boolean.
        ValueError: for trees unlike the params.
    """
    check_symmetric(call, inverse)
    check_vector(call, params, inverse.in_structure(), "params")
    shapes = jax.tree.map(jnp.shape, removed), jax.tree.map(jnp.shape, params)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`{call}` needs a boolean array in removed for each leaf of the params.\n"
            f"  removed: {shapes[0]}\n  params: {shapes[1]}"
        )
    for leaf in jax.tree.leaves(removed):
        if jnp.result_type(leaf) != jnp.bool_:
            raise TypeError(
                f"`{call}` needs boolean arrays in removed, got "
                f"{jnp.result_type(leaf)}. Compare, for example `saliency < 0.1`."
            )


def _removed(params: Params, step: Params, removed: PyTree) -> Params:
    """The new w, w - step, zero where removed."""
    return jax.tree.map(
        lambda w, s, r: jnp.where(r, jnp.zeros_like(w), w - s), params, step, removed
    )


def _only(mask: PyTree, tree: Params) -> Params:
    """The entries where the mask is true, zero elsewhere."""
    return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), mask, tree)


def _all_kept(params: Params) -> PyTree:
    return jax.tree.map(lambda w: jnp.ones(jnp.shape(w), bool), params)


def _broadcast(mask: PyTree, params: Params) -> PyTree:
    """A prefix of booleans as one static boolean array for each leaf."""

    def below(m: Any, subtree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda w: np.broadcast_to(np.asarray(m, bool), jnp.shape(w)), subtree
        )

    try:
        return jax.tree.map(below, mask, params)
    except ValueError as error:
        raise ValueError(
            f"`ok.obs_prune` needs a mask that is a pytree prefix of the params, with "
            f"a boolean, or one for each entry, per leaf.\n  mask: "
            f"{jax.tree.structure(mask)}\n  params: {jax.tree.structure(params)}"
        ) from error


def _sparsity(kept: PyTree, mask: PyTree) -> float:
    """The fraction of the maskable weights that is not kept."""
    may = _broadcast(mask, kept)
    size = sum(int(m.sum()) for m in jax.tree.leaves(may))
    alive = jax.tree.map(lambda k, m: int((k & m).sum()), kept, may)
    return 1 - sum(jax.tree.leaves(alive)) / size if size else 0.0


def _check_kept(call: str, kept: PyTree, params: Params) -> None:
    """Raises a `ValueError` unless `kept` has a boolean for each weight."""
    wanted = jax.tree.map(lambda w: (jnp.shape(w), jnp.dtype(bool)), params)
    got = jax.tree.map(lambda k: (jnp.shape(k), jnp.result_type(k)), kept)
    if got != wanted:
        raise ValueError(
            f"`{call}` needs a boolean array in kept for each leaf of the params, got "
            f"{got}. Pass the `kept` that the last round returned, or None."
        )


def _check_sparsity(call: str, sparsity: float) -> None:
    """Raises a `ValueError` unless 0 <= sparsity < 1."""
    is_number = isinstance(sparsity, int | float | np.number)
    if not is_number or not 0.0 <= sparsity < 1.0:
        raise ValueError(
            f"`{call}` needs 0 <= sparsity < 1, got {sparsity!r}: the fraction of "
            f"weights that are zero afterwards."
        )
