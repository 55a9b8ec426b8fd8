"""The optimizers of the demo: functions from the number of steps to a transform."""

from collections.abc import Callable
from typing import TypeAlias

import jax.random as jr
import optax

import optkit as ok

Recipe: TypeAlias = Callable[[int], optax.GradientTransformation]
"""Maps the number of steps, which the schedule needs, to the transform."""


def warmup_cosine(peak: float, steps: int) -> optax.Schedule:
    """Rises to `peak` over the first tenth of the steps, then falls to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps)


# The peak learning rates have the best mean accuracy on 800 held-out training digits
# (never the test digits) among 8 or 9 values, a factor of 2 to 2.5 apart: AdamW 5e-4 to
# 6.4e-2, Adan 2e-3 to 0.32, AdaHessian 0.01 to 2.56, M-FAC 2.5e-3 to 0.32; 2000 steps,
# 5 seeds that the default run does not use. Weight decay was not tuned: 0.01 is common
# for AdamW and used for AdaHessian too, 0.02 is what Adan's authors advise, M-FAC has
# none. For M-FAC, a damping of 1e-3 or 0.1 and a window of 64, tried at a few rates,
# were not better by more than the spread over seeds.
OPTIMIZERS: dict[str, Recipe] = {
    "adamw": lambda steps: optax.adamw(warmup_cosine(1.6e-2, steps), weight_decay=0.01),
    "adan": lambda steps: ok.optim.adan(warmup_cosine(4e-2, steps), weight_decay=0.02),
    "adahessian": lambda steps: ok.optim.with_hutchinson(
        ok.optim.adahessian(warmup_cosine(0.32, steps), weight_decay=0.01),
        key=jr.key(0),
    ),
    "mfac": lambda steps: ok.optim.mfac(
        warmup_cosine(4e-2, steps), window=32, damping=1e-2, momentum=0.9
    ),
}
