"""Curvatures: symmetric Lineax operators on the params.

A curvature C defines `product`, `in_structure`, `diagonal` and `is_psd`. The base class
adds the matrix, the transpose, Lineax's queries, and arithmetic:

    Sum   C₁ + C₂          Scaled   a C
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._types import Params
from .._vector import add, common_dtype, from_vector, scale, to_vector, widen

_SCREEN = 24  # lines


class AbstractCurvature(lx.AbstractLinearOperator):
    """A real symmetric operator on pytrees like the params.

    Leaves keep their shapes and dtypes, which may differ from leaf to leaf. Sums,
    differences, negatives and scalar multiples are curvatures again. A subclass
    defines `product`, `in_structure`, `diagonal` and `is_psd`.
    """

    maker: ClassVar[str] = ""
    """The public function that returns it, for error messages."""

    @property
    @abc.abstractmethod
    def is_psd(self) -> bool:
        """Whether C is known, without computing, to be positive semidefinite."""

    @abc.abstractmethod
    def product(self, vector: Params) -> Params:
        """C x, for a vector that has been checked."""

    @abc.abstractmethod
    def diagonal(self) -> Params:
        """The exact diagonal: a pytree like the params, in float32 or wider.

        The entries of an inverse may lie outside the range of float16 params. Raises a
        `NotImplementedError` if it is not known: see `ok.hutchinson_diag`.
        """

    def __repr__(self) -> str:
        """The fields with the shapes of their arrays, in at most one screen."""
        lines = eqx.tree_pformat(self).split("\n")
        cut = [f"  ... {len(lines) - _SCREEN} more lines", ")"]
        return "\n".join(lines if len(lines) <= _SCREEN else lines[:_SCREEN] + cut)

    def mv(self, vector: Params) -> Params:
        """C x, for a pytree x with the structure, shapes and dtypes of the params."""
        self.check_vector("mv", vector)
        return self.product(vector)

    def check_vector(self, method: str, vector: Params) -> None:
        """Raises unless the vector is like the params."""
        name = self.maker or type(self).__name__
        Check(f"{name}(...).{method}").like(
            "vector",
            vector,
            self.in_structure(),
            "the operator's params",
            "For many at once, `jax.vmap` the call; cast with `optax.tree.cast_like`.",
        )

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The same as `in_structure()`."""
        return self.in_structure()

    def transpose(self) -> "AbstractCurvature":
        """The operator itself."""
        return self

    def as_matrix(self) -> Float[Array, "n n"]:
        """Returns the dense matrix, for small problems.

        Coordinates run leaf by leaf, each in C order. The dtype is the widest of the
        leaves', at least float32.
        """
        structure = self.in_structure()
        eye = jnp.eye(self.in_size(), dtype=common_dtype(structure))

        def column(e: Array) -> Array:
            return to_vector(self.mv(from_vector(e, structure)))

        return jax.vmap(column, out_axes=1)(eye)

    # Overridden: Lineax's sums and multiples promote mixed dtypes and lack `diagonal`.

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


class Sum(AbstractCurvature):
    """C₁ + C₂."""

    first: lx.AbstractLinearOperator
    second: lx.AbstractLinearOperator
    maker: ClassVar[str] = "C1 + C2"

    def __check_init__(self) -> None:
        check, structure = Check("C1 + C2"), self.first.in_structure()
        check.symmetric(self.first)
        check.symmetric(self.second)
        check.like("C2's params", self.second.in_structure(), structure, "C1's")

    @property
    def is_psd(self) -> bool:
        """Whether both are positive semidefinite."""
        return all(map(lx.is_positive_semidefinite, (self.first, self.second)))

    def product(self, vector: Params) -> Params:
        """C₁x + C₂x."""
        return add(self.first.mv(vector), self.second.mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.first.in_structure()

    def diagonal(self) -> Params:
        """diag(C₁) + diag(C₂)."""
        return add(diagonal_of(self.first), diagonal_of(self.second))


class Scaled(AbstractCurvature):
    """A multiple aC, which `C * a`, `C / a` and `-C` return.

    It is known to be positive semidefinite only if C is and a is a Python number >= 0,
    because the sign of an array is not known while tracing.
    """

    curvature: lx.AbstractLinearOperator
    factor: Float[Array, ""]
    is_non_negative: bool = eqx.field(static=True)
    maker: ClassVar[str] = "C * a"

    def __init__(self, curvature: lx.AbstractLinearOperator, factor: Any) -> None:
        check = Check("C * a")
        check.symmetric(curvature)
        self.curvature = curvature
        self.factor = as_scalar(check, "a", factor)
        is_number = isinstance(factor, int | float | np.number)
        self.is_non_negative = is_number and bool(factor >= 0)

    @property
    def is_psd(self) -> bool:
        """Whether C is positive semidefinite, and a is known to be >= 0."""
        return self.is_non_negative and lx.is_positive_semidefinite(self.curvature)

    def product(self, vector: Params) -> Params:
        """a C x."""
        return scale(self.factor, self.curvature.mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.curvature.in_structure()

    def diagonal(self) -> Params:
        """a diag(C)."""
        return scale(self.factor, diagonal_of(self.curvature))


def diagonal_of(operator: lx.AbstractLinearOperator) -> Params:
    """The diagonal of any square Lineax operator, in float32 or wider."""
    if isinstance(operator, AbstractCurvature):
        return widen(operator.diagonal())
    structure = jax.eval_shape(widen, operator.in_structure())
    return from_vector(lx.diagonal(operator), structure)


def unknown_diagonal(what: str, name: str) -> NotImplementedError:
    """The error for an operator whose diagonal is not known."""
    return NotImplementedError(
        f"The diagonal of {what} is not known. Estimate it with "
        f"`ok.hutchinson_diag({name}, key=key, num_probes=...)` or, for a small "
        f"problem, take `jnp.diagonal({name}.as_matrix())`."
    )


def tags_of(operator: lx.AbstractLinearOperator) -> frozenset[object]:
    """The Lineax tags of a symmetric operator."""
    if lx.is_positive_semidefinite(operator):
        return frozenset({lx.symmetric_tag, lx.positive_semidefinite_tag})
    return frozenset({lx.symmetric_tag})


def as_scalar(check: Check, name: str, value: Any) -> Array:
    """Converts a real number or array to a floating scalar array, not weakly typed."""
    dtype = jnp.result_type(value)
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    is_real = is_floating or jnp.issubdtype(dtype, jnp.integer)
    check.that(is_real, f"needs a real {name}, got {dtype}.", TypeError)
    check.shapes("For many, `jax.vmap` over them.", **{name: (value, ())})
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    return jnp.asarray(value, dtype if is_floating and is_array else float)


# Lineax's queries, for every curvature.


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
def _(operator: AbstractCurvature) -> lx.AbstractLinearOperator:
    return operator


@lx.linearise.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> lx.AbstractLinearOperator:
    # A curvature composed of others is linearised part by part.
    def is_part(x: Any) -> bool:
        return isinstance(x, lx.AbstractLinearOperator) and x is not operator

    return jax.tree.map(
        lambda x: lx.linearise(x) if is_part(x) else x, operator, is_leaf=is_part
    )


@lx.materialise.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> lx.AbstractLinearOperator:
    structure, tags = operator.in_structure(), tags_of(operator)
    return lx.materialise(lx.FunctionLinearOperator(operator.mv, structure, tags))


@lx.diagonal.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> Array:
    return to_vector(operator.diagonal())


@lx.tridiagonal.register(AbstractCurvature)
def _(operator: AbstractCurvature) -> tuple[Array, Array, Array]:
    matrix = operator.as_matrix()
    return tuple(jnp.diagonal(matrix, k) for k in (0, -1, 1))
