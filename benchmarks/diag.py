"""Loss, gradient and Hutchinson diagonal in one pass, compared with two passes."""

import jax
import jax.random as jr

import optkit as ok
from optkit._vector import signs

from .adahessian import PASS
from .machine import floor
from .measure import in_turn, measure
from .network import loss, make_network, pass_flops
from .report import Job, Result, Role, at_most

OURS = "ok.value_grad_and_diag"
PIECES = "gradient, then a separate HVP"
PROBE = "drawing the probe alone"


def run(size: int, rounds: int) -> Result:
    """Measures a tanh network with about `size` float32 weights and 784 inputs."""
    params, x, y = make_network(size)
    value_and_grad = jax.value_and_grad(loss)
    one_pass = ok.value_grad_and_diag(loss)

    functions = {
        PASS: [lambda p, z, _: jax.jvp(lambda p: value_and_grad(p, x, y), (p,), (z,))],
        OURS: [lambda p, _, k: one_pass(p, x, y, key=k)],
        PIECES: [
            lambda p, *_: value_and_grad(p, x, y),
            lambda p, z, _: ok.hvp(loss, p, z, x, y),
        ],
        "gradient alone": [lambda p, *_: value_and_grad(p, x, y)],
        PROBE: [lambda p, _, k: signs(k, p)],
    }
    roles: dict[str, Role] = {PASS: "floor", PIECES: "peer"}
    args = (params, signs(jr.key(2), params), jr.key(1))
    candidates = [
        in_turn(name, made, args, roles.get(name, "ours"))
        for name, made in functions.items()
    ]
    timing = measure(candidates, rounds)
    counted = floor(flops=pass_flops(params))
    to_pass = timing.table("Against the bare pass", PASS, floor=counted)
    to_pieces = timing.table("Against two passes", PIECES, [PIECES, OURS])
    to_ours = timing.table("Share of the probe", OURS, [OURS, PROBE])
    targets = [
        at_most(
            1.15,
            to_pass.row(OURS),
            "`ok.value_grad_and_diag` takes at most 1.15 × the time of one `jvp` of "
            "`value_and_grad` with a ready probe",
            _ELEMENTWISE,
        ),
        at_most(
            0.9,
            to_pieces.row(OURS),
            "`ok.value_grad_and_diag` takes at most 0.9 × the time of the gradient and "
            "a separate HVP",
            _ELEMENTWISE,
        ),
        at_most(
            0.05,
            to_ours.row(PROBE),
            "Drawing the probe takes less than 5 % of `ok.value_grad_and_diag`",
            _ELEMENTWISE,
        ),
    ]
    return Result([to_pass, to_pieces, to_ours], targets)


_ELEMENTWISE = (
    "Drawing the probe and multiplying it with Hz is elementwise work on every weight. "
    "It does not shrink with the batch, while the matrix products do."
)

JOB = Job(
    title="Loss, gradient and Hutchinson diagonal in one pass",
    run=run,
    size=1_800_000,
    unit="float32 weights of a tanh network, 784 inputs, 512 examples",
    reading=(
        "The Hessian product shares the forward and the backward pass with the loss "
        "and the gradient. A gradient followed by a separate product goes through the "
        "network once more. One random word provides the signs of 32 entries of the "
        "probe."
    ),
)
