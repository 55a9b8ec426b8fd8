"""Memory of a derivative: implicit and unrolled, as the solver takes more steps.

Nothing is run: what is shown is what the compiler says that the executable needs. A
matrix of the default 3,000 x 3,000 would be 36 MB.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optimistix as optx

import optkit as ok

from .measure import Row, compiled

STEPS = (10, 100, 1000, 10_000)
RATE = 0.5


def run(size: int, rounds: int) -> list[Row]:
    """Rows for ridge regression on `size` float32 weights by gradient descent."""
    x = jr.normal(jr.key(0), (size // 5, size), jnp.float32) / size**0.5
    targets = jnp.sin(jnp.arange(size // 5, dtype=jnp.float32))

    def ridge(w: Any, theta: Any) -> Any:
        return 0.5 * jnp.sum((x @ w - targets) ** 2) + 0.5 * jnp.vdot(
            jnp.exp(theta), w**2
        )

    def descend(w: Any, theta: Any) -> Any:
        return w - RATE * jax.grad(ridge)(w, theta)

    def unrolled(num_steps: int, **options: Any) -> Any:
        return lambda y0, theta: ok.unroll(
            descend, y0, theta, num_steps=num_steps, **options
        )

    def implicit(num_steps: int) -> Any:
        return ok.implicit_minimum(ridge)(unrolled(num_steps))

    def by_optimistix(y0: Any, theta: Any) -> Any:
        solver = optx.GradientDescent(RATE, rtol=1e-3, atol=1e-3)
        return optx.minimise(ridge, solver, y0, theta, max_steps=STEPS[0], throw=False)

    fits = {f"implicit, {n:,} steps": implicit(n) for n in STEPS}
    fits |= {f"unrolled, {n:,} steps": unrolled(n) for n in STEPS}
    fits |= {
        f"unrolled, {n:,} steps, checkpoints": unrolled(
            n, checkpoint_every=round(n**0.5)
        )
        for n in STEPS
    }
    fits["optimistix, default"] = lambda y0, theta: by_optimistix(y0, theta).value
    del rounds
    theta = jnp.zeros(size, jnp.float32)
    return [_row(*item, theta) for item in fits.items()]


def _row(name: str, fit: Any, theta: Any) -> Row:
    def step(theta: Any) -> Any:
        gradient = jax.grad(lambda theta: jnp.sum(fit(0 * theta, theta) ** 2))(theta)
        return theta + 1e-6 * gradient

    made = compiled(name, step, theta, donate=False)
    nan = float("nan")
    return Row(name, nan, nan, nan, nan, made.compile_seconds, made.temp_bytes)
