"""A hypergradient at equal true error, beside conjugate gradients by hand and jaxopt.

Multinomial logistic regression on the digits, 64 x 10 weights, each of the 64 features
with its own log-penalty; the upper loss is the validation loss. All candidates are
given the same solution and differentiate it, each at the largest tolerance of its
linear solve that brings the hypergradient within 1e-6 of the exact one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxopt.implicit_diff import custom_root
from jaxopt.linear_solve import solve_cg, solve_normal_cg
from sklearn.datasets import load_digits

import optkit as ok

from .measure import Candidate, Row, compiled, measure

NUM_TRAIN = 1200
ERROR = 1e-6
TOLERANCES = np.logspace(-2, -13, 34)


def run(size: int, rounds: int) -> list[Row]:
    """Rows for the 640 weights, or for `size` of them: ten for each feature used."""
    with jax.enable_x64(True):
        problem = _Problem(size // 10)
        makers: dict[str, Callable[[float], Any]] = {
            "conjugate gradients by hand": problem.by_hand,
            "ok.implicit_minimum": problem.ours,
            "jaxopt, conjugate gradients": problem.by_jaxopt_cg,
            "jaxopt, its default": problem.by_jaxopt,
        }
        candidates = [problem.cheapest(*maker) for maker in makers.items()]
        return measure(candidates, rounds)


class _Problem:
    """The digits, the solution, and the exact hypergradient from a dense Hessian."""

    def __init__(self, num_features: int) -> None:
        pixels, targets = load_digits(return_X_y=True)
        x = jnp.asarray(np.asarray(pixels)[:, :num_features] / 16.0)
        labels = jnp.asarray(np.asarray(targets))
        self.train = x[:NUM_TRAIN], labels[:NUM_TRAIN]
        self.val = x[NUM_TRAIN:], labels[NUM_TRAIN:]
        self.theta = jnp.linspace(-8.0, -4.0, num_features)
        self.w = self._minimiser(jnp.zeros((num_features, 10)))
        hessian = self._dense(self.w)
        v = jnp.linalg.solve(hessian, jax.grad(self.upper)(self.w).ravel())
        self.exact = self._pull_back(self.w, self.theta, v.reshape(self.w.shape))

    def lower(self, w: Any, theta: Any) -> Any:
        """The mean cross-entropy and ½ Σ exp(θ_i) w_ij²."""
        return _loss(w, self.train) + 0.5 * jnp.sum(jnp.exp(theta)[:, None] * w**2)

    def upper(self, w: Any) -> Any:
        """The validation loss."""
        return _loss(w, self.val)

    def by_hand(self, rtol: float) -> Any:
        """Textbook conjugate gradients on linearised products."""

        def hypergradient(w: Any, theta: Any) -> Any:
            gradient = jax.grad(self.lower)
            _, product = jax.linearize(lambda w: gradient(w, theta), w)
            v = _conjugate_gradients(product, jax.grad(self.upper)(w), rtol)
            return self._pull_back(w, theta, v)

        return hypergradient

    def ours(self, rtol: float) -> Any:
        """`ok.implicit_minimum`."""
        decorate = ok.implicit_minimum(self.lower, solver=ok.CG(rtol))
        return self._through(decorate(lambda w, theta: w))

    def by_jaxopt_cg(self, rtol: float) -> Any:
        """`jaxopt.implicit_diff.custom_root` with plain conjugate gradients."""
        return self._by_jaxopt(partial(solve_cg, tol=rtol))

    def by_jaxopt(self, rtol: float) -> Any:
        """The same with what it takes by default, at the tolerance it needs."""
        return self._by_jaxopt(partial(solve_normal_cg, tol=rtol))

    def cheapest(self, name: str, make: Callable[[float], Any]) -> Candidate:
        """The candidate at the largest tolerance that reaches the error."""

        def error(rtol: float) -> float:
            got = jax.jit(make(rtol))(self.w, self.theta)
            return float(jnp.linalg.norm(got - self.exact) / self._size)

        reached = [r for r in self._bracket(error) if error(r) <= ERROR]
        if not reached:
            name = f"{name}, error {error(TOLERANCES[-1]):.0e}"
        hypergradient = make(reached[0] if reached else float(TOLERANCES[-1]))

        def step(carry: Any) -> Any:
            w, theta = carry
            return w, theta + 1e-12 * hypergradient(w, theta)

        return compiled(name, step, (self.w, self.theta), donate=False)

    @property
    def _size(self) -> Any:
        return jnp.linalg.norm(self.exact)

    def _bracket(self, error: Callable[[float], float]) -> list[float]:
        """Tolerances in falling order from near the largest that suffices."""
        low, high = 0, len(TOLERANCES) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if error(float(TOLERANCES[middle])) <= ERROR
                else (middle + 1, high)
            )
        return [float(r) for r in TOLERANCES[low : low + 2]]

    def _by_jaxopt(self, solve: Any) -> Any:
        optimality = jax.grad(self.lower)
        return self._through(custom_root(optimality, solve=solve)(lambda w, theta: w))

    def _through(self, fit: Any) -> Any:
        def hypergradient(w: Any, theta: Any) -> Any:
            return jax.grad(lambda theta: self.upper(fit(w, theta)))(theta)

        return hypergradient

    def _pull_back(self, w: Any, theta: Any, v: Any) -> Any:
        _, pull = jax.vjp(lambda theta: jax.grad(self.lower)(w, theta), theta)
        return -pull(v)[0]

    def _dense(self, w: Any) -> Any:
        hessian = jax.jit(jax.hessian(self.lower))(w, self.theta)
        return hessian.reshape(w.size, w.size)

    def _minimiser(self, w: Any) -> Any:
        for _ in range(15):  # Newton's method
            gradient = jax.grad(self.lower)(w, self.theta).ravel()
            w = w - jnp.linalg.solve(self._dense(w), gradient).reshape(w.shape)
        return w


def _loss(w: Any, data: Any) -> Any:
    x, labels = data
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(x @ w, labels).mean()


def _conjugate_gradients(product: Any, b: Any, rtol: float) -> Any:
    def step(carry: Any) -> Any:
        x, r, p, rho = carry
        q = product(p)
        alpha = rho / jnp.vdot(p, q)
        x, r = x + alpha * p, r - alpha * q
        after = jnp.vdot(r, r)
        return x, r, r + after / rho * p, after

    rho = jnp.vdot(b, b)
    start = jnp.zeros_like(b), b, b, rho
    end = lax.while_loop(lambda carry: carry[3] > rtol**2 * rho, step, start)
    return end[0]
