"""Derivatives of solutions: five problems, every backward method, every mode."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import pytest
from numpy.testing import assert_allclose

import optkit as ok

pytestmark = pytest.mark.x64

# Two parameters and four unknowns, each problem with its solution as a function of the
# parameters that JAX itself can differentiate, to any order.

X = jnp.array([[1.0, 0.2, -0.4, 0.5], [0.3, -1.1, 0.5, 0.2]])
X = jnp.concatenate([X, jnp.array([[-0.7, 0.4, 1.2, -0.3], [0.6, 0.9, 0.1, 0.8]])])
T = jnp.array([1.0, -0.5, 0.3, 0.8])
SIGNS = jnp.array([1.0, -1.0, 1.0, -1.0])
THETAS = jnp.array([[0.3, -0.4], [0.31, -0.39]])


def per_feature(theta):
    return jnp.exp(jnp.array([1.0, 0.0, 0.5, -0.5]) * theta[0] + theta[1])


class Ridge:
    """Least squares with a log-penalty for each feature."""

    def objective(w, theta):
        penalty = jnp.vdot(per_feature(theta), w**2)
        return 0.5 * jnp.sum((X @ w - T) ** 2) + 0.5 * penalty

    def solution(theta):
        return jnp.linalg.solve(X.T @ X + jnp.diag(per_feature(theta)), X.T @ T)


class Logistic:
    """Logistic regression with a log-penalty for each feature; solved by Newton."""

    def objective(w, theta):
        fit = jnp.sum(jax.nn.softplus(-SIGNS * (X @ w)))
        return fit + 0.5 * jnp.vdot(per_feature(theta), w**2)

    def solution(theta):
        d = per_feature(theta)

        def newton(w, _):
            p = jax.nn.sigmoid(-SIGNS * (X @ w))
            gradient = -X.T @ (SIGNS * p) + d * w
            hessian = (X.T * (p * (1 - p))) @ X + jnp.diag(d)
            return w - jnp.linalg.solve(hessian, gradient), None

        return jax.lax.scan(newton, jnp.zeros(4), length=8)[0]


class Lasso:
    """Proximal gradient: soft thresholding; the last two weights are zero."""

    def mapping(w, theta):
        z = w - 0.4 * X.T @ (X @ w - T * theta[1])
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - 0.1 * jnp.exp(theta[0]), 0)

    def solution(theta):
        kept = X[:, :2]
        target = kept.T @ T * theta[1] + jnp.exp(theta[0]) / 4
        w = jnp.linalg.solve(kept.T @ kept, target)
        return jnp.append(w, jnp.zeros(2))


class SvmDual:
    """Projected gradient on the box [0, C]: one dual is at C, one at 0."""

    LINEAR = jnp.array([0.3, 0.4, 2.0, -1.0])

    def kernel(theta):
        d = jnp.sum((X[:, None] - X) ** 2, axis=2)
        return SIGNS[:, None] * SIGNS * jnp.exp(-jnp.exp(theta[0]) * d)

    def mapping(a, theta):
        gradient = SvmDual.kernel(theta) @ a - SvmDual.LINEAR
        return jnp.clip(a - 0.5 * gradient, 0, jnp.exp(theta[1]))

    def solution(theta):
        K, c = SvmDual.kernel(theta), jnp.exp(theta[1])
        free = jnp.linalg.solve(K[:2, :2], SvmDual.LINEAR[:2] - K[:2, 2] * c)
        return jnp.stack([free[0], free[1], c, 0 * c])


class EqualityQp:
    """min ½ zᵀQz + cᵀz with 1ᵀz = d, by its KKT conditions; y is z and ν."""

    Q = jnp.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 1.5]])
    E = jnp.ones((3, 1))

    def kkt(theta):
        top = [EqualityQp.Q * jnp.exp(theta[1]), -EqualityQp.E]
        rows = [jnp.append(EqualityQp.E, 0.0)[None]]
        right = jnp.stack([-theta[0], -theta[1], theta[0] ** 2, jnp.sin(theta[0])])
        return jnp.concatenate([jnp.concatenate(top, axis=1), *rows]), right

    def optimality(y, theta):
        matrix, right = EqualityQp.kkt(theta)
        return matrix @ y - right

    def solution(theta):
        return jnp.linalg.solve(*EqualityQp.kkt(theta))


class EqualityQpOfTrees:
    """The same with z and ν as leaves."""

    def optimality(y, theta):
        return split(EqualityQp.optimality(jnp.append(y["z"], y["nu"]), theta))

    def solution(theta):
        return split(EqualityQp.solution(theta))


def split(y):
    return {"z": y[:3], "nu": y[3]}


class OneOf(lx.AbstractLinearSolver):
    """Many methods compiled together; a number selects one."""

    which: Any
    methods: list[Any]

    def init(self, operator, options):
        return [method.init(operator, options) for method in self.methods]

    def compute(self, state, vector, options):
        def solve(method, state, vector):
            return method.compute(state, vector, options)[:2]

        branches = map(functools.partial, [solve] * len(state), self.methods, state)
        return *jax.lax.switch(self.which, list(branches), vector), {}

    def transpose(self, state, options):
        raise NotImplementedError

    conj = transpose

    def assume_full_rank(self):
        return True


def residual(problem):
    if hasattr(problem, "objective"):
        return jax.grad(problem.objective)
    if hasattr(problem, "mapping"):
        return lambda y, theta: y - problem.mapping(y, theta)
    return problem.optimality


class Case(NamedTuple):
    """Methods, and the problems that they apply to under a decorator."""

    methods: list[Any]
    decorator: Callable[..., Any]
    problems: list[Any]
    condition: Callable[..., Any] = residual
    damping: float = 0.0


minima = functools.partial(
    Case,
    decorator=ok.implicit_minimum,
    problems=[Ridge, Logistic],
    condition=lambda problem: problem.objective,
)
fixed_points = functools.partial(
    Case,
    decorator=ok.implicit_fixed_point,
    problems=[Lasso, SvmDual],
    condition=lambda problem: problem.mapping,
)
roots = functools.partial(Case, decorator=ok.implicit_root)
FIVE = [Ridge, Logistic, Lasso, SvmDual, EqualityQp]
TIGHT = (1e-13, 1e-13)

# Every exact method, with every problem that it applies to: methods for symmetric A
# with the minima, where A is a Hessian; methods for any A with all five problems, as
# roots; Neumann's series with as many terms as the contraction needs. The others do not
# apply: `ok.OneStep` is not an inverse; `ok.Woodbury` raises, since no A has low rank,
# and so do Lineax's Diagonal, Triangular and Tridiagonal. Lineax's AutoLinearSolver is
# Cholesky for a minimum, and LU or SVD for a root.
CASES = {
    "Cholesky-CG-Neumann": minima(
        [lx.Cholesky(), lx.CG(*TIGHT), ok.Neumann(200)],
    ),
    "ok.CG": minima([ok.CG(1e-13)]),
    # With full rank, and a part of the penalty as its damping, it is exact.
    "Nystrom": minima([ok.Nystrom(4, key=jr.key(0))], damping=0.2),
    "Neumann-fixed-points": fixed_points([ok.Neumann(60)]),
    "Neumann-root": roots([ok.Neumann(800, step_size=0.2)], problems=[EqualityQp]),
    "GMRES-trees": roots([ok.GMRES(1e-13)], problems=[EqualityQpOfTrees]),
    "LU-QR-SVD": roots([lx.LU(), lx.QR(), lx.SVD()], problems=FIVE),
    # At 1e-13, BiCGStab returns NaN on Lasso or SvmDual, and this is reported.
    "GMRES-BiCGStab": roots(
        [ok.GMRES(1e-13), lx.GMRES(*TIGHT), lx.BiCGStab(1e-11, 1e-11)], problems=FIVE
    ),
    "LSMR-Normal": roots(
        [lx.LSMR(*TIGHT), lx.Normal(ok.CG(1e-13)), lx.Normal(lx.CG(*TIGHT))],
        problems=FIVE,
    ),
}

# Compilation takes most of the time, so do less of it.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    FAST["xla_cpu_use_fusion_emitters"] = False  # later versions have no such option


def loss(solution, theta):
    y = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(solution(theta))])
    return jnp.vdot(jnp.arange(1.0, 5.0), y**2), y


def nested(solution, theta):
    """Derivatives up to third order, each by different transforms."""

    def reverse(theta):
        f = functools.partial(loss, solution)
        (_, y), grad = jax.value_and_grad(f, has_aux=True)(theta)
        return jnp.vdot(grad, jnp.array([0.8, 0.3])), (y, grad)

    def reverse_reverse(theta):
        again, (y, grad) = jax.grad(reverse, has_aux=True)(theta)
        return {"y": y, "reverse": grad, "reverse over reverse": again}

    value, tangent = jax.jvp(reverse_reverse, (theta,), (jnp.array([1.0, -0.5]),))
    return value | {
        "forward": tangent["y"],
        "forward over reverse": tangent["reverse"],
        "third order": tangent["reverse over reverse"],
    }


@functools.cache
def expected(problem):
    def both(theta):
        return problem.solution(theta), nested(problem.solution, theta)

    return jax.jit(jax.vmap(both), compiler_options=FAST)(THETAS)


def implicit(case, which_method, which, y, theta):
    """The solution of one problem of the case; problem and method are data."""
    conditions = [case.condition(problem) for problem in case.problems]
    options = {"damping": case.damping} if case.damping else {}

    def condition(y, args):
        both = jnp.stack([args["theta"], theta[1]])  # of which one is closed over
        is_it = jax.nn.one_hot(args["which"], len(conditions))
        values = [condition(y, both) for condition in conditions]
        value = jax.tree.map(lambda *v: jnp.tensordot(is_it, jnp.stack(v), 1), *values)
        return value - case.damping / 2 * jnp.vdot(y, y) if options else value

    solver = OneOf(which_method, case.methods) if case.methods[1:] else case.methods[0]
    solve = case.decorator(condition, solver=solver, **options)(lambda y, _: y)
    return solve(y, {"theta": theta[0], "which": which})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_derivatives_are_exact_in_every_mode(case):
    """Oracle: JAX's derivatives of the closed forms, to 1e-8."""

    @functools.partial(jax.jit, compiler_options=FAST)
    def derivatives(*batch):
        def at(*inputs):
            *data, theta = inputs
            return functools.partial(implicit, case, *data), theta

        def grad(*inputs):
            solution, theta = at(*inputs)
            f = functools.partial(loss, solution)
            return jax.grad(f, has_aux=True)(theta)[0]

        _, nest = jax.lax.scan(lambda _, i: (None, nested(*at(*i))), None, batch)
        return nest | {"vmap": jax.vmap(grad)(*batch)}

    each = [expected(problem) for problem in case.problems] * len(case.methods)
    ys, want = jax.tree.map(lambda *x: jnp.concatenate(x), *each)
    want["vmap"] = want["reverse"]
    problem = jnp.repeat(jnp.arange(len(case.problems)), len(THETAS))
    method = jnp.repeat(jnp.arange(len(case.methods)), len(problem))
    thetas = jnp.tile(THETAS, (len(each), 1))
    got = derivatives(method, jnp.tile(problem, len(case.methods)), ys, thetas)
    for mode, values in want.items():
        assert_allclose(got[mode], values, rtol=1e-8, atol=1e-8, err_msg=mode)
