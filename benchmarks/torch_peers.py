"""Running a PyTorch peer on the device that JAX uses, and waiting for it."""

from collections.abc import Callable
from typing import Any

import jax


def on_device(torch: Any, tensor: Any) -> Any:
    """The tensor on a GPU, if JAX is on one and PyTorch can use it."""
    wanted = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return tensor.to("cuda") if wanted else tensor


def synchronised(torch: Any, step: Callable[[], Any]) -> Callable[[Any], Any]:
    """A step for `Candidate`: it ends when the device has ended."""

    def run(carry: Any) -> Any:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return carry

    return run
