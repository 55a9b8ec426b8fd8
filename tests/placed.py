"""Trees whole or split over eight devices, on meshes of both kinds."""

import contextlib
from typing import Any

import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec


class Placed:
    """How leaves lie: on one device, or an axis of length 8 split over eight."""

    def __init__(self, axis_type: AxisType | None) -> None:
        self.mesh = axis_type and jax.make_mesh((8,), ("d",), axis_types=(axis_type,))

    @property
    def is_explicit(self) -> bool:
        """Whether types show how leaves are split."""
        return self.mesh is not None and AxisType.Explicit in self.mesh.axis_types

    def __call__(self, tree: Any, axis: int) -> Any:
        """Splits that axis of each leaf where its length is 8."""

        def put(x: Any) -> Any:
            is_split = x.ndim > axis and x.shape[axis] == 8
            axes = [None] * axis + ["d"] if is_split else []
            return jax.device_put(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

        return jax.tree.map(put, tree) if self.mesh else tree

    def context(self) -> Any:
        """The mesh, set."""
        return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()


placed = pytest.mark.parametrize(
    "place",
    [Placed(None), Placed(AxisType.Auto), Placed(AxisType.Explicit)],
    ids=["whole", "auto", "explicit"],
)
