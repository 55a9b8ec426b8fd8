"""Influence functions, which attribute predictions to training examples.

Removing a training example moves the minimiser by P g / n, with g the gradient of its
loss and P the inverse curvature of the mean loss. So the loss of a test example changes
by the dot product of its gradient with that step.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from ._check import Check
from ._types import Params
from ._vector import dot, project

ExampleLoss: TypeAlias = Callable[[Params, Any], Float[Array, ""]]
"""(params, example) -> a real scalar."""


def influence(
    example_loss: ExampleLoss,
    params: Params,
    train: PyTree,
    test: PyTree,
    inverse: lx.AbstractLinearOperator,
    *,
    test_loss: ExampleLoss | None = None,
    chunk: int = 128,
) -> Float[Array, "num_test num_train"]:
    """Returns how much each training example helps each test example.

    With g and h the gradients of `example_loss` and `test_loss` at the params, and P
    the inverse,

        score[i, j] = h(test_i)ᵀ P g(train_j)

    To first order, training without example j of n adds score[i, j] / n to the loss of
    test example i: a training example helps if its score is positive and harms if it is
    negative. If P is positive definite, the score of an example with itself is
    positive, and large if the model has to memorise it.

    Args:
        example_loss: example_loss(params, example) -> a real scalar. The params should
            minimise its mean over the training set, so it includes regularisation.
        params: the params after training.
        train: examples, a pytree whose leaves share a leading axis.
        test: examples, in the same form.
        inverse: P, a symmetric operator on the params, such as `ok.invert` of the
            curvature of the MEAN training loss. The identity gives plain dot products
            of gradients.
        test_loss: test_loss(params, example), the loss of a test example. Default:
            `example_loss`. If that is regularised, pass the loss without the penalty:
            otherwise the scores also predict how the penalty changes.
        chunk: how many test and how many training examples to process at a time. It
            does not change the result. Memory is that of 1.3 `chunk` gradients if
            `chunk` is 128 or more, plus what P needs for `chunk` / 8 products. Each
            chunk of test examples recomputes the training gradients.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> def example_loss(mean, x):
        ...     return 0.5 * (mean - x) ** 2
        >>> train = jnp.array([0.0, 1.0, 8.0])
        >>> mean = train.mean()
        >>> P = ok.invert(ok.empirical_fisher(example_loss, mean, train), ok.Woodbury(),
        ...               damping=1.0)
        >>> scores = ok.influence(example_loss, mean, train, jnp.array([0.0]), P)
        >>> jnp.sign(scores)  # the outlier 8 pulls the mean away from 0
        Array([[ 1.,  1., -1.]], dtype=float32)

    Reference:
        Koh and Liang 2017, arXiv:1703.04730, equation 2, with the sign of removal.
    """
    check = Check("ok.influence")
    gradient = _gradient(check, params, inverse, example_loss=example_loss)
    test_gradient = gradient
    if test_loss is not None:
        test_gradient = _gradient(check, params, inverse, test_loss=test_loss)
    check.count(chunk=chunk)
    check.batch(train=train, test=test)

    # A chunk of P h is kept, because each chunk recomputes the training gradients.
    # Gradients come in smaller parts, which is no slower.
    part = max(chunk // 8, min(chunk, 16))

    def step(example: Any) -> Params:
        return inverse.mv(test_gradient(example))

    def rows(examples: PyTree) -> Float[Array, "chunk num_train"]:
        steps = jax.lax.map(step, examples, batch_size=part)

        def column(example: Any) -> Float[Array, " chunk"]:
            return project(steps, gradient(example))

        return jax.lax.map(column, train, batch_size=part).T

    num = len(jax.tree.leaves(test)[0])
    whole = num - num % chunk
    scores = []
    if whole:
        chunks = jax.tree.map(lambda a: _in_chunks(a[:whole], chunk), test)
        scores.append(jax.lax.map(rows, chunks).reshape(whole, -1))
    if whole < num:
        scores.append(rows(jax.tree.map(lambda a: a[whole:], test)))
    return jnp.concatenate(scores)


def self_influence(
    example_loss: ExampleLoss,
    params: Params,
    train: PyTree,
    inverse: lx.AbstractLinearOperator,
    *,
    chunk: int = 128,
) -> Float[Array, " num_train"]:
    """Returns how much each training example helps itself.

    With g the gradient of one example's loss at the params, and P the inverse,

        score[j] = g(train_j)ᵀ P g(train_j)

    To first order, training without example j of n adds score[j] / n to the loss of
    that example. So the scores are large for examples that the model has to memorise,
    such as wrong labels. They are the diagonal of `ok.influence(example_loss, params,
    train, train, P)`, at the cost of one row.

    Args:
        example_loss: as for `ok.influence`.
        params: the params after training.
        train: examples, a pytree whose leaves share a leading axis.
        inverse: P, a symmetric operator on the params.
        chunk: how many examples to process at a time. It does not change the result.
            Memory is that of 2 `chunk` gradients, plus what P needs.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> def example_loss(mean, x):
        ...     return 0.5 * (mean - x) ** 2
        >>> train = jnp.array([2.0, 3.0, 10.0])
        >>> P = ok.invert(ok.LowRank(jnp.ones(1)), ok.Woodbury(), damping=1.0)
        >>> ok.self_influence(example_loss, train.mean(), train, P)
        Array([ 4.5,  2. , 12.5], dtype=float32)

    Reference:
        Koh and Liang 2017, arXiv:1703.04730, section 5.4.
    """
    check = Check("ok.self_influence")
    gradient = _gradient(check, params, inverse, example_loss=example_loss)
    check.count(chunk=chunk)
    check.batch(train=train)

    def score(example: Any) -> Float[Array, ""]:
        g = gradient(example)
        return dot(g, inverse.mv(g))

    return jax.lax.map(score, train, batch_size=chunk)


def _in_chunks(a: Array, chunk: int) -> Array:
    return a.reshape(-1, chunk, *a.shape[1:])


def _gradient(
    check: Check, params: Params, inverse: lx.AbstractLinearOperator, **losses: Any
) -> Callable[[Any], Params]:
    """The gradient of an example's loss, and checks that P takes it."""
    ((name, loss),) = losses.items()
    gradient = jax.grad(check.scalar(loss, name))
    check.symmetric(inverse, "inverse")
    check.like("params", params, inverse.in_structure(), "the inverse's params")
    return lambda example: gradient(params, example)
