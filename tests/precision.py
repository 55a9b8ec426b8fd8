"""Comparisons in the precision of the run: float64, or float32 on request."""

from typing import Any

import jax
import numpy as np

X64 = jax.config.read("jax_enable_x64")
FLOAT = jax.numpy.result_type(float)


def assert_allclose(
    actual: Any,
    desired: Any,
    rtol: float = 1e-7,
    atol: float = 0.0,
    *,
    float32: float = 1e-5,
    **options: Any,
) -> None:
    """NumPy's. With x64 off no tolerance is below `float32`, by default 84 roundings.

    An entry then counts as close, too, where it is so beside the largest of `desired`,
    or beside 1 where all are zero and `atol` is not.
    """
    if not (X64 or jax.config.jax_enable_x64):
        desired = np.asarray(desired)
        peak = np.max(np.abs(desired[np.isfinite(desired)]), initial=0)
        rtol = max(rtol, float32)
        atol = max(atol, float32 * float(peak or atol > 0))
    np.testing.assert_allclose(actual, desired, rtol, atol, **options)
