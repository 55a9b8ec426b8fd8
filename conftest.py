"""One setting for all tests: x64, strict promotion, 8 virtual devices, fixed seeds."""

import importlib.metadata
import os

# A test compiles for seconds and runs for milliseconds. A function of forty operations
# compiles in 190 ms; without most of XLA's optimizations in 120, and by the older of
# the two code generators of 0.10 in 60. `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest` has
# what users have.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_use_fusion_emitters=false"
        if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != "0"
        and importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import numpy as np
import pytest

# `JAX_ENABLE_X64=0 pytest` has the suite in float32, without the tests marked `x64`.
jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1") != "0")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update(
    "jax_disable_most_optimizations",
    os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != "0",
)


def pytest_runtest_setup(item):
    """Without x64, tests that are about float64 by nature are skipped."""
    if item.get_closest_marker("x64") and not jax.config.read("jax_enable_x64"):
        pytest.skip("needs float64")


@pytest.fixture(scope="module", autouse=True)
def freed():
    """Frees what a file compiled, after it.

    Each C++ exception, and JAX throws many as it traces, looks through all code that is
    compiled: in a process that holds thousands of functions that was half of the time.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    """One key, the same in every test; split it."""
    return jax.random.key(0)


@pytest.fixture
def rng():
    """A NumPy generator for oracles, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def standard_promotion():
    """For optax's own wrappers, some of which mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def as_a_user_has_it(request):
    """Docstring examples show JAX's own defaults: float32, standard promotion."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield
