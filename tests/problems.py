"""Small problems that several test files share, with the pytrees users have."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree


def mlp_params(key, dtype=jnp.float64):
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


def linear_params(key, dtype=jnp.float64):
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
