"""Faults of optimizers: gradients, diagonals, states and hyperparameters gone wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from faulty import table

import optkit as ok

INF, NAN = float("inf"), float("nan")


def params() -> dict[str, Any]:
    """Five entries in two leaves."""
    return {"b": jnp.array([0.3, -0.7]), "w": jnp.array([1.0, -2.0, 0.5])}


def loss(p: Any) -> jax.Array:
    """A quartic."""
    return sum(jnp.sum(x**2) + 0.1 * jnp.sum(x**4) for x in jax.tree.leaves(p))


def like(number: float, tree: Any = None) -> Any:
    """A tree of one modulus, in the signs of the params."""
    tree = params() if tree is None else tree
    return jax.tree.map(lambda x: number * jnp.sign(x), tree)


def no_extra(p: Any) -> dict[str, Any]:
    """Of a transform that needs the gradient alone."""
    return {}


def diag(p: Any) -> dict[str, Any]:
    """A Hessian diagonal of ones."""
    return {"hessian_diag": jax.tree.map(jnp.ones_like, p)}


def value_fn(p: Any) -> dict[str, Any]:
    """The objective."""
    return {"value_fn": loss}


TRANSFORMS = {
    "optim.scale_by_adan": (ok.optim.scale_by_adan, no_extra),
    "optim.adan": (lambda: ok.optim.adan(0.1, weight_decay=0.1), no_extra),
    "optim.scale_by_adahessian": (ok.optim.scale_by_adahessian, diag),
    "optim.adahessian": (lambda: ok.optim.adahessian(0.1, weight_decay=0.1), diag),
    "optim.scale_by_sophia": (ok.optim.scale_by_sophia, diag),
    "optim.sophia": (lambda: ok.optim.sophia(0.1, weight_decay=0.1), diag),
    "optim.scale_by_mfac": (lambda: ok.optim.scale_by_mfac(4, 0.1), no_extra),
    "optim.mfac": (lambda: ok.optim.mfac(0.1, 4, 0.1, 0.9, 0.1), no_extra),
    "optim.accumulate": (lambda: ok.optim.accumulate(optax.sgd(0.1), 1), no_extra),
    "optim.proximal_weight_decay": (
        lambda: ok.optim.proximal_weight_decay(0.1, 0.1),
        no_extra,
    ),
    "optim.with_hutchinson": (
        lambda: ok.optim.with_hutchinson(ok.optim.scale_by_adahessian(), key=jr.key(0)),
        value_fn,
    ),
}


def make(name: str) -> Any:
    """The transform."""
    return optax.with_extra_args_support(TRANSFORMS[name][0]())


def step(name: str, grads: Any, p: Any = None, **extra: Any) -> Any:
    """The update of one step."""
    p, tx = params() if p is None else p, make(name)
    return tx.update(grads, tx.init(p), p, **(TRANSFORMS[name][1](p) | extra))[0]


def step_without_params(name: str) -> Any:
    """The update of a step that gets the gradients alone."""
    tx = make(name)
    return tx.update(params(), tx.init(params()), **TRANSFORMS[name][1](params()))[0]


def step_with_state(name: str) -> Any:
    """The update from a state that was made for other params."""
    state = make(name).init({"w": jnp.ones(2)})
    extra = TRANSFORMS[name][1](params())
    return make(name).update(params(), state, params(), **extra)[0]


def bad_entry(name: str, value: float) -> Any:
    """The update of an entry at the step at which it is bad, both drawn at random."""
    rng = np.random.default_rng(0)
    when, leaf, entry = rng.integers(3), ("b", "w")[rng.integers(2)], rng.integers(2)
    tx, p = make(name), params()
    state, grads, u = tx.init(p), params(), params()
    for t in range(when + 1):
        bad = grads | {leaf: grads[leaf].at[entry].set(value)}
        g = bad if t == when else grads
        u, state = tx.update(g, state, p, **TRANSFORMS[name][1](p))
    return u[leaf][entry]


def next_step(name: str, value: float) -> Any:
    """The update of the step after a bad gradient that `apply_if_finite` kept out."""
    tx, p = optax.apply_if_finite(make(name), 5), params()
    state = tx.init(p)
    for g in (params() | {"b": jnp.array([value, 1.0])}, params()):
        u, state = tx.update(g, state, p, **TRANSFORMS[name][1](p))
    return u


def nothing() -> Any:
    """A None and an empty leaf."""
    return {"a": None, "b": jnp.zeros((0, 2))}


def half() -> Any:
    """Gradients of which one leaf is narrower than its param."""
    return params() | {"b": jnp.ones(2, jnp.float16)}


def hutchinson(**options: Any) -> Any:
    """The wrapper with other options."""
    return ok.optim.with_hutchinson(
        ok.optim.adahessian(0.1), **({"key": jr.key(0)} | options)
    )


def estimate(fn: Any = loss, **extra: Any) -> Any:
    """The update of AdaHessian with a diagonal of `fn`."""
    tx, p = hutchinson(), params()
    return tx.update(p, tx.init(p), p, **({"value_fn": fn} | extra))[0]


def masked(name: str) -> Any:
    """The update where a mask hides a leaf."""
    tx = optax.masked(make(name), {"b": False, "w": True})
    return tx.update(params(), tx.init(params()), params(), **diag(params()))[0]


def scan(xs: Any, **options: Any) -> Any:
    """The sum, with no bar."""

    def add(total: Any, x: Any) -> tuple[Any, Any]:
        return total + jnp.sum(x), None

    options = {"report": lambda *_: None} | options
    return ok.scan_with_progress(add, jnp.zeros(()), xs, **options)


ROWS = table(
    globals(),
    """
    scale_by_adan adan scale_by_adahessian adahessian scale_by_sophia sophia \
    optim.scale_by_mfac optim.mfac optim.accumulate optim.proximal_weight_decay optim.with_hutchinson:
        nan       bad_entry("{}", NAN)                    -> NaN
        nan       bad_entry("{}", INF)                    -> NaN
        nan       next_step("{}", NAN)                    -> right
        tiny      step("{}", like(1e-38))                 -> right
        empty     step("{}", nothing(), nothing())        -> right: x["a"] is None
    optim.scale_by_adan optim.scale_by_adahessian optim.scale_by_sophia optim.scale_by_mfac optim.accumulate:
        zero      step("{}", like(0.0))                   -> right: x["w"][0] == 0
    optim.adan optim.adahessian optim.sophia optim.mfac optim.with_hutchinson optim.proximal_weight_decay:
        zero      step("{}", like(0.0))                   -> right
    optim.scale_by_adan optim.adan optim.scale_by_mfac optim.mfac:
        huge      step("{}", like(1e38))                  -> NaN
    scale_by_adahessian adahessian scale_by_sophia sophia with_hutchinson \
    optim.accumulate optim.proximal_weight_decay:
        huge      step("{}", like(1e38))                  -> right
    optim.scale_by_adan optim.scale_by_adahessian optim.scale_by_sophia optim.scale_by_mfac optim.accumulate:
        tree      step("{}", {"w": jnp.ones(3)})          -> ValueError: structure
        shape     step("{}", {"b": jnp.ones(2), "w": jnp.ones(2)})  -> ValueError: (2,)
    optim.proximal_weight_decay:
        tree      step("{}", {"w": jnp.ones(3)})          -> ValueError: structure
        shape     step("{}", {"b": jnp.ones(2), "w": jnp.ones(2)})  -> ValueError: (2,)
    with_hutchinson (ok.optim.scale_by_adahessian):
        tree      step("{}", {"w": jnp.ones(3)})          -> ValueError: structure
        shape     step("{}", {"b": jnp.ones(2), "w": jnp.ones(2)})  -> ValueError: (2,)
    scale_by_adahessian scale_by_sophia accumulate proximal_weight_decay \
    with_hutchinson:
        dtype     step("{}", half())                      -> right: x["b"].dtype == "f2"
    optim.adahessian optim.sophia:
        dtype     step("{}", half())                      -> right
    optim.scale_by_adan:
        dtype     step("{}", half())                      -> TypeError: float16
    optim.scale_by_mfac:
        dtype     step("{}", half())                      -> TypeError: float16
    scale_by_adan scale_by_adahessian scale_by_sophia scale_by_mfac accumulate \
    optim.proximal_weight_decay optim.with_hutchinson:
        dtype     make("{}").init({"w": jnp.arange(3)})   -> TypeError: int32
    optim.scale_by_adahessian optim.scale_by_sophia optim.scale_by_mfac optim.with_hutchinson:
        dtype     make("{}").init({"w": jnp.ones(3, "c8")})  -> TypeError: complex64
    optim.adan (ok.optim.scale_by_adan):
        dtype     make("{}").init({"w": jnp.arange(3)})   -> TypeError: int32
    optim.adahessian (ok.optim.scale_by_adahessian):
        dtype     make("{}").init({"w": jnp.arange(3)})   -> TypeError: int32
    optim.sophia (ok.optim.scale_by_sophia):
        dtype     make("{}").init({"w": jnp.arange(3)})   -> TypeError: int32
    optim.mfac (ok.optim.scale_by_mfac):
        dtype     make("{}").init({"w": jnp.arange(3)})   -> TypeError: int32

    optim.scale_by_adan:
        option    ok.{}(b1=1.0)             -> ValueError: 0 <= b1 < 1
        option    ok.{}(b2=-0.1)            -> ValueError: 0 <= b2 < 1
        option    ok.{}(b3=NAN)             -> ValueError: 0 <= b3 < 1
        option    ok.{}(eps=-1e-8)          -> ValueError: eps >= 0
        option    ok.{}(eps=NAN)            -> ValueError: eps >= 0
        object    ok.{}(b1="0.9")           -> TypeError: b1
        dtype     ok.{}(state_dtype=int)    -> TypeError: state_dtype
    optim.adan:
        option    ok.{}(-0.1)               -> ValueError: learning_rate >= 0
        option    ok.{}(NAN)                -> ValueError: learning_rate >= 0
        option    ok.{}(0.1, weight_decay=-1.0)  -> ValueError: weight_decay >= 0
        object    ok.{}("0.1")              -> TypeError: learning_rate
        option    step("{}", ok.optim.adan(0.0).init(params())[0].m)  -> right
    optim.adan (ok.optim.scale_by_adan):
        option    ok.{}(0.1, b1=1.0)        -> ValueError: 0 <= b1 < 1
        option    ok.{}(0.1, eps=INF)       -> ValueError: eps >= 0
    optim.adan (ok.optim.proximal_weight_decay):
        missing   step_without_params("{}")  -> ValueError: params=None
    optim.scale_by_adahessian:
        option    ok.{}(b1=1.0)             -> ValueError: 0 <= b1 < 1
        option    ok.{}(b2=NAN)             -> ValueError: 0 <= b2 < 1
        option    ok.{}(eps=-1e-4)          -> ValueError: eps >= 0
        option    ok.{}(hessian_power=-1)   -> ValueError: hessian_power >= 0
        dtype     ok.{}(state_dtype=int)    -> TypeError: state_dtype
        function  ok.{}(average=jnp.sum).init(params())  -> ValueError: keeps shape
    optim.scale_by_sophia:
        option    ok.{}(b1=1.0)             -> ValueError: 0 <= b1 < 1
        option    ok.{}(b2=NAN)             -> ValueError: 0 <= b2 < 1
        option    ok.{}(gamma=0.0)          -> ValueError: gamma > 0
        option    ok.{}(eps=0.0)            -> ValueError: eps > 0
        option    ok.{}(update_interval=0)  -> ValueError: update_interval >= 1
        dtype     ok.{}(state_dtype=int)    -> TypeError: state_dtype
    optim.adahessian optim.sophia:
        option    ok.{}(-0.1)               -> ValueError: learning_rate >= 0
        option    ok.{}(INF)                -> ValueError: learning_rate >= 0
        option    ok.{}(0.1, weight_decay=NAN)  -> ValueError: weight_decay >= 0
    optim.scale_by_adahessian optim.scale_by_sophia:
        missing   step("{}", params(), hessian_diag=None) \
                  -> ValueError: hessian_diag=None
        tree      step("{}", params(), hessian_diag=dict())    -> ValueError: structure
        shape     step("{}", params(), hessian_diag={"b": 1.0, "w": 1.0}) \
                  -> ValueError: shape ()
        dtype     step("{}", params(), hessian_diag=half())  -> right
        nan       step("{}", params(), hessian_diag=like(NAN))  -> NaN
        nan       step("{}", params(), hessian_diag=like(INF))  -> NaN
        zero      step("{}", params(), hessian_diag=like(0.0))  -> right
        tiny      step("{}", params(), hessian_diag=like(1e-38))  -> right
        singular  step("{}", params(), hessian_diag=like(-1.0))  -> right
    optim.scale_by_adahessian:
        huge      step("{}", params(), hessian_diag=like(1e38))  -> NaN
    optim.scale_by_sophia:
        huge      step("{}", params(), hessian_diag=like(1e38))  -> right
    optim.adahessian (ok.optim.scale_by_adahessian):
        missing   step("{}", params(), hessian_diag=None) \
                  -> ValueError: hessian_diag=None
        nan       step("{}", params(), hessian_diag=like(NAN))  -> NaN
        option    ok.{}(0.1, b1=1.0)        -> ValueError: 0 <= b1 < 1
    optim.sophia (ok.optim.scale_by_sophia):
        missing   step("{}", params(), hessian_diag=None) \
                  -> ValueError: hessian_diag=None
        nan       step("{}", params(), hessian_diag=like(NAN))  -> NaN
        option    ok.{}(0.1, gamma=-1.0)    -> ValueError: gamma > 0
    optim.scale_by_mfac:
        option    ok.{}(0, 0.1)             -> ValueError: window >= 1
        option    ok.{}(1.5, 0.1)           -> ValueError: window >= 1
        option    ok.{}(4, 0.0)             -> ValueError: damping > 0
        option    ok.{}(4, NAN)             -> ValueError: damping > 0
        dtype     ok.{}(4, 0.1, window_dtype=int)  -> TypeError: window_dtype
    optim.mfac:
        option    ok.{}(-0.1, 4, 0.1)       -> ValueError: learning_rate >= 0
        option    ok.{}(0.1, 4, 0.1, momentum=1.0)  -> ValueError: 0 <= momentum < 1
        option    ok.{}(0.1, 4, 0.1, weight_decay=-1.0) \
                  -> ValueError: weight_decay >= 0
    optim.mfac (ok.optim.scale_by_mfac):
        option    ok.{}(0.1, 4, -1.0)       -> ValueError: damping > 0
    optim.proximal_weight_decay:
        option    ok.{}(-0.1, 0.1)          -> ValueError: learning_rate >= 0
        option    ok.{}(0.1, NAN)           -> ValueError: weight_decay >= 0
        missing   step_without_params("{}")  -> ValueError: params=None
    with_hutchinson:
        missing   step_without_params("{}")  -> ValueError: params=None
        missing   estimate(None)            -> ValueError: neither
        object    estimate(3.0)             -> TypeError: value_fn
        option    estimate(obj_fn=loss)     -> ValueError: both
        option    estimate(hessian_diag=params())  -> ValueError: hessian_diag
        function  estimate(lambda p: p["w"])  -> ValueError: one real scalar
        function  estimate(lambda p: None)  -> ValueError: one real scalar
        function  estimate(lambda p: jnp.sum(p["w"]) * 1j)  -> TypeError: real
        nan       estimate(lambda p: jnp.sum(p["w"] ** 2) * NAN)  -> NaN
        zero      estimate(lambda p: jnp.sum(p["w"]))  -> right
        singular  estimate(lambda p: -loss(p))  -> right
        object    hutchinson(key=0)         -> TypeError: one random key
        shape     hutchinson(key=jr.split(jr.key(0)))  -> TypeError: one random key
        option    hutchinson(update_interval=0)  -> ValueError: update_interval >= 1
        option    hutchinson(num_probes=1.0)  -> ValueError: num_probes >= 1
        object    ok.{}(0.1, key=jr.key(0))  -> TypeError: optax transform
    with_hutchinson:
        tree      optax.masked(hutchinson(), {"b": False, "w": True}).init(params())  \
                  -> ValueError: outside
    optim.accumulate:
        option    ok.{}(optax.sgd(0.1), 0)  -> ValueError: every >= 1
        option    ok.{}(optax.sgd(0.1), 1.5)  -> ValueError: every >= 1
        object    ok.{}(0.1, 2)             -> TypeError: optax transform
        nan       step("{}", params(), hessian_diag=like(NAN))  -> right
        tree      step("{}", params(), hessian_diag=dict())  -> ValueError: structure
    optim.restart_adan:
        object    ok.{}(optax.adam(0.1).init(params()))  -> TypeError: AdanState
        empty     ok.{}(())                 -> TypeError: AdanState
        nan       ok.{}(ok.optim.scale_by_adan().init(like(NAN)))  -> right

    optim.AdanState (ok.optim.scale_by_adan):
        shape     step_with_state("scale_by_adan")        -> ValueError: structure
    optim.AdaHessianState (ok.optim.scale_by_adahessian):
        shape     step_with_state("scale_by_adahessian")  -> ValueError: structure
    optim.SophiaState (ok.optim.scale_by_sophia):
        shape     step_with_state("scale_by_sophia")      -> ValueError: structure
    optim.MfacState (ok.optim.scale_by_mfac):
        shape     step_with_state("scale_by_mfac")        -> ValueError: structure
    optim.AccumulateState (ok.optim.accumulate):
        shape     step_with_state("accumulate")           -> ValueError: structure
    optim.HutchinsonState (ok.optim.scale_by_adahessian):
        shape     step_with_state("with_hutchinson")      -> ValueError: structure
    optim.ProximalDecayState:
        shape     step_with_state("proximal_weight_decay")  -> right

    optim.average_conv_kernels:
        nan       ok.{}(jnp.full((2, 2, 1, 1), NAN))      -> NaN
        shape     ok.{}(jnp.ones(3))                      -> right: x.shape == (3,)
        empty     ok.{}(jnp.zeros((0, 2, 1, 1)))          -> right: x.size == 0
    optim.average_rows:
        nan       ok.{}(jnp.full((2, 2), NAN))            -> NaN
        shape     ok.{}(jnp.ones(()))                     -> right: x.shape == ()
        empty     ok.{}(jnp.zeros((0, 2)))                -> right: x.size == 0
    optim.average_blocks:
        nan       ok.{}(2)(jnp.full((2, 2), NAN))         -> NaN
        shape     ok.{}(3)(jnp.ones((2, 2)))              -> ValueError: divides
        option    ok.{}(0)                                -> ValueError: size >= 1
        empty     ok.{}(2)(jnp.zeros((0, 2)))             -> right: x.size == 0

    scan_with_progress:
        nan       scan(jnp.full(2, NAN))                -> NaN
        empty     scan(jnp.zeros(0)) -> ValueError: at least one
        shape     scan((jnp.ones(2), jnp.ones(3))) -> ValueError: same for all leaves
        missing   scan(None)                            -> ValueError: length
        option    scan(jnp.ones(2), every=0)            -> ValueError: every >= 1
        object    scan(jnp.ones(2), show=3.0)           -> TypeError: function
        object    ok.{}(3.0, 0.0, jnp.ones(2))          -> TypeError: function
    """,
)
