"""Argument checks: one object for each public call, one style of message.

A message names the call in backticks, says what arrived, and what to do next. Checks
look at static facts only (structure, shape, dtype, Python numbers), so they cost
nothing inside `jax.jit` and never wait for a device.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from ._vector import first_difference


class Check(NamedTuple):
    """The checks of one public call, whose name every message starts with.

    Most methods take what they check by keyword, so that a message can name it:
    `Check("ok.optim.adan").decay(b1=b1, b2=b2)`. They raise, or return nothing unless
    they say otherwise. `check.optional` has the same methods and lets None pass.
    """

    call: str
    allows_none: bool = False

    @property
    def optional(self) -> "Check":
        """The same checks, for arguments that may be None."""
        return self._replace(allows_none=True)

    def that(
        self, holds: Any, message: str, error: type[Exception] = ValueError
    ) -> None:
        """Raises an error with this message, which goes on after the call's name."""
        if not holds:
            raise error(f"`{self.call}` {message}")

    # Numbers. Arrays pass unseen: reading one may wait for a device.

    def decay(self, **values: Any) -> None:
        """Numbers in [0, 1), the decay of an old value."""
        self._numbers(
            values,
            lambda x: 0.0 <= x < 1.0,
            "needs 0 <= {name} < 1, got {name}={value!r}. It is the decay of the old "
            "value: a paper that weighs the new value by beta calls it 1 - beta.",
        )

    def non_negative(self, **values: Any) -> None:
        """Finite numbers >= 0."""
        wanted = "needs a finite {name} >= 0, got {name}={value!r}."
        self._numbers(values, lambda x: 0.0 <= x < math.inf, wanted)

    def positive(self, **values: Any) -> None:
        """Finite numbers > 0."""
        wanted = "needs a finite {name} > 0, got {name}={value!r}."
        self._numbers(values, lambda x: 0.0 < x < math.inf, wanted)

    def at_most(self, limit: Any, reason: str, **values: Any) -> None:
        """Numbers that a limit bounds, for the reason that stands behind it."""
        wanted = f"needs {{name}} <= {limit}, {reason}, got {{name}}={{value!r}}."
        self._numbers(values, lambda x: x <= limit, wanted)

    def count(self, **values: Any) -> None:
        """Integers >= 1, not traced."""
        for name, value in self._given(values):
            is_integer = isinstance(value, int | np.integer)
            self.that(
                is_integer and not isinstance(value, bool) and value >= 1,
                f"needs an integer {name} >= 1, got {value!r}.",
            )

    # Objects.

    def instance(self, kinds: Any, wanted: str, **values: Any) -> None:
        """Instances of a class, described in `wanted` with an example."""
        for name, value in self._given(values):
            self.that(
                isinstance(value, kinds),
                f"needs {wanted} for {name}, got {_short(value)}.",
                TypeError,
            )

    def function(self, **functions: Any) -> None:
        """What can be called."""
        for name, function in self._given(functions):
            self.that(
                callable(function),
                f"needs a function for {name}, got {_short(function)}. Pass the "
                f"function itself, not its value.",
                TypeError,
            )

    def transform(self, **transforms: Any) -> None:
        """Optax transforms, or what has their two functions, as `optax.MultiSteps`."""
        for name, tx in self._given(transforms):
            methods = [getattr(tx, method, None) for method in ("init", "update")]
            self.that(
                all(map(callable, methods)),
                f"needs an optax transform for {name}, such as `optax.sgd(0.1)`, got "
                f"{_short(tx)}.",
                TypeError,
            )

    def key(self, key: Any) -> None:
        """One random key, typed or raw."""
        dtype = getattr(key, "dtype", None)
        is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        is_raw = dtype == jnp.uint32
        self.that(
            is_typed and key.shape == () or is_raw and key.ndim == 1,
            f"needs one random key, got {_short(key)}. Pass `key=jax.random.key(0)`, "
            f"or one element of `jax.random.split`.",
            TypeError,
        )

    def method(self, **solvers: Any) -> None:
        """Methods for linear systems: Lineax solvers, and ours among them."""
        wanted = "a method such as `ok.CG()` or `lx.LU()`"
        self.instance(lx.AbstractLinearSolver, wanted, **solvers)

    def symmetric(self, operator: Any) -> None:
        """A symmetric Lineax operator on real floating leaves."""
        wanted = "a Lineax operator such as `ok.hessian(...)`"
        self.instance(lx.AbstractLinearOperator, wanted, operator=operator)
        self.that(
            lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator),
            f"needs a symmetric operator, got `{type(operator).__name__}` that is not "
            f"known to be. If it is, tag it: `lx.TaggedLinearOperator(operator, "
            f"lx.symmetric_tag)`, in Optimistix `tags=`. If it is not, use "
            f"`ok.GMRES()` or `lx.Normal(ok.CG())`.",
        )
        self.real(params=operator.in_structure())

    # Arrays and trees.

    def dtype(self, **dtypes: Any) -> None:
        """Floating dtypes."""
        for name, dtype in self._given(dtypes):
            self.that(
                jnp.issubdtype(dtype, jnp.floating),
                f"needs a floating {name}, got {dtype!r}. Pass None for the params' "
                f"own, or for example jnp.float32.",
                TypeError,
            )

    def inexact(self, **trees: PyTree) -> None:
        """Leaves that are floating or complex."""
        advice = "Leave such leaves out with `optax.masked` or `optax.partition`."
        self._dtypes(trees, jnp.inexact, "floating or complex", advice)

    def real(self, **trees: PyTree) -> None:
        """Leaves that are floating."""
        advice = (
            "Pass integers as data: in `args`, in the batch, or closed over; leave "
            "such params out with `optax.masked` or `optax.partition`. Split a complex "
            "leaf into its real and imaginary parts."
        )
        self._dtypes(trees, jnp.floating, "real floating", advice)

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
        """A tree in the structure, the shapes and the dtypes of another.

        Args:
            name: what the tree is to the user, such as "gradients".
            tree: what arrived.
            reference: arrays or `jax.ShapeDtypeStruct`s.
            owner: what the reference is to the user, such as "the params".
            advice: what to do.
            dtype_of: the dtype that a leaf of the tree should have; None allows any.

        Raises:
            ValueError: if structure or a shape differs.
            TypeError: if a dtype differs.
        """
        if (found := first_difference(tree, reference, dtype_of)) is None:
            return
        kind, where, got, want = found
        head = f"`{self.call}` needs {name} in the {kind} of {owner}"
        if kind == "structure":
            raise ValueError(f"{head}. {advice}\n  {name}: {got}\n  {owner}: {want}")
        error = ValueError if kind == "shape" else TypeError
        raise error(f"{head}, got {got} at {name}{where}, not {want}. {advice}")

    def shapes(self, advice: str = "", **pairs: tuple[Any, tuple[int, ...]]) -> None:
        """Arrays of given shapes: name=(array, shape)."""
        for name, (array, shape) in pairs.items():
            got = jnp.shape(array)
            self.that(
                got == shape, f"needs {name} of shape {shape}, got {got}. {advice}"
            )

    def vector(self, **arrays: Any) -> None:
        """Real arrays with one axis."""
        self.real(**arrays)
        for name, array in arrays.items():
            self.that(
                jnp.ndim(array) == 1,
                f"needs {name} of shape (n,), got {jnp.shape(array)}. For many, "
                f"`jax.vmap` it.",
            )

    def batch(self, **batches: PyTree) -> None:
        """Leaves that all have the examples along their first axis, at least one."""
        for name, batch in batches.items():
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
            sizes = {shape[0] if shape else None for shape in shapes}
            self.that(
                len(sizes) == 1 and None not in sizes and sizes != {0},
                f"needs a {name} whose leaves all have the examples along their first "
                f"axis, at least one, got shapes {shapes}. Close over what the "
                f"examples share.",
            )

    # What is handed back.

    def prefix(self, name: str, prefix: PyTree, tree: PyTree, owner: str) -> PyTree:
        """A prefix of a tree, spread: its leaf stands at each leaf below it."""
        try:
            return jax.tree.map(
                lambda x, below: jax.tree.map(lambda _: x, below), prefix, tree
            )
        except ValueError as error:
            raise ValueError(
                f"`{self.call}` needs {name} as one value, or as a prefix of {owner}.\n"
                f"  {name}: {jax.tree.structure(prefix)}\n"
                f"  {owner}: {jax.tree.structure(tree)}"
            ) from error

    def booleans(self, name: str, mask: PyTree, tree: PyTree, owner: str) -> PyTree:
        """A mask, spread over a tree: a boolean, or one for each entry, at each leaf."""

        def one(m: Any, leaf: Any) -> Any:
            self.that(
                jnp.result_type(m) == jnp.bool_ and jnp.shape(m) in {(), leaf.shape},
                f"needs booleans in {name}, one for a leaf or one for each entry, got "
                f"{jnp.result_type(m)} of shape {jnp.shape(m)} for a leaf of shape "
                f"{leaf.shape}. Compare, for example `weights != 0`.",
                ValueError if jnp.result_type(m) == jnp.bool_ else TypeError,
            )
            return m

        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), bool), tree)
        return jax.tree.map(one, self.prefix(name, mask, shapes, owner), shapes)

    def index(self, name: str, index: Any, size: int) -> jax.Array:
        """An integer array of coordinates; what is not traced must be in range."""
        self.that(
            jnp.issubdtype(jnp.result_type(index), jnp.integer),
            f"needs integers for {name}, got {jnp.result_type(index)}.",
            TypeError,
        )
        if isinstance(index, int | np.integer | np.ndarray):
            self.that(
                np.all((np.asarray(index) >= 0) & (np.asarray(index) < size)),
                f"needs 0 <= {name} < {size}, got {index!r}.",
                IndexError,
            )
        return jnp.asarray(index)

    def scalar(self, loss: Any, name: str = "loss") -> Callable[..., Any]:
        """The loss, which raises when called unless it returns one real scalar."""
        self.function(**{name: loss})

        def checked(*args: Any, **kwargs: Any) -> Any:
            value = loss(*args, **kwargs)
            is_array = isinstance(value, jax.Array | np.ndarray | np.generic | float)
            shape = f"shape {jnp.shape(value)}" if is_array else type(value).__name__
            self.that(
                is_array and jnp.shape(value) == (),
                f"needs {name} to return one real scalar, got {shape}. Reduce it, for "
                f"example with `jnp.mean`, and return nothing else.",
            )
            self.that(
                jnp.issubdtype(jnp.result_type(value), jnp.floating),
                f"needs {name} to return a real floating scalar, got "
                f"{jnp.result_type(value)}.",
                TypeError,
            )
            return value

        return checked

    # How.

    def _given(self, values: dict[str, Any]) -> list[tuple[str, Any]]:
        """The values to look at, less those that may be None and are."""
        return [
            (name, x)
            for name, x in values.items()
            if x is not None or not self.allows_none
        ]

    def _numbers(
        self, values: dict[str, Any], holds: Callable[[float], bool], message: str
    ) -> None:
        for name, value in self._given(values):
            number = self._as_number(name, value)
            if number is not None and not holds(number):
                text = message.format(name=name, value=value)
                raise ValueError(f"`{self.call}` {text}")

    def _as_number(self, name: str, value: Any) -> float | None:
        """The value as a float where it is a number known without a device."""
        if callable(value) or isinstance(value, jax.Array):
            return None  # a schedule, or an array, traced or not
        is_number = isinstance(value, int | float | np.number)
        is_scalar = isinstance(value, np.ndarray) and value.ndim == 0
        self.that(
            (is_number or is_scalar) and not isinstance(value, bool),
            f"needs a number or a scalar array for {name}, got {_short(value)}.",
            TypeError,
        )
        return float(value)

    def _dtypes(
        self, trees: dict[str, PyTree], kind: Any, wanted: str, advice: str
    ) -> None:
        for name, tree in trees.items():
            for path, leaf in jtu.tree_leaves_with_path(tree):
                dtype = jnp.result_type(leaf)
                self.that(
                    jnp.issubdtype(dtype, kind),
                    f"needs {wanted} leaves, got {dtype} at {name}{jtu.keystr(path)}. "
                    f"{advice}",
                    TypeError,
                )


def _short(value: Any) -> str:
    """The value as an error shows it: one line, not too long."""
    text = repr(value)
    return text if len(text) < 80 and "\n" not in text else type(value).__name__
