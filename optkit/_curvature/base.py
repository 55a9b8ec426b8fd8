"""Curvature is a symmetric linear operator on parameters, and a Lineax operator.

`AbstractCurvature` says what every curvature C has: `mv`, `in_structure`,
`diagonal` where it is known, and whether it is positive semidefinite. The rest
follows, so it is written once, here: the dense matrix, the transpose, what Lineax
asks of an operator, and what arithmetic makes of curvatures:

    Damped   C + λI          Sum   C₁ + C₂          Scaled   a C
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._check import (
    check_non_negative,
    check_real,
)
from .._types import Params
from .._vector import (
    axpy,
    from_vector,
    scale,
    to_vector,
)


class AbstractCurvature(lx.AbstractLinearOperator):
    """A real symmetric operator that takes a pytree like the params to another.

    Leaves keep their shapes and dtypes, which may differ from leaf to leaf. Sums,
    differences, negatives and multiples by a scalar are curvatures again.
    """

    @property
    @abc.abstractmethod
    def is_psd(self) -> bool:
        """Whether no eigenvalue can be negative, known without computing any."""

    @abc.abstractmethod
    def diagonal(self) -> Params:
        """The diagonal as a pytree like the params, where it costs no estimate.

        Returns:
            Entry i of the operator at entry i of the params.

        Raises:
            NotImplementedError: where it is not known; `ok.hutchinson_diag`
                estimates it.
        """

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of what `mv` returns: that of what it takes."""
        return self.in_structure()

    def transpose(self) -> "AbstractCurvature":
        """The operator itself."""
        return self

    def as_matrix(self) -> Float[Array, "n n"]:
        """The dense matrix, for small problems.

        Returns:
            Rows and columns in the order of the leaves, each leaf's entries in C
            order, in the narrowest dtype that holds every leaf.
        """
        structure = self.in_structure()
        eye = jnp.eye(self.in_size(), dtype=to_vector(_zeros(structure)).dtype)

        def column(e: Array) -> Array:
            return to_vector(self.mv(from_vector(e, structure)))

        return jax.vmap(column, out_axes=1)(eye)

    # Lineax's own sums and multiples promote mixed dtypes and know no `diagonal`, so
    # arithmetic is the one thing of Lineax's that is overridden here.

    def __add__(self, other: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        if isinstance(other, lx.AbstractLinearOperator) and lx.is_symmetric(other):
            return Sum(self, other)
        return lx.AddLinearOperator(self, other)

    def __sub__(self, other: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        return self + (-other)

    def __neg__(self) -> "Scaled":
        return Scaled(self, -1.0)

    def __mul__(self, other: Any) -> "Scaled":
        return Scaled(self, other)

    def __truediv__(self, other: Any) -> "Scaled":
        return Scaled(self, 1.0 / other)


class Damped(AbstractCurvature):
    """C + λI: the only place where damping has a meaning.

    λ is absolute, and is added to the curvature of the MEAN loss. It may be traced,
    and derivatives flow through it.

    Args:
        curvature: any symmetric Lineax operator.
        damping: λ, a scalar >= 0. A traced λ is taken to be.

    Raises:
        ValueError: for a negative, infinite or NaN damping, or an operator not
            known to be symmetric.
        TypeError: for an operator on complex numbers.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[3.0, 4.0]]))
        >>> ok.Damped(C, 0.5).as_matrix()
        Array([[ 9.5, 12. ],
               [12. , 16.5]], dtype=float32)
    """

    curvature: lx.AbstractLinearOperator
    damping: Float[Array, ""]

    def __init__(self, curvature: lx.AbstractLinearOperator, damping: Any) -> None:
        check_symmetric("ok.Damped", curvature)
        check_non_negative("ok.Damped", "damping", damping)
        self.curvature = curvature
        self.damping = _as_scalar("ok.Damped", "damping", damping)

    @property
    def is_psd(self) -> bool:
        """Whether C is."""
        return lx.is_positive_semidefinite(self.curvature)

    def mv(self, vector: Params) -> Params:
        """Cx + λx."""
        return axpy(self.damping, vector, self.curvature.mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.curvature.in_structure()

    def diagonal(self) -> Params:
        """diag(C) + λ."""
        diag = diagonal_of(self.curvature)
        return axpy(self.damping, jax.tree.map(jnp.ones_like, diag), diag)


class Sum(AbstractCurvature):
    """C₁ + C₂, as `C1 + C2` makes it."""

    first: lx.AbstractLinearOperator
    second: lx.AbstractLinearOperator

    def __check_init__(self) -> None:
        check_symmetric("ok.Sum", self.first)
        check_symmetric("ok.Sum", self.second)
        if self.first.in_structure() != self.second.in_structure():
            raise ValueError(
                "`C1 + C2` needs two curvatures on the same params.\n"
                f"  C1: {self.first.in_structure()}\n"
                f"  C2: {self.second.in_structure()}"
            )

    @property
    def is_psd(self) -> bool:
        """Whether both are."""
        terms = (self.first, self.second)
        return all(map(lx.is_positive_semidefinite, terms))

    def mv(self, vector: Params) -> Params:
        """C₁x + C₂x."""
        return jax.tree.map(jnp.add, self.first.mv(vector), self.second.mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.first.in_structure()

    def diagonal(self) -> Params:
        """diag(C₁) + diag(C₂)."""
        diags = (diagonal_of(self.first), diagonal_of(self.second))
        return jax.tree.map(jnp.add, *diags)


class Scaled(AbstractCurvature):
    """aC, as `a * C`, `C / a` and `-C` make it.

    Positive semidefinite only if C is and a is a Python number >= 0: the sign of an
    array is not known while tracing.
    """

    curvature: lx.AbstractLinearOperator
    scale: Float[Array, ""]
    is_non_negative: bool = eqx.field(static=True)

    def __init__(self, curvature: lx.AbstractLinearOperator, scale: Any) -> None:
        check_symmetric("ok.Scaled", curvature)
        self.curvature = curvature
        self.scale = _as_scalar("ok.Scaled", "scale", scale)
        is_number = isinstance(scale, int | float | np.number)
        self.is_non_negative = is_number and bool(scale >= 0)

    @property
    def is_psd(self) -> bool:
        """Whether C is, and a is known to be >= 0."""
        return self.is_non_negative and lx.is_positive_semidefinite(self.curvature)

    def mv(self, vector: Params) -> Params:
        """Cx, times a."""
        return scale(self.scale, self.curvature.mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.curvature.in_structure()

    def diagonal(self) -> Params:
        """diag(C), times a."""
        return scale(self.scale, diagonal_of(self.curvature))


def diagonal_of(operator: lx.AbstractLinearOperator) -> Params:
    """The diagonal of any square Lineax operator, as a pytree like the params."""
    if isinstance(operator, AbstractCurvature):
        return operator.diagonal()
    return from_vector(lx.diagonal(operator), operator.in_structure())


def check_symmetric(call: str, operator: Any) -> None:
    """Raises unless this is a Lineax operator, symmetric and real."""
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"`{call}` needs a Lineax operator, such as `ok.hessian(...)`, got "
            f"{type(operator).__name__}."
        )
    if not lx.is_symmetric(operator):
        raise ValueError(
            f"`{call}` needs a symmetric operator, got `{type(operator).__name__}` "
            f"that is not known to be. If it is, say so: "
            f"`lx.TaggedLinearOperator(operator, lx.symmetric_tag)`."
        )
    check_real(call, "params", operator.in_structure())


def tags_of(operator: lx.AbstractLinearOperator) -> frozenset[object]:
    """The Lineax tags of a symmetric operator."""
    if lx.is_positive_semidefinite(operator):
        return frozenset({lx.symmetric_tag, lx.positive_semidefinite_tag})
    return frozenset({lx.symmetric_tag})


def _zeros(structure: PyTree) -> Params:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure)


def _as_scalar(call: str, name: str, value: Any) -> Array:
    """A Python number or array as a strong floating scalar array."""
    dtype = jnp.result_type(value)
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    if not is_floating and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"`{call}` needs a real {name}, got {dtype}.")
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    dtype = dtype if is_floating and is_array else jnp.result_type(float)
    scalar = jnp.asarray(value, dtype)
    if scalar.shape != ():
        raise ValueError(
            f"`{call}` needs one scalar for {name}, got shape {scalar.shape}. For "
            f"many, `jax.vmap` over it."
        )
    return scalar


# What Lineax asks of an operator, answered once for every curvature.


@lx.is_symmetric.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> bool:
    return True


@lx.is_positive_semidefinite.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> bool:
    return operator.is_psd


@lx.is_negative_semidefinite.register(AbstractCurvature)
@lx.is_diagonal.register(AbstractCurvature)
@lx.is_tridiagonal.register(AbstractCurvature)
@lx.is_lower_triangular.register(AbstractCurvature)
@lx.is_upper_triangular.register(AbstractCurvature)
@lx.has_unit_diagonal.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> bool:
    return False


@lx.conj.register(AbstractCurvature)
@lx.linearise.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> lx.AbstractLinearOperator:
    return operator


@lx.linearise.register(Damped)
def _(operator: Damped) -> lx.AbstractLinearOperator:
    return Damped(lx.linearise(operator.curvature), operator.damping)


@lx.linearise.register(Sum)
def _(operator: Sum) -> lx.AbstractLinearOperator:
    return Sum(lx.linearise(operator.first), lx.linearise(operator.second))


@lx.linearise.register(Scaled)
def _(operator: Scaled) -> lx.AbstractLinearOperator:
    linear = lx.linearise(operator.curvature)
    return eqx.tree_at(lambda op: op.curvature, operator, linear)


@lx.materialise.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> lx.AbstractLinearOperator:
    tags = tags_of(operator)
    structure = operator.in_structure()
    return lx.materialise(lx.FunctionLinearOperator(operator.mv, structure, tags))


@lx.diagonal.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> Array:
    return to_vector(operator.diagonal())


@lx.tridiagonal.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> tuple[Array, Array, Array]:
    matrix = operator.as_matrix()
    return tuple(jnp.diagonal(matrix, k) for k in (0, -1, 1))
