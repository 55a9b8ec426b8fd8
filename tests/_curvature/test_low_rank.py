"""Rows of per-example gradients, in chunks and in blocks."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import problems
import pytest
from precision import X64, assert_allclose

import optkit as ok

PARAMS = problems.mlp_params(jr.key(2))
INPUTS, _, LABELS = problems.mlp_data(jr.key(1), num=7)
BATCH = (INPUTS, LABELS)


@jax.jit
def dense(C):
    return C.as_matrix()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_give_the_same_rows(chunk):
    # oracle: identity
    want = ok.empirical_fisher(problems.mlp_example_loss, PARAMS, BATCH)
    fisher = jax.jit(
        lambda p, b: ok.empirical_fisher(problems.mlp_example_loss, p, b, chunk=chunk)
    )
    got = fisher(PARAMS, BATCH)
    assert got.num_rows == want.num_rows == 7
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(g, w, rtol=1e-12, atol=1e-14 if X64 else 1e-7)


def test_the_scale_is_the_mean_over_examples():
    # oracle: closed form; repeating the data leaves the curvature as it is
    once = ok.empirical_fisher(problems.mlp_example_loss, PARAMS, BATCH)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), BATCH)
    twice = ok.empirical_fisher(problems.mlp_example_loss, PARAMS, twice)
    for a, b in zip(
        *map(jax.tree.leaves, (once.diagonal(), twice.diagonal())), strict=True
    ):
        assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_rows_of_narrow_params_are_scaled_in_float32():
    # oracle: closed form, within half a bfloat16 step
    x = jnp.arange(1.0, 4.0, dtype=jnp.bfloat16)
    C = ok.empirical_fisher(jnp.multiply, jnp.bfloat16(1), x)
    assert C.rows.dtype == jnp.bfloat16
    want = np.arange(1.0, 4.0) / np.sqrt(3)
    assert_allclose(C.rows.astype(float), want, rtol=2.0**-8)


@pytest.mark.parametrize("block_size", [1, 4, 1000])
def test_blocks_are_the_blocks_of_the_matrix(block_size):
    # oracle: dense
    C = ok.empirical_fisher(problems.mlp_example_loss, PARAMS, BATCH)
    whole, matrix, start = dense(C), np.zeros((23, 23)), 0
    for leaf in jax.tree.leaves(PARAMS):
        for i in range(0, leaf.size, block_size):
            block = slice(start + i, start + min(i + block_size, leaf.size))
            matrix[block, block] = whole[block, block]
        start += leaf.size
    blocks = C.block_diagonal(block_size)
    assert_allclose(dense(blocks), matrix, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("block_size", [1, 2, 4, 1000])
def test_join_undoes_split_and_the_padding_is_zero(block_size):
    # oracle: identity
    rows = jax.tree.map(lambda p: jnp.stack([p, p + 1]), PARAMS)
    C = ok.BlockLowRank(rows, block_size)
    blocks = C.split(PARAMS)
    for leaf, block in zip(*map(jax.tree.leaves, (PARAMS, blocks)), strict=True):
        assert block.shape[1] == min(block_size, leaf.size)
        assert_allclose(block.ravel()[leaf.size :], 0)
    for leaf, back in zip(*map(jax.tree.leaves, (PARAMS, C.join(blocks))), strict=True):
        assert_allclose(back, leaf, rtol=0)
    for row, one in zip(*map(jax.tree.leaves, (C.split(rows, 1), blocks)), strict=True):
        assert_allclose(row[0], one, rtol=0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda fn: fn(PARAMS, (INPUTS[:0], LABELS[:0])), "at least one example"),
        (lambda fn: fn(PARAMS, (INPUTS, LABELS[:2])), "first axis"),
        (lambda fn: fn(PARAMS, (INPUTS, 1.0)), "first axis"),
        (lambda fn: fn(PARAMS, None), "first axis"),
        (lambda fn: fn(PARAMS, BATCH, chunk=0), "chunk >= 1"),
        (lambda fn: ok.LowRank((jnp.ones((2, 1)), jnp.ones(3))), "leading axis"),
        (lambda fn: ok.LowRank((jnp.ones(()),)), "leading axis"),
        (lambda fn: ok.LowRank(jnp.ones((2, 1))).block_diagonal(0), "block_size >= 1"),
    ],
)
def test_mistakes_raise_and_say_what_to_do(call, match):
    # oracle: none, the messages
    def fisher(params, batch, chunk=None):
        fn = problems.mlp_example_loss
        return ok.empirical_fisher(fn, params, batch, chunk=chunk)

    with pytest.raises(ValueError, match=match):
        call(fisher)


def test_a_loss_of_the_whole_batch_is_not_an_example_loss():
    # oracle: none, the message
    with pytest.raises(ValueError, match="one real scalar, got shape"):
        ok.empirical_fisher(lambda w, x: w * x, jnp.ones(2), jnp.ones((3, 2)))
