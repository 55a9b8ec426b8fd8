"""Models of other libraries as pytrees: their arrays are params, the rest is not."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

SPLIT = (
    "Pass the arrays of a model, and add the rest inside the loss: `params, static = "
    "eqx.partition(model, eqx.is_inexact_array)`, `graph, params, rest = "
    "nnx.split(model, nnx.Param, ...)`, or what `model.init` returns."
)
MERGE = (
    "with the arrays of an NNX model. Rebuild the model in it: `nnx.merge(graph, "
    "params, rest, copy=True)`. The copy lets BatchNorm and Dropout change `rest`."
)


class WrongLeaf(NamedTuple):
    """A leaf that is not of the dtype that was asked for."""

    where: str  # its path, such as "['w']"
    dtype: Any  # or, if it is not an array, the name of its class
    is_of_a_model: bool  # whether it is a part of a model that is not a parameter


def first_leaf_unlike(tree: PyTree, kind: Any) -> WrongLeaf | None:
    """The first leaf whose dtype is not of a kind, such as `jnp.floating`."""
    for path, leaf in jtu.tree_leaves_with_path(tree):
        if not (eqx.is_array_like(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)):
            return WrongLeaf(jtu.keystr(path), type(leaf).__name__, True)
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), kind):
            is_field = any(isinstance(key, jtu.GetAttrKey) for key in path)
            is_model = is_field and not jnp.issubdtype(dtype, jnp.inexact)
            return WrongLeaf(jtu.keystr(path), dtype, is_model)
    return None


def call_rebuilt(function: Callable[..., Any], name: str, *args: Any, **kw: Any) -> Any:
    """Returns the value of a function, with arguments that belong to this trace.

    A variable of Flax NNX may change only in the trace that made it. If one is an
    argument, errors carry a note that calls the function `name`.
    """
    args, kw = jax.tree.map(lambda leaf: leaf, (args, kw))
    try:
        return function(*args, **kw)
    except Exception as error:
        if any(type(x).__module__.startswith("flax.nnx") for x in args):
            error.add_note(f"{name} {MERGE}")
        raise
