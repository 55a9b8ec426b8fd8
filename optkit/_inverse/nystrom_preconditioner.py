"""A Nyström approximation as a preconditioner for conjugate gradients."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._curvature.base import AbstractCurvature
from .._curvature.damped import split_damping
from .._results import RESULTS, first_failure, raise_failure
from .._types import Params
from .._vector import all_finite, structure_of
from .inverse import WANTED, Inverse
from .nystrom import Nystrom, diagonal_of_sketch, update


class NystromPreconditioner(AbstractCurvature):
    """(Λ_r + λ) Uᵀ(Λ + λ)⁻¹U + I - UᵀU. Made by `ok.nystrom_preconditioner`."""

    vectors: PyTree
    weights: Float[Array, " r"]
    maker: ClassVar[str] = "ok.nystrom_preconditioner"
    is_psd: ClassVar[bool] = True

    def product(self, vector: Params) -> Params:
        """x + Uᵀ(w ∘ Ux), with w = (Λ_r + λ) / (Λ + λ) - 1."""
        one = jnp.ones((), self.weights.dtype)
        return update(self.vectors, self.weights, one, vector)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.vectors, drop=1)

    def diagonal(self) -> Params:
        """Σ_i (1 + w_i) U_ij² + 1 - Σ_i U_ij²."""
        one = jnp.ones((), self.weights.dtype)
        return diagonal_of_sketch(self.vectors, 1 + self.weights, one)


def nystrom_preconditioner(inverse: Inverse) -> NystromPreconditioner:
    """Returns an `ok.Nystrom` inverse as a preconditioner for conjugate gradients.

    M = (Λ_r + λ) Uᵀ(Λ + λ)⁻¹U + I - UᵀU, with Λ_r the smallest eigenvalue in Λ. It
    turns the r leading eigenvalues of C + λI into Λ_r + λ and leaves the others
    unchanged, so the condition number becomes about (Λ_r + λ) / (λ_min + λ).

    Args:
        inverse: `ok.invert(C, ok.Nystrom(...), damping=λ)`. If C is not finite, or not
            positive semidefinite, raises the text of `ok.RESULTS` at run time.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.diag(jnp.array([30.0, 20.0, 1.0, 0.1])))
        >>> P = ok.invert(C, ok.Nystrom(2, key=jax.random.key(0)), damping=0.1)
        >>> fast = ok.CG(preconditioner=ok.nystrom_preconditioner(P))
        >>> print([f"{x:.3f}" for x in ok.invert(C, fast, damping=0.1).mv(jnp.ones(4))])
        ['0.001', '0.002', '0.909', '9.091']

    Reference:
        Frangella, Tropp and Udell 2023, arXiv:2110.02820, equation 1.3.
    """
    check = Check("ok.nystrom_preconditioner")
    check.instance(Inverse, WANTED, inverse=inverse)
    got = type(inverse.solver).__name__
    text = f"needs an inverse by `ok.Nystrom(rank, key=key)`, got one by `{got}`."
    check.that(isinstance(inverse.solver, Nystrom), text)
    factor = inverse.factor
    _, damping = split_damping(inverse.operator)
    values = factor.values + damping.astype(factor.values.dtype)
    outcome = first_failure(
        (~all_finite(factor), RESULTS.nonfinite_operator),
        (factor.is_indefinite, RESULTS.indefinite),
    )
    weights = values[0] / values - 1
    return NystromPreconditioner(factor.vectors, raise_failure(outcome, weights))
