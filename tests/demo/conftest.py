import numpy as np
import pytest

from optkit.demo.training import Run


@pytest.fixture
def runs(rng):
    """Two finished runs of 20 steps and 3 seeds, made up."""

    def run():
        steps = np.arange(0, 21, 2)
        train_loss = np.exp(-0.2 * steps[:, None] + 0.1 * rng.normal(size=(11, 3)))
        accuracy = rng.uniform(0.8, 0.9, size=(11, 3)).astype(np.float32)
        return Run(steps, train_loss.astype(np.float32), accuracy, 0.5, 2.0, ())

    return {"adamw": run(), "adan": run()}
