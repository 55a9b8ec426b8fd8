"""Draws the figures at the top of the guides, each from a small run of optkit.

python docs/hooks/figures.py
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import matplotlib.pyplot as plt
import numpy as np
import optax

import optkit as ok

FOLDER = Path(__file__).parents[1] / "images"
GREY = "#808890"  # readable on white and on black
COLOURS = ["#4c78d8", "#e8833a", "#3ba272", "#b065c8", "#d84c5f"]
STYLE: dict[str, Any] = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": "medium",
    "figure.figsize": (6.4, 2.6),
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "lines.linewidth": 1.8,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "optkit",
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def valley(y: jax.Array) -> jax.Array:
    """A curved, narrow valley with its minimum at (1, 1)."""
    return 0.05 * (1 - y[0]) ** 2 + (y[1] - y[0] ** 2) ** 2


def bowl(y: jax.Array) -> jax.Array:
    """A bowl with curvatures 100 times apart along the axes, minimum at (1, 1)."""
    return 0.02 * (1 - y[0]) ** 2 + 2.0 * (y[1] - 1) ** 2


def contours(ax: Any, f: Callable[[Any], Any], x: Any, y: Any, **options: Any) -> None:
    """Draws the level sets of a function of the plane."""
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    values = jax.vmap(jax.vmap(f))(grid)
    ax.contour(x, y, values, colors=GREY, linewidths=0.6, alpha=0.6, **options)


def path(f: Callable[[Any], Any], tx: Any, start: Sequence[float]) -> np.ndarray:
    """The iterates of an optimizer."""
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(y: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(f)(y), state, y, value_fn=f)
        return optax.apply_updates(y, updates), state

    y = jnp.array(start)
    state, iterates = tx.init(y), [y]
    for _ in range(120):
        y, state = step(y, state)
        iterates.append(y)
    return np.stack(iterates)


def optimizer(
    f: Callable[[Any], Any], start: Sequence[float], **transforms: Any
) -> Callable[[], None]:
    """A figure of the iterates of two optimizers, and their losses."""

    def draw() -> None:
        _, (left, right) = plt.subplots(1, 2, width_ratios=[1.2, 1])
        x, y = jnp.linspace(-1.7, 1.6, 60), jnp.linspace(-0.6, 2.6, 60)
        contours(left, f, x, y, levels=np.geomspace(0.02, 12, 7))
        for name, tx in transforms.items():
            label, iterates = name.replace("_", "."), path(f, tx, start)
            left.plot(*iterates.T, ".-", markersize=3, linewidth=1, label=label)
            right.semilogy(jax.vmap(f)(iterates), label=label)
        left.plot(1, 1, "*", color=GREY, markersize=9)
        left.set(xlim=(-1.7, 1.6), ylim=(-0.6, 2.6), xticks=[], yticks=[])
        left.set_title("120 steps")
        right.set(xlabel="step", ylim=(1e-8, 1e3))
        right.set_title("loss")
        right.legend(loc="upper right")

    return draw


def how_to_choose() -> None:
    """Losses of all optimizers on one small network, against gradients computed."""
    x = jr.normal(jr.key(0), (256, 6))
    y = jnp.sin(2 * x[:, 0]) * x[:, 1] + 0.1 * x[:, 2] ** 2

    def loss(params: Any) -> Any:
        hidden = jnp.tanh(x @ params["w"] + params["b"])
        return jnp.mean((hidden @ params["v"] - y) ** 2)

    params = {
        "w": jr.normal(jr.key(1), (6, 32)) / 6**0.5,
        "b": jnp.zeros(32),
        "v": jr.normal(jr.key(2), (32,)) / 32**0.5,
    }
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 40, 400)
    candidates = {
        "optax.adamw": (optax.adamw, 0.02, {}),
        "adan": (ok.optim.adan, 0.05, {}),
        "adahessian": (ok.optim.adahessian, 0.15, {}),
        "sophia": (ok.optim.sophia, 0.01, {}),
        "mfac": (ok.optim.mfac, 0.05, {"window": 32, "damping": 0.01, "momentum": 0.9}),
    }
    _, ax = plt.subplots()
    for name, (make, peak, options) in candidates.items():
        tx = make(lambda count, peak=peak: peak * schedule(count), **options)
        if name in {"adahessian", "sophia"}:
            tx = ok.optim.with_hutchinson(tx, key=jr.key(3))
        tx = optax.with_extra_args_support(tx)

        def step(carry: Any, _: Any, tx: Any = tx) -> Any:
            p, state = carry
            value, grads = jax.value_and_grad(loss)(p)
            updates, state = tx.update(grads, state, p, value_fn=loss)
            return (optax.apply_updates(p, updates), state), value

        carry = params, tx.init(params)
        _, values = jax.jit(lambda c, f=step: jax.lax.scan(f, c, None, 400))(carry)
        ax.semilogy(values, label=name)
    ax.set(xlabel="step", ylabel="training loss")
    ax.set_title("five optimizers, one small network")
    ax.legend(ncols=2)


def choosing_curvature() -> None:
    """Steps -P g for all dampings, from the Hessian and from a Gauss-Newton matrix."""
    _, axes = plt.subplots(1, 2, sharey=True)

    def model(y: jax.Array, _: Any) -> jax.Array:
        return jnp.stack([0.3 * (1 - y[0]), y[1] - 0.6 * y[0] ** 2])

    def loss(y: jax.Array) -> jax.Array:
        return jnp.sum(model(y, None) ** 2)

    y = jnp.array([0.2, 1.4])
    grad = jax.grad(loss)(y)
    gauss_newton = ok.gauss_newton(model, lambda z: jnp.sum(z**2), y, None)
    operators = {"ok.hessian": ok.hessian(loss, y), "ok.gauss_newton": gauss_newton}
    for ax, (name, C) in zip(axes, operators.items(), strict=True):
        grid = jnp.linspace(-1.6, 2.2, 90)
        contours(ax, loss, grid, grid, levels=np.geomspace(0.05, 12, 8))
        dampings = np.geomspace(1e-3, 1e3, 200)
        inverses = [ok.invert(C, lx.LU(), damping=float(a)) for a in dampings]
        steps = np.stack([y - P.mv(grad) for P in inverses])
        steps[np.linalg.norm(steps - y, axis=1) > 3] = np.nan  # near a singular C + λI
        ax.plot(*steps.T, color=COLOURS[1], label="y - P g, for all λ")
        ax.plot(*y, "o", color=COLOURS[0], label="y")
        ax.plot(1, 0.6, "*", color=GREY, markersize=9, label="minimum")
        ax.set(xlim=(-1.6, 2.2), ylim=(-0.6, 2.2), xticks=[], yticks=[])
        ax.set_title(name)
    axes[0].legend(loc="lower left")


def implicit() -> None:
    """Solutions of an equation, and their tangents by `ok.implicit_root`."""

    @ok.implicit_root(lambda y, a: y**3 + y - a)
    def solve(y0: Any, a: Any) -> Any:
        def newton(_: Any, y: Any) -> Any:
            return y - (y**3 + y - a) / (3 * y**2 + 1)

        return jax.lax.fori_loop(0, 30, newton, y0)

    def of(a: Any) -> Any:
        return solve(jnp.zeros(()), a)

    _, ax = plt.subplots()
    a = jnp.linspace(-6, 6, 200)
    ax.plot(a, jax.vmap(of)(a), label="the solution y of y³ + y = θ")
    for k, point in enumerate((-4.0, 0.0, 3.0)):
        y, slope = jax.jit(jax.value_and_grad(of))(point)
        ends = np.array([point - 1.6, point + 1.6])
        label = "its derivative, by one linear solve" if k == 0 else None
        ax.plot(ends, y + slope * (ends - point), color=COLOURS[1], label=label)
        ax.plot(point, y, "o", color=COLOURS[1])
    ax.set(xlabel="θ", ylabel="y")
    ax.legend()


def bilevel() -> None:
    """A validation loss as a function of the penalty, and the path of a solver."""
    x = jr.normal(jr.key(0), (60, 20)) * jnp.logspace(0, -1, 20)
    y = x[:, 0] - x[:, 1] + jr.normal(jr.key(1), (60,))
    train, val = (x[:30], y[:30]), (x[30:], y[30:])

    def lower(t: Any, w: Any, _: Any) -> Any:
        return jnp.mean((train[0] @ w - train[1]) ** 2) + jnp.exp(t) * w @ w

    def upper(t: Any, w: Any, _: Any) -> Any:
        return jnp.mean((val[0] @ w - val[1]) ** 2)

    def best(t: Any) -> Any:
        A = train[0].T @ train[0] / 30 + jnp.exp(t) * jnp.eye(20)
        return jnp.linalg.solve(A, train[0].T @ train[1] / 30)

    _, (left, right) = plt.subplots(1, 2, width_ratios=[1.4, 1])
    t = jnp.linspace(-7, 2, 200)
    left.plot(t, jax.vmap(lambda t: upper(t, best(t), None))(t), label="Φ(x)")
    solver = ok.bilevel.soba(
        upper,
        lower,
        outer=optax.sgd(0.2),
        inner=optax.sgd(0.05),
        linear=optax.sgd(0.05),
    )
    start = jnp.asarray(-5.0)
    state, iterates = solver.init(start, best(start)), [start]
    step = jax.jit(solver.step)
    for _ in range(600):
        state, _ = step(state, None)
        iterates.append(state.x)
    x_path = jnp.stack(iterates)
    values = jax.vmap(lambda t: upper(t, best(t), None))(x_path)
    left.plot(
        x_path[::10], values[::10], ".", color=COLOURS[1], label="ok.bilevel.soba"
    )
    left.set(xlabel="x, the log of a penalty")
    left.set_title("validation loss")
    left.legend()
    right.plot(x_path, color=COLOURS[1])
    right.set(xlabel="step")
    right.set_title("x, while the model trains")


def mfac() -> None:
    """Losses of a regression with correlated inputs, from noisy gradients."""
    mix = jr.normal(jr.key(0), (20, 20)) * jnp.logspace(0, -1.5, 20)
    x = jr.normal(jr.key(1), (2000, 20)) @ mix.T / 4
    y = x @ jr.normal(jr.key(2), (20,)) + 0.1 * jr.normal(jr.key(3), (2000,))

    def loss(w: Any, rows: Any) -> Any:
        return jnp.mean((x[rows] @ w - y[rows]) ** 2)

    everything, w = jnp.arange(2000), jnp.zeros(20)
    decay = optax.cosine_decay_schedule(1.0, 600)
    candidates = {
        "ok.optim.mfac, m = 64": ok.optim.mfac(lambda k: 0.04 * decay(k), 64, 0.1),
        "optax.sgd": optax.sgd(lambda k: 0.05 * decay(k)),
        "optax.adam": optax.adam(lambda k: 0.05 * decay(k)),
    }
    _, ax = plt.subplots()
    for name, tx in candidates.items():

        def step(carry: Any, key: Any, tx: Any = tx) -> Any:
            w, state = carry
            grads = jax.grad(loss)(w, jr.randint(key, (32,), 0, 2000))
            updates, state = tx.update(grads, state, w)
            return (optax.apply_updates(w, updates), state), loss(w, everything)

        carry, keys = (w, tx.init(w)), jr.split(jr.key(4), 600)
        _, values = jax.jit(lambda c, f=step, k=keys: jax.lax.scan(f, c, k))(carry)
        ax.semilogy(values, label=name)
    ax.set(xlabel="step", ylabel="loss")
    ax.set_title("a regression with correlated inputs, in batches of 32")
    ax.legend()


def with_diagonal(tx: Any) -> Any:
    """The optimizer with a Hessian diagonal."""
    return ok.optim.with_hutchinson(tx, key=jr.key(0))


FIGURES: dict[str, Callable[[], None]] = {
    "how-to-choose": how_to_choose,
    "choosing-curvature": choosing_curvature,
    "implicit": implicit,
    "bilevel": bilevel,
    "adan": optimizer(
        valley,
        (-1.4, 0.6),
        ok_optim_adan=ok.optim.adan(0.1),
        optax_adam=optax.adam(0.1),
    ),
    "adahessian": optimizer(
        bowl,
        (-1.4, 0.2),
        ok_optim_adahessian=with_diagonal(ok.optim.adahessian(0.15)),
        optax_sgd=optax.sgd(0.4),
    ),
    "sophia": optimizer(
        bowl,
        (-1.4, 0.2),
        ok_optim_sophia=with_diagonal(ok.optim.sophia(0.1, b1=0.7, gamma=1.0)),
        optax_sgd=optax.sgd(0.4),
    ),
    "mfac": mfac,
}


def main() -> None:
    """Writes an SVG for each guide."""
    plt.rcParams.update(STYLE)
    for name, draw in FIGURES.items():
        draw()
        plt.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
        plt.close("all")


if __name__ == "__main__":
    main()
