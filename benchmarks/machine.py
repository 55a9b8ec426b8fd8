"""The machine, and how fast it copies and multiplies: the rates of the floor."""

import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .report import Floor

COPY_BYTES = 256 << 20  # larger than the caches
MATMUL_SIZE = 2048
REPEATS = 5


def describe() -> str:
    """One line with processor, cores, device and versions."""
    devices = jax.devices()
    kind = devices[0].device_kind
    on = f"{len(devices)} x {kind}" if len(devices) > 1 else kind
    return (
        f"{_processor()}, {os.cpu_count()} cores; device: {on}; Python "
        f"{platform.python_version()}, jax {jax.__version__}"
    )


def floor(*, num_bytes: float = 0.0, flops: float = 0.0) -> Floor:
    """The floor of counted work, at rates measured now."""
    return Floor(num_bytes, flops, *rates())


def rates() -> tuple[float, float]:
    """Bytes per second of a copy, FLOPs per second of a float32 matrix product."""
    x = jnp.ones(COPY_BYTES // 4, jnp.float32)
    a = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), jnp.float32)
    copying = _median_seconds(_scale(), x)
    multiplying = _median_seconds(_matmul(), a)
    return 2 * COPY_BYTES / copying, 2 * MATMUL_SIZE**3 / multiplying


def _median_seconds(fn: Callable[[Any], Any], x: Any) -> float:
    x = jax.block_until_ready(fn(x))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        x = jax.block_until_ready(fn(x))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


@functools.cache
def _scale() -> Callable[[Any], Any]:
    return jax.jit(lambda x: 0.999 * x, donate_argnums=0)


@functools.cache
def _matmul() -> Callable[[Any], Any]:
    return jax.jit(lambda a: a @ a * (1 / MATMUL_SIZE))


def _processor() -> str:
    """The name of the processor, if the system provides it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
