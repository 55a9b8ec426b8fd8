"""Runs PyTorch on the device that JAX uses, and waits for it."""

from collections.abc import Callable
from typing import Any

import jax


def on_device(torch: Any, tensor: Any) -> Any:
    """Moves the tensor to the GPU, if JAX uses one and PyTorch can."""
    wanted = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return tensor.to("cuda") if wanted else tensor


def synchronised(torch: Any, step: Callable[[], Any]) -> Callable[[Any], Any]:
    """Turns a step into the `run` of a `Candidate`, which waits for the device."""

    def run(carry: Any) -> Any:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return carry

    return run
