"""How a solve ended, and what to do if it failed."""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

# As Equinox does, so that both agree: it does not publish what it read.
_ON_ERROR = os.environ.get("EQX_ON_ERROR", "raise")


_Item: Any = type(lx.RESULTS.successful)
_Enumeration: Any = type(lx.RESULTS)


class Result(_Item):
    """An item of `ok.RESULTS`, or an array of items: one per step or member."""

    def __getitem__(self, index: Any) -> "Result":
        """The items at an index of the array."""
        return jax.tree.map(lambda codes: codes[index], self)

    def __str__(self) -> str:
        """The text of one item; for many, how often each occurs and its text."""
        (codes,) = jax.tree.leaves(self)
        if isinstance(codes, Tracer) or not jnp.ndim(codes):
            return RESULTS[self] or "successful"
        kinds, counts = np.unique(codes, return_counts=True)
        texts = [str(Result(np.asarray(kind), RESULTS)) for kind in kinds]
        rows = zip(counts, texts, strict=True)
        lines = [f"{n} of {codes.size}: {text}" for n, text in rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """The same, in one pair of brackets."""
        return f"ok.RESULTS<{self}>"


class _Indexed(_Enumeration):
    """Makes a `Result` of every item that an enumeration returns."""

    def __getattr__(cls, name: str) -> Any:
        return _indexed(super().__getattr__(name))

    def __getitem__(cls, item: Any) -> str:
        # A step of a NumPy history holds a NumPy number, which Equinox does not accept
        # as a code.
        def array(code: Any) -> Any:
            return np.asarray(code) if isinstance(code, np.generic) else code

        return super().__getitem__(jax.tree.map(array, item))

    @property
    def where(cls) -> Callable[..., Any]:
        """The first of two items if a flag is true, else the second."""
        return lambda *args: _indexed(lx.RESULTS.where.__func__(cls, *args))

    @property
    def promote(cls) -> Callable[..., Any]:
        """The item of this enumeration with the same code as one of Lineax's."""
        # Equinox looks the code up in an array, which fails inside `jax.shard_map`.
        return _indexed


def _indexed(item: Any) -> Result:
    return Result(*jax.tree.leaves(item), RESULTS)


class RESULTS(lx.RESULTS, metaclass=_Indexed):  # pyright: ignore  # as Equinox can
    """How a solve ended: the results of Lineax and those of optkit."""

    indefinite = (
        "The damped curvature is not positive definite: along some direction its "
        "curvature is negative, or zero to rounding. Raise `damping`, use a curvature "
        "that cannot be indefinite such as `ok.gauss_newton` or `ok.empirical_fisher`, "
        "or use a method that allows it: `lx.LU()` or `ok.GMRES()`. In the derivative "
        "of a minimum, it means that the solver stopped elsewhere, or that the minimum "
        "is not isolated: see `ok.check_implicit`."
    )
    inaccurate = (
        "The conjugate gradient residual stopped falling above `rtol`, because of "
        "rounding. Raise `rtol` or `damping`, pass a `preconditioner`, or compute in "
        "float64."
    )
    diverging = (
        "The Neumann series is diverging: the last term is larger than the one before. "
        "Lower `step_size` below 2 / (largest eigenvalue) or, for a Hessian, leave it "
        "None to have it estimated. If the curvature is indefinite, raise `damping`."
    )
    undamped = (
        "A curvature of low rank has no inverse without damping. Pass a number > 0: "
        "`ok.invert(..., damping=...)` or `ok.implicit_minimum(..., damping=...)`."
    )
    nonfinite_operator = (
        "The curvature is NaN or infinite. Check the params and the batch that it was "
        "made from."
    )
    bad_preconditioner = (
        "The preconditioner is not positive definite: rᵀMr <= 0 for a residual r. Pass "
        "a positive definite one, such as `ok.nystrom_preconditioner(P)`, or none."
    )
    stalled = (
        "GMRES stopped making progress above `rtol`: the operator is singular or too "
        "badly conditioned for this dtype, or `restart` is too small. Raise `restart` "
        "or `rtol`, use `lx.LU()` if the matrix fits in memory, or compute in float64."
    )
    nonfinite_solution = (
        "The solution to differentiate is NaN or infinite. Check how the solver ended, "
        "its starting point `y0`, and `args`."
    )
    singular_matrix = (
        "The matrix of a linear solve is singular to rounding, or not finite. Add "
        "damping or a small regulariser to the problem. In the derivative of a "
        "solution, the matrix is the Jacobian of the optimality conditions there: "
        "check its conditioning with `ok.check_implicit`."
    )
    inexact_solve = (
        "A linear solve missed its tolerance: the true residual |b - A x| / |b| is too "
        "large. Its matrix may be singular or badly conditioned. Allow more steps, "
        "pass another `solver=`, or compute in float64. In the derivative of a "
        "solution, the matrix is the Jacobian of the optimality conditions: check it "
        "with `ok.check_implicit`."
    )
    nonfinite_iterate = (
        "An iterate became NaN or infinite: the iteration diverged, or its mapping is "
        "not finite there. The best iterate before it is returned. Check `y0` and "
        "`args`; lower `mixing`, raise `ridge`, or damp the mapping."
    )
    nonfinite_gradient = (
        "A gradient or an iterate is NaN or infinite: the step was not taken, and the "
        "variables are unchanged. Check the batch; if it is finite, lower the step "
        "sizes. To differentiate through steps of `optax.adam`, give it an `eps_root`."
    )
    bad_penalty = (
        "The penalty is not positive and finite: the step was not taken, and the "
        "variables are unchanged. Pass a schedule that stays above zero."
    )
    cancellation = (
        "The two lower iterates agree to rounding, so the difference of their "
        "gradients, times the penalty, is noise. Cap the penalty (a dtype allows about "
        "1 / sqrt(eps)), or compute in a wider dtype."
    )
    schedule_bounds = (
        "The step sizes or the penalty are outside the bounds under which the method "
        "is known to converge. The step was taken."
    )


_NEAREST_IN_LINEAX = {
    "indefinite": lx.RESULTS.breakdown,
    "inaccurate": lx.RESULTS.stagnation,
    "diverging": lx.RESULTS.breakdown,
    "undamped": lx.RESULTS.singular,
    "nonfinite_operator": lx.RESULTS.breakdown,
    "bad_preconditioner": lx.RESULTS.breakdown,
    "stalled": lx.RESULTS.stagnation,
    "nonfinite_solution": lx.RESULTS.nonfinite_input,
    "singular_matrix": lx.RESULTS.singular,
    "inexact_solve": lx.RESULTS.stagnation,
    "nonfinite_input": lx.RESULTS.nonfinite_input,
    "max_steps_reached": lx.RESULTS.max_steps_reached,
}


def nearest_in_lineax(outcome: Any) -> Any:
    """Lineax's own result that is closest in meaning."""
    result = lx.RESULTS.successful
    for name, nearest in _NEAREST_IN_LINEAX.items():
        result = lx.RESULTS.where(outcome == getattr(RESULTS, name), nearest, result)
    return result


def first_failure(*cases: tuple[Any, Any]) -> Any:
    """The result of the first case (holds, result) that holds, else success."""
    outcome: Any = RESULTS.successful
    for holds, result in reversed(cases):
        outcome = RESULTS.where(holds, result, outcome)
    return outcome


def gives_nan() -> bool:
    """Whether failures give NaN instead of raising an error."""
    return _ON_ERROR == "nan"


def raise_if(
    failed: Bool[Array, ""], value: PyTree, error_if: Callable[..., PyTree]
) -> PyTree:
    """Returns `value`; if it `failed`, calls `error_if(one, failed)`, `one` a scalar.

    A conditional on the value itself would bring sharded leaves to one device.

    Under `jax.vmap`, Equinox raises if any member of the batch has failed, which is all
    that a program can do. With `EQX_ON_ERROR=nan` in the environment, it would also
    replace all members by NaN. Here only the failed ones and their derivatives are NaN.
    """
    one = jnp.ones((), jnp.float32)
    one = jnp.where(failed, jnp.nan, one) if gives_nan() else error_if(one, failed)
    return jax.tree.map(lambda x: x * one.astype(x.dtype), value)


def raise_failure(outcome: Any, value: PyTree) -> PyTree:
    """Returns `value`, or raises the text of an outcome that is a failure."""
    return raise_if(outcome != RESULTS.successful, value, outcome.error_if)


def described(self: Any) -> str:
    """An info or a report in one line per field: numbers, shapes and texts."""

    def shown(value: Any) -> str:
        is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
        is_known = is_array and not isinstance(value, Tracer)
        if is_known and jnp.ndim(value) == 0:
            return f"{value.item():.6g}" if value.dtype.kind in "fiu" else str(value)
        return str(value) if isinstance(value, Result) else eqx.tree_pformat(value)

    fields = self._asdict()
    width = max(map(len, fields))
    indent = "\n" + " " * (width + 4)
    rows = [(name, shown(x).replace("\n", indent)) for name, x in fields.items()]
    lines = [f"  {name:{width}}  {text}" for name, text in rows]
    return "\n".join([type(self).__name__, *lines])
