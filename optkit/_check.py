"""Argument checks, all with one style of message.

A message names the call in backticks, says what arrived, and what to do next.
Checks look at static facts only (structure, shape, dtype, Python numbers), so they
cost nothing inside `jax.jit` and never wait for a device.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


def check_decay(call: str, name: str, value: object) -> None:
    """Raises unless a Python number is a decay in [0, 1); arrays pass unseen."""
    number = _as_number(call, name, value)
    if number is not None and not 0.0 <= number < 1.0:
        raise ValueError(
            f"`{call}` needs 0 <= {name} < 1, got {name}={value!r}. It is the decay "
            f"of the old value: a paper that weighs the new value by beta calls it "
            f"1 - beta."
        )


def check_non_negative(call: str, name: str, value: object) -> None:
    """Raises unless a Python number is finite and >= 0; arrays pass unseen."""
    number = _as_number(call, name, value)
    if number is not None and not 0.0 <= number < math.inf:
        raise ValueError(
            f"`{call}` needs a finite {name} >= 0, got {name}={value!r}. Pass zero or "
            f"a positive number: no sign is taken from it."
        )


def check_inexact(call: str, tree: PyTree) -> None:
    """Raises a `TypeError` at the first leaf that is neither floating nor complex."""
    for path, leaf in jtu.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"`{call}` needs floating or complex leaves, got {dtype} at "
                f"params{jtu.keystr(path)}. Leave such leaves out with "
                f"`optax.masked` or `optax.partition`."
            )


def check_real_params(call: str, params: PyTree) -> None:
    """Raises a `TypeError` at the first leaf that is not floating."""
    for path, leaf in jtu.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{call}` needs real floating leaves, got {dtype} at "
                f"params{jtu.keystr(path)}: its Hessian is of a real function of real "
                f"numbers. Split a complex leaf into its real and imaginary parts; "
                f"leave others out with `optax.masked` or `optax.partition`."
            )


def check_state_dtype(call: str, state_dtype: Any) -> None:
    """Raises a `TypeError` unless `state_dtype` is None or a floating dtype."""
    if state_dtype is not None and not jnp.issubdtype(state_dtype, jnp.floating):
        raise TypeError(
            f"`{call}` needs a floating state_dtype, got {state_dtype!r}. Pass None "
            f"for the params' own, widen to float32, or for example jnp.float32."
        )


class Difference(NamedTuple):
    """The first place where a tree is not like its reference."""

    kind: Literal["structure", "shape", "dtype"]
    where: str  # the path of the leaf, such as "['w']"
    got: Any
    wanted: Any


def first_difference(
    tree: PyTree,
    reference: PyTree,
    dtype_of: Callable[[Any], Any] | None = jnp.result_type,
) -> Difference | None:
    """Compares structure, then shape and dtype leaf by leaf.

    Args:
        tree: what arrived.
        reference: arrays or `jax.ShapeDtypeStruct`s.
        dtype_of: the dtype that a leaf of the tree should have; None allows any.

    Returns:
        Where they differ first, or None.
    """
    if (got := jax.tree.structure(tree)) != (want := jax.tree.structure(reference)):
        return Difference("structure", "", got, want)
    leaves = zip(
        jtu.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True
    )
    for (path, leaf), like in leaves:
        where, shape, dtype = jtu.keystr(path), jnp.shape(like), jnp.result_type(like)
        if jnp.shape(leaf) != shape:
            return Difference("shape", where, jnp.shape(leaf), shape)
        if dtype_of is not None and dtype_of(leaf) != dtype:
            return Difference("dtype", where, jnp.result_type(leaf), dtype)
    return None


def check_like(
    call: str,
    name: str,
    tree: PyTree,
    reference: PyTree,
    dtype_of: Callable[[Any], Any] = jnp.result_type,
) -> None:
    """Raises unless `tree` has the structure, shapes and dtypes of `reference`.

    Args:
        call: the public function to name in the message.
        name: what `tree` is to the caller, such as "gradients".
        tree: what arrived.
        reference: what the state was made for.
        dtype_of: the dtype in which a state keeps a leaf, if not its own.

    Raises:
        ValueError: if structure or a shape differs.
        TypeError: if a dtype differs.
    """
    if (found := first_difference(tree, reference, dtype_of)) is None:
        return
    kind, where, got, want = found
    again = "Call `init` again with the params that the gradients belong to."
    if kind == "structure":
        raise ValueError(
            f"`{call}` got {name} of another structure than the state's. {again}\n"
            f"  {name}: {got}\n  state: {want}"
        )
    if kind == "shape":
        raise ValueError(
            f"`{call}` got shape {got} at {name}{where}, and its state has {want}. "
            f"{again}"
        )
    raise TypeError(
        f"`{call}` got dtype {got} at {name}{where}, and its state has {want}. Cast "
        f"the {name} to the dtype of the params, as `jax.grad` returns them."
    )


def check_params(call: str, params: PyTree | None) -> None:
    """Raises a `ValueError` where a transform that reads params got none."""
    if params is None:
        raise ValueError(
            f"`{call}` reads the parameters, got params=None. Pass them: "
            f"`tx.update(grads, state, params)`."
        )


def check_pair(call: str, updates: PyTree, params: PyTree) -> None:
    """Raises a `ValueError` unless updates have structure and shapes of the params."""
    if (found := first_difference(updates, params, None)) is None:
        return
    kind, where, got, want = found
    again = "Pass the params that the updates are for."
    if kind == "structure":
        raise ValueError(
            f"`{call}` got updates of another structure than the params. {again}\n"
            f"  updates: {got}\n  params: {want}"
        )
    raise ValueError(
        f"`{call}` got shape {got} at updates{where}, and the params have {want} "
        f"there. {again}"
    )


def _as_number(call: str, name: str, value: object) -> float | None:
    """The value as a float where it is a number known without a device."""
    if callable(value) or isinstance(value, jax.Array):
        return None  # a schedule, or an array, traced or not: reading it may block
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return float(value)
    raise TypeError(
        f"`{call}` needs a number or a scalar array for {name}, got {value!r}."
    )


def check_real(
    call: str, name: str, tree: PyTree, place: str = "one of the `args`"
) -> None:
    """Raises a `TypeError` at the first leaf that is not floating.

    Args:
        call: the public function to name in the message.
        name: what `tree` is to the user.
        tree: arrays or numbers.
        place: where integers belong.

    Raises:
        TypeError: for any other dtype.
    """
    for path, leaf in jtu.tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{call}` needs real floating leaves, got {dtype} at "
                f"{name}{jtu.keystr(path)}. Hand integers over as {place}; split a "
                f"complex leaf into its real and imaginary parts."
            )


def check_vector(
    call: str, vector: PyTree, structure: PyTree, name: str = "vector"
) -> None:
    """Raises unless `vector` is what an operator on `structure` acts on.

    Args:
        call: the public name of the operator, for the message.
        vector: what arrived.
        structure: arrays or `jax.ShapeDtypeStruct`s.
        name: what `vector` is to the user.

    Raises:
        ValueError: if structure or a shape differs.
        TypeError: if a dtype differs.
    """
    if (found := first_difference(vector, structure)) is None:
        return
    kind, where, got, want = found
    if kind == "structure":
        raise ValueError(
            f"`{call}` needs {name} in the structure of the operator's params. Pass a "
            f"pytree like them.\n  {name}: {got}\n  the operator's params: {want}"
        )
    if kind == "shape":
        raise ValueError(
            f"`{call}` got shape {got} at {name}{where}, and the operator's params "
            f"have {want}. For many at once, `jax.vmap` the call."
        )
    raise TypeError(
        f"`{call}` got dtype {got} at {name}{where}, and the operator's params have "
        f"{want}. Cast with `optax.tree.cast_like`."
    )


def check_scalar(call: str, value: PyTree) -> None:
    """Raises a `ValueError` unless a loss returned one real floating scalar."""
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic | float)
    if not is_array or jnp.shape(value) != ():
        got = f"shape {jnp.shape(value)}" if is_array else type(value).__name__
        raise ValueError(
            f"`{call}` needs a loss that returns one real scalar, got {got}. Reduce "
            f"it, for example with `jnp.mean`, and return nothing beside it."
        )
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"`{call}` needs a loss that returns a real floating scalar, got "
            f"{jnp.result_type(value)}."
        )


def check_positive_int(call: str, name: str, value: object) -> None:
    """Raises a `ValueError` unless `value` is an integer >= 1, not traced."""
    is_integer = isinstance(value, int | np.integer)
    if not is_integer or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{call}` needs an integer {name} >= 1, got {value!r}.")


def check_batch(call: str, name: str, batch: PyTree) -> int:
    """The number of examples, after checking that all leaves have as many.

    Args:
        call: the public function to name in the message.
        name: what the batch is to the caller, such as "train".
        batch: arrays with the examples along their first axis.

    Returns:
        The length of the first axis, at least 1.

    Raises:
        ValueError: if leaves differ in it, have none, or there is no example.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"`{call}` needs a {name} whose leaves all have the examples along their "
            f"first axis, got shapes {shapes}. Close over what the examples share."
        )
    (size,) = sizes
    if not size:
        raise ValueError(f"`{call}` got an empty {name}. Pass at least one example.")
    return size


def check_index(call: str, name: str, index: object, size: int) -> jax.Array:
    """An integer array of coordinates; what is not traced is checked for range."""
    if not jnp.issubdtype(jnp.result_type(index), jnp.integer):
        raise TypeError(
            f"`{call}` needs integers for {name}, got {jnp.result_type(index)}."
        )
    if isinstance(index, int | np.integer | np.ndarray):
        numbers = np.asarray(index)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < size):
            raise IndexError(
                f"`{call}` needs 0 <= {name} < {size}, the number of coordinates, got "
                f"{index!r}. They are counted as in `as_matrix()`."
            )
    return jnp.asarray(index)


def check_positive(call: str, name: str, value: object) -> None:
    """Raises unless a Python number is finite and > 0; arrays pass unseen."""
    number = _as_number(call, name, value)
    if number is not None and not 0.0 < number < math.inf:
        raise ValueError(f"`{call}` needs a finite {name} > 0, got {name}={value!r}.")


def check_transform(call: str, name: str, transform: Any) -> None:
    """Raises a `TypeError` for what has not the two functions of an optax transform."""
    # `optax.MultiSteps` has them and is no `GradientTransformation`.
    if not all(callable(getattr(transform, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"`{call}` needs an optax transform for {name}, such as `optax.sgd(0.1)`, "
            f"got {transform!r}."
        )


def check_function(call: str, name: str, function: Any) -> None:
    """Raises a `TypeError` for what cannot be called."""
    if not callable(function):
        raise TypeError(
            f"`{call}` needs a function for {name}, got {function!r}. Pass the "
            f"function itself, not its value."
        )


def check_key(call: str, key: Any) -> None:
    """Raises a `TypeError` unless this is one random key, typed or raw."""
    dtype = getattr(key, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = dtype == jnp.uint32
    if not (is_typed and key.shape == ()) and not (is_raw and key.ndim == 1):
        raise TypeError(
            f"`{call}` needs one random key, got {key!r}. Pass "
            f"`key=jax.random.key(0)`, or one element of `jax.random.split`."
        )
