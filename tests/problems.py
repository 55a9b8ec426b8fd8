"""Small problems that several test files share, with the pytrees users have."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from precision import X64, assert_allclose


def mlp_params(key, dtype=float):
    """23 entries in dicts and a tuple, with a None and a scalar leaf."""
    k1, k2, k3 = jr.split(key, 3)
    return {
        "hidden": (jr.normal(k1, (3, 3), dtype), 0.1 * jr.normal(k2, (3,), dtype)),
        "frozen": None,
        "out": {"w": jr.normal(k3, (3, 3), dtype), "bias": jnp.zeros((1,), dtype)},
        "gain": jnp.asarray(0.7, dtype),
    }


def mlp(params, inputs):
    """Outputs (batch, 3) of a tanh network."""
    w, b = params["hidden"]
    h = jnp.tanh(inputs @ w + b)
    return params["gain"] * (h @ params["out"]["w"] + params["out"]["bias"])


def mlp_data(key, num=5):
    """Inputs (num, 3), float targets (num, 3) and labels (num,) in {0, 1, 2}."""
    k1, k2, k3 = jr.split(key, 3)
    inputs = jr.normal(k1, (num, 3))
    return inputs, jr.normal(k2, (num, 3)), jr.randint(k3, (num,), 0, 3)


def mlp_loss(params, inputs, labels):
    """Mean cross-entropy, written out."""
    log_p = jax.nn.log_softmax(mlp(params, inputs))
    return -jnp.mean(log_p[jnp.arange(labels.size), labels])


def mlp_example_loss(params, example):
    """Cross-entropy of one example."""
    x, label = example
    return -jax.nn.log_softmax(mlp(params, x))[label]


def flat_function(fn, params):
    """The function of a vector that `fn` is of a pytree like params, and the vector."""
    vector, unravel = ravel_pytree(params)

    def flat(v, *args):
        return fn(unravel(v), *args)

    return flat, vector


def dense_hessian(loss, params, *args):
    """The Hessian by `jax.hessian` of the flat function."""
    flat, vector = flat_function(loss, params)
    return jax.jit(jax.hessian(flat))(vector, *args)


def dense_gauss_newton(model_fn, loss_fn, params, inputs, *targets):
    """JᵀHJ with J and H dense."""
    flat, vector = flat_function(model_fn, params)

    @jax.jit
    def dense(vector):
        outputs = flat(vector, inputs)
        J = jax.jacobian(flat)(vector, inputs).reshape(outputs.size, vector.size)
        H = jax.hessian(loss_fn)(outputs, *targets)
        return J.T @ H.reshape(outputs.size, outputs.size) @ J

    return dense(vector)


def dense_fisher(example_loss, params, batch):
    """The mean of g gᵀ with all gradients as rows of a matrix."""
    flat, vector = flat_function(example_loss, params)
    rows = jax.jit(jax.vmap(jax.grad(flat), in_axes=(None, 0)))(vector, batch)
    return rows.T @ rows / len(rows)


def linear_params(key, dtype=float):
    """8 entries of a linear classifier of 3 features into 2 classes."""
    return {"w": jr.normal(key, (3, 2), dtype), "b": jnp.array([0.3, -0.2], dtype)}


def linear_data(key, num=12):
    """Inputs (num, 3) and labels (num,)."""
    return jr.normal(key, (num, 3)), jnp.arange(num) % 2


def linear_loss(params, inputs, labels):
    """Mean cross-entropy: convex."""
    log_p = jax.nn.log_softmax(inputs @ params["w"] + params["b"])
    return -jnp.mean(log_p[jnp.arange(labels.size), labels])


def linear_example_loss(params, example):
    """Cross-entropy of one example."""
    x, label = example
    return linear_loss(params, x[None], label[None])


def assert_derivatives(f, inputs, key, tolerance=1e-8):
    """Both modes of f's derivative along a random direction of all inputs.

    Forward against central differences, whose own error is about 1e-10, in float32
    1e-4; reverse against forward, by the adjoint identity. One compilation.
    """
    h, tolerance, rounding = (1e-5, tolerance, 1e-11) if X64 else (1e-3, 3e-3, 1e-5)

    def noise(key, tree):
        leaves, treedef = jax.tree.flatten(tree)
        keys = jr.split(key, len(leaves))
        new = [jr.normal(k, jnp.shape(x)) for k, x in zip(keys, leaves, strict=True)]
        return treedef.unflatten(new)

    @jax.jit
    def everything(inputs):
        k1, k2 = jr.split(key)
        d = noise(k1, inputs)
        _, tangent = jax.jvp(f, inputs, d)
        ahead = f(*jax.tree.map(lambda x, d: x + h * d, inputs, d))
        behind = f(*jax.tree.map(lambda x, d: x - h * d, inputs, d))
        difference = jax.tree.map(lambda a, b: (a - b) / (2 * h), ahead, behind)
        value, pull = jax.vjp(f, *inputs)
        cotangent = noise(k2, value)
        flat = [ravel_pytree(t)[0] for t in (d, tangent, difference, cotangent)]
        return *flat, ravel_pytree(pull(cotangent))[0]

    d, tangent, difference, cotangent, back = map(np.asarray, everything(inputs))
    scale = 1 + np.max(np.abs(tangent), initial=0)
    assert_allclose(tangent, difference, atol=tolerance * scale, rtol=0)
    expected = np.vdot(cotangent, tangent)
    assert_allclose(np.vdot(back, d), expected, atol=rounding * scale, rtol=0)


# The fixture Q2: g = ½ yᵀAy - yᵀ(Bx + c) and F = ½ |y - t|² + ½ ρ |x|², ρ = 0.1.
Q2_A = jnp.array([[2.0, 0.5], [0.5, 1.0]])
Q2_B = jnp.array([[1.0, -1.0], [2.0, 0.5]])
Q2_C = jnp.array([0.3, -0.2])
Q2_T = jnp.array([1.0, -1.0])
Q2_X = jnp.array([0.7, -0.4])
Q2_RHO = 0.1
Q2_MINIMISER = (0.04184167, -0.90007132)


def q2_upper(x, y, batch=None):
    """F, of which nothing is random."""
    return 0.5 * jnp.sum((y - Q2_T) ** 2) + 0.05 * jnp.sum(x**2)


def q2_lower(x, y, batch=None):
    """g, strongly convex in y."""
    return 0.5 * y @ Q2_A @ y - y @ (Q2_B @ x + Q2_C)


def q2_solution(x):
    """y*(x)."""
    return jnp.linalg.solve(Q2_A, Q2_B @ x + Q2_C)


def q2_hypergradient(x):
    """∇Φ in closed form."""
    return 0.1 * x + Q2_B.T @ jnp.linalg.solve(Q2_A, q2_solution(x) - Q2_T)


def noisy_sample(rng, *shape):
    """Random coefficients of `noisy_upper` and `noisy_lower`, along leading axes."""
    root = 0.3 * rng.normal(size=(*shape, 2, 2))
    return {
        "A": np.eye(2) + root @ np.swapaxes(root, -1, -2),
        "B": rng.normal(size=(*shape, 2, 3)),
        "C": rng.normal(size=(*shape, 3, 2)),
        "t": rng.normal(size=(*shape, 2)),
        "e": rng.normal(size=(*shape, 1)),
    }


def noisy_upper(x, y, batch):
    """A quadratic of x in R^3 and y in R^2; `oracles.NoisyQuadratic` has its slopes."""
    return 0.5 * jnp.sum((y - batch["t"]) ** 2) + 0.05 * x @ x + x @ batch["C"] @ y


def noisy_lower(x, y, batch):
    """A quadratic that is strongly convex in y."""
    curved = 0.5 * y @ batch["A"] @ y + 0.5 * jnp.sum(batch["e"]) * x @ x
    return curved - y @ batch["B"] @ x
