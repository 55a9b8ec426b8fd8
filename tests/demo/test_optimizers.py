import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.demo.optimizers import OPTIMIZERS, warmup_cosine


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_every_recipe_builds_for_any_number_of_steps(name, steps):
    # Oracle: identity, init under vmap keeps one state per seed.
    params = {"w": jnp.ones((3, 4), jnp.float32)}
    state = jax.vmap(OPTIMIZERS[name](steps).init)(params)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {3}


def test_schedule_peaks_after_a_tenth_and_ends_at_zero():
    # Oracle: closed form.
    schedule = warmup_cosine(0.5, 100)
    values = [float(schedule(t)) for t in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-7)
