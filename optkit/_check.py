"""Argument checks: one `Check` object per public call.

A message names the call in backticks, then says what arrived and what to do next.
Checks read static facts only (structure, shape, dtype, Python numbers), so they cost
nothing inside `jax.jit` and never wait for a device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from ._types import is_floating, is_wide
from ._vector import SPLIT, call_rebuilt, first_difference, first_leaf_unlike

_REAL = (
    "Pass integers as data (in `args`, in the batch, or closed over), or exclude them "
    "with `optax.masked`. Split a complex leaf into its real and imaginary parts."
)


class Check(NamedTuple):
    """The checks of one public call. Every message starts with its name.

    Arguments are passed by keyword, so that the message can name them:
    `Check("ok.optim.adan").decay(b1=b1, b2=b2)`. A failed check raises an error.
    `check.optional` has the same checks, but numbers and objects may be None.
    """

    call: str
    allows_none: bool = False

    @property
    def optional(self) -> "Check":
        """The same checks, but None passes."""
        return self._replace(allows_none=True)

    def that(self, holds: Any, text: str, error: type[Exception] = ValueError) -> None:
        """Raises `error` with the call's name and `text` unless `holds` is true."""
        if not holds:
            raise error(f"`{self.call}` {text}".rstrip())

    # Numbers. Arrays are not read, because that may wait for a device.

    def decay(self, **values: Any) -> None:
        """Numbers that decay an old value: in [0, 1) even when rounded to float32."""
        advice = "It decays the old value. If beta weighs the new one, pass 1 - beta."
        wanted = "0 <= {name} < 1 in float32"
        self._numbers(values, lambda x: 0 <= x < 1 - 2**-25, wanted, advice)
        self.wide(**values)

    def wide(self, **values: Any) -> None:
        """Numbers, or arrays of 32 bits or more."""
        advice = "With `inject_hyperparams`, pass `hyperparam_dtype=jnp.float32`."
        self._each(values, is_wide, "{name} in float32 or wider", TypeError, advice)

    def non_negative(self, **values: Any) -> None:
        """Finite numbers >= 0."""
        self._numbers(values, lambda x: 0 <= x < np.inf, "a finite {name} >= 0")

    def positive(self, **values: Any) -> None:
        """Finite numbers > 0."""
        self._numbers(values, lambda x: 0 < x < np.inf, "a finite {name} > 0")

    def at_most(self, limit: Any, reason: str, **values: Any) -> None:
        """Numbers <= `limit`; `reason` says what the limit is."""
        self._numbers(values, lambda x: x <= limit, f"{{name}} <= {limit}, {reason}")

    def count(self, **values: Any) -> None:
        """Static integers >= 1."""

        def is_count(x: Any) -> Any:
            is_integer = isinstance(x, int | np.integer) and not isinstance(x, bool)
            return is_integer and x >= 1

        self._each(values, is_count, "an integer {name} >= 1", ValueError)

    # Objects.

    def instance(self, kinds: Any, wanted: str, **values: Any) -> None:
        """Instances of `kinds`; `wanted` describes them by example."""
        self._each(values, lambda x: isinstance(x, kinds), f"{wanted} for {{name}}")

    def function(self, **functions: Any) -> None:
        """Callables."""
        advice = "Pass the function itself, not its value."
        self._each(functions, callable, "a function for {name}", TypeError, advice)

    def transform(self, **transforms: Any) -> None:
        """Objects with `init` and `update`, such as `optax.MultiSteps`."""

        def is_transform(tx: Any) -> bool:
            return all(callable(getattr(tx, f, None)) for f in ("init", "update"))

        wanted = "an optax transform for {name}, such as `optax.sgd(0.1)`"
        self._each(transforms, is_transform, wanted)

    def key(self, key: Any) -> None:
        """One random key, typed or raw."""

        def is_key(key: Any) -> bool:
            dtype = getattr(key, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
                return key.shape == ()
            return dtype == jnp.uint32 and key.ndim == 1

        advice = "Pass `key=jax.random.key(0)`, or one element of `jax.random.split`."
        self._each({"key": key}, is_key, "one random {name}", TypeError, advice)

    def method(self, **solvers: Any) -> None:
        """Lineax solvers, including the methods of `ok`."""
        wanted = "a method such as `ok.CG()` or `lx.LU()`"
        self.instance(lx.AbstractLinearSolver, wanted, **solvers)

    def symmetric(self, operator: Any, name: str = "operator") -> None:
        """A symmetric Lineax operator with real floating leaves."""
        wanted = "a Lineax operator such as `ok.hessian(...)`"
        self.instance(lx.AbstractLinearOperator, wanted, **{name: operator})
        definite = lx.is_positive_semidefinite, lx.is_negative_semidefinite
        self.that(
            any(is_known(operator) for is_known in (lx.is_symmetric, *definite)),
            f"needs an operator known to be symmetric, got `{type(operator).__name__}`."
            " If it is, tag it with `lx.symmetric_tag` (`tags=` in Optimistix). If not,"
            " use `ok.GMRES()` or `lx.Normal(ok.CG())`.",
        )
        self.real(params=operator.in_structure())

    # Arrays and trees.

    def dtype(self, **dtypes: Any) -> None:
        """Floating dtypes."""
        advice = "Pass a dtype such as jnp.float32, or None for that of the params."
        self._each(dtypes, is_floating, "a floating {name}", TypeError, advice)

    def inexact(self, **trees: PyTree) -> None:
        """Trees with floating or complex leaves."""
        advice = "Exclude such leaves with `optax.masked` or `optax.partition`."
        self._dtypes(trees, jnp.inexact, "floating or complex", advice)

    def real(self, **trees: PyTree) -> None:
        """Trees with real floating leaves."""
        self._dtypes(trees, jnp.floating, "real floating", _REAL)

    def like(
        self,
        name: str,
        tree: PyTree,
        reference: PyTree,
        owner: str,
        advice: str = "",
        *,
        dtype_of: Callable[[Any], Any] | None = jnp.result_type,
    ) -> None:
        """A tree, called `name`, with the structure, shapes and dtypes of `reference`.

        `owner` is what the user calls the reference, such as "the params". `dtype_of`
        maps a leaf to the dtype to compare; None allows any dtype.
        """
        if (found := first_difference(tree, reference, dtype_of)) is None:
            return
        kind, where, got, want = found
        if kind == "structure":
            text = f". {advice}\n  {name}: {got}\n  {owner}: {want}"
        else:
            text = f", got {got} at {name}{where}, not {want}. {advice}"
        error = TypeError if kind == "dtype" else ValueError
        self.that(False, f"needs {name} in the {kind} of {owner}{text}", error)

    def shapes(self, advice: str = "", **pairs: tuple[Any, tuple[int, ...]]) -> None:
        """Arrays with the given shapes: name=(array, shape)."""
        for name, (x, shape) in pairs.items():
            text = f"needs {name} of shape {shape}, got {jnp.shape(x)}. {advice}"
            self.that(jnp.shape(x) == shape, text)

    def vector(self, **arrays: Any) -> None:
        """Real arrays with one axis."""
        self.real(**arrays)
        for name, x in arrays.items():
            text = f"needs {name} of shape (n,), got {jnp.shape(x)}. For many, vmap."
            self.that(jnp.ndim(x) == 1, text)

    def batch(self, **batches: PyTree) -> None:
        """Trees whose leaves share a leading axis of at least one example."""
        for name, batch in batches.items():
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
            sizes = {shape[0] if shape else 0 for shape in shapes}
            text = "needs at least one example along the first axis of all leaves of"
            text = f"{text} {name}, got shapes {shapes}. Close over data they share."
            self.that(len(sizes) == 1 and 0 not in sizes, text)

    # Checks that return a value.

    def prefix(self, name: str, prefix: PyTree, tree: PyTree, owner: str) -> PyTree:
        """Broadcasts each leaf of a prefix to all leaves of the tree below it."""
        try:
            return jax.tree.broadcast(prefix, tree)
        except ValueError as error:
            got, want = jax.tree.structure(prefix), jax.tree.structure(tree)
            text = (
                f"`{self.call}` needs {name} as one value, or as a prefix of {owner}."
            )
            raise ValueError(f"{text}\n  {name}: {got}\n  {owner}: {want}") from error

    def booleans(self, name: str, mask: PyTree, tree: PyTree, owner: str) -> PyTree:
        """Broadcasts a mask: one boolean per leaf of the tree, or one per entry."""

        def one(m: Any, leaf: Any) -> Any:
            dtype, shape, want = jnp.result_type(m), jnp.shape(m), jnp.shape(leaf)
            text = f"needs booleans in {name}, got {dtype}. Compare: `weights != 0`."
            self.that(dtype == jnp.bool_, text, TypeError)
            text = f"needs {name} of shape () or {want}, got {shape}."
            self.that(shape in {(), want}, text)
            return m

        return jax.tree.map(one, self.prefix(name, mask, tree, owner), tree)

    def index(self, name: str, index: Any, size: int) -> jax.Array:
        """Returns integers as an array; they must be in range, unless traced."""
        dtype = jnp.result_type(index)
        text = f"needs integers for {name}, got {dtype}."
        self.that(jnp.issubdtype(dtype, jnp.integer), text, TypeError)
        if isinstance(index, int | np.integer | np.ndarray):
            is_within = np.all((np.asarray(index) >= 0) & (np.asarray(index) < size))
            text = f"needs 0 <= {name} < {size}, got {index!r}."
            self.that(is_within, text, IndexError)
        return jnp.asarray(index)

    def scalar(self, loss: Any, name: str = "loss", has_aux: Any = False) -> Any:
        """Wraps a loss so that it raises unless it returns a real scalar, or a pair."""
        self.function(**{name: loss})

        def checked(*args: Any, **kwargs: Any) -> Any:
            out = call_rebuilt(loss, f"`{self.call}` called {name}", *args, **kwargs)
            value = out[0] if has_aux and isinstance(out, tuple) else out
            is_array = isinstance(value, jax.Array | np.ndarray | np.generic | float)
            got = f"shape {jnp.shape(value)}" if is_array else type(value).__name__
            advice = "Reduce it, for example with `jnp.mean`, and return nothing else."
            text = f"needs {name} to return one real scalar, got {got}. {advice}"
            self.that(is_array and jnp.shape(value) == (), text)
            dtype = jnp.result_type(value)
            text = f"needs {name} to return a real floating scalar, got {dtype}."
            self.that(is_floating(dtype), text, TypeError)
            return out

        return checked

    # Messages are built only if a check fails: `repr` of an array waits for a device.

    def _each(
        self,
        values: dict[str, Any],
        holds: Callable[[Any], Any],
        wanted: str,
        error: type[Exception] = TypeError,
        advice: str = "",
    ) -> None:
        for name, value in values.items():
            if not (value is None and self.allows_none) and not holds(value):
                text = f"needs {wanted.format(name=name)}, got {_short(value)}."
                self.that(False, f"{text} {advice}", error)

    def _numbers(
        self,
        values: dict[str, Any],
        holds: Callable[[float], bool],
        wanted: str,
        advice: str = "",
    ) -> None:
        for name, x in values.items():
            if callable(x) or isinstance(x, jax.Array):  # schedules, traced or not
                continue
            self._each({name: x}, _is_number, "a number or a scalar array for {name}")
            if x is not None and not holds(float(x)):
                text = f"needs {wanted.format(name=name)}, got {name}={x!r}."
                self.that(False, f"{text} {advice}")

    def _dtypes(
        self, trees: dict[str, PyTree], kind: Any, wanted: str, advice: str
    ) -> None:
        for name, tree in trees.items():
            if (leaf := first_leaf_unlike(tree, kind)) is not None:
                advice = SPLIT if leaf.is_of_a_model else advice
                got = f"{leaf.dtype} at {name}{leaf.where}"
                text = f"needs {wanted} leaves, got {got}. {advice}"
                self.that(False, text, TypeError)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.number | np.ndarray)
    return is_number and np.ndim(value) == 0 and not isinstance(value, bool)


def _short(value: Any) -> str:
    """The value as an error message shows it, in one short line."""
    text = repr(value)
    return text if len(text) < 80 and "\n" not in text else type(value).__name__
