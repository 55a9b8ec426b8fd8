"""Memory of a derivative, implicit and unrolled, as the solver takes more steps.

Nothing is run: the numbers are what the compiler reports for the executable. For
comparison, a matrix of the default 3,000 x 3,000 has 36 MB.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

import optkit as ok

from .measure import compiled
from .peers import peer
from .report import NAN, Job, Line, Plot, Result, Role, Row, Table, at_most

STEPS = (10, 100, 1000, 10_000)
RATE = 0.5
WAYS = ("implicit", "unrolled", "unrolled, checkpoints")


def run(size: int, rounds: int) -> Result:
    """Compiles ridge regression with `size` float32 weights by gradient descent."""
    del rounds
    theta = jnp.zeros(size, jnp.float32)
    rows = {name: _row(name, fit, theta) for name, fit in _fits(size).items()}
    if peer("optimistix") is not None:
        name = "optimistix, default"
        rows[name] = _row(name, _by_optimistix(size), theta, "peer")
    table = Table("Gradient of a solution", "", list(rows.values()))

    def temporaries(way: str) -> list[float]:
        return [_temporaries(rows[_name(way, n)]) for n in STEPS]

    lines = [Line(way, "ours", STEPS, temporaries(way)) for way in WAYS]
    plot = Plot(
        "memory", "Temporary memory of a gradient", "solver steps", "bytes", lines
    )
    implicit = temporaries("implicit")
    targets = [
        at_most(
            1.0,
            implicit[-1] / implicit[0],
            "Implicit differentiation needs as much memory for 10,000 solver steps as "
            "for 10",
        ),
        at_most(
            1.0,
            max(implicit) / (4.0 * size**2),
            f"For n = {size:,}, the temporaries are smaller than an n × n matrix",
        ),
    ]
    return Result([table], targets, [plot])


def _fits(size: int) -> dict[str, Any]:
    ridge = _ridge(size)

    def descend(w: Any, theta: Any) -> Any:
        return w - RATE * jax.grad(ridge)(w, theta)

    def unrolled(num_steps: int, **options: Any) -> Any:
        return lambda y0, theta: ok.unroll(
            descend, y0, theta, num_steps=num_steps, **options
        )

    makers = (
        lambda n: ok.implicit_minimum(ridge)(unrolled(n)),
        unrolled,
        lambda n: unrolled(n, checkpoint_every=round(n**0.5)),
    )
    return {
        _name(way, n): make(n)
        for way, make in zip(WAYS, makers, strict=True)
        for n in STEPS
    }


def _by_optimistix(size: int) -> Any:
    optx = peer("optimistix")
    ridge = _ridge(size)

    def fit(y0: Any, theta: Any) -> Any:
        solver = optx.GradientDescent(RATE, rtol=1e-3, atol=1e-3)
        options = {"max_steps": STEPS[0], "throw": False}
        return optx.minimise(ridge, solver, y0, theta, **options).value

    return fit


def _ridge(size: int) -> Any:
    rows = max(size // 5, 1)
    x = jr.normal(jr.key(0), (rows, size), jnp.float32) / size**0.5
    targets = jnp.sin(jnp.arange(rows, dtype=jnp.float32))

    def ridge(w: Any, theta: Any) -> Any:
        penalty = 0.5 * jnp.vdot(jnp.exp(theta), w**2)
        return 0.5 * jnp.sum((x @ w - targets) ** 2) + penalty

    return ridge


def _row(name: str, fit: Any, theta: Any, role: Role = "ours") -> Row:
    def step(theta: Any) -> Any:
        gradient = jax.grad(lambda theta: jnp.sum(fit(0 * theta, theta) ** 2))(theta)
        return theta + 1e-6 * gradient

    made = compiled(name, step, theta, donate=False)
    return Row(name, role, compile_seconds=made.compile_seconds, memory=made.memory)


def _temporaries(row: Row) -> float:
    return row.memory.temporaries if row.memory else NAN


def _name(way: str, num_steps: int) -> str:
    return f"{way}, {num_steps:,} steps"


JOB = Job(
    title="Memory of a derivative, as the solver takes more steps",
    run=run,
    size=3_000,
    unit="float32 weights of a ridge regression",
    reading=(
        "An implicit derivative stores nothing of the solver's path. An unrolled one "
        "stores every iterate; with checkpoints it stores about the square root of "
        "their number, and pays with one more forward pass. Nothing is run here: the "
        "numbers are the compiler's."
    ),
)
