import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.outer import Batches, FullBatch, Minibatches

INNER = {"x": jnp.arange(12.0), "id": jnp.arange(12)}
OUTER = {"x": -jnp.arange(6.0)}


def draw(sampler, step=3, seed=0):
    return sampler(INNER, OUTER, jnp.asarray(step), jax.random.key(seed))


def test_full_batch_uses_everything_everywhere():
    batches = draw(FullBatch())
    for part in (batches.inner(0), batches.inner(7), batches.linear):
        assert part is INNER
    assert batches.outer is OUTER


def test_same_uses_one_batch():
    batches = draw(Minibatches(4, 2, policy="same", fits=3))
    for fit in range(3):
        np.testing.assert_array_equal(batches.inner(fit)["x"], batches.linear["x"])
    assert batches.linear["x"].shape == (4,)
    assert batches.outer["x"].shape == (2,)
    np.testing.assert_array_equal(batches.linear["x"], batches.linear["id"])


def test_fresh_solves_on_the_last_inner_batch():
    batches = draw(Minibatches(6, policy="fresh", fits=3))
    rows = [np.asarray(batches.inner(fit)["id"]) for fit in range(3)]
    assert not np.array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[2], batches.linear["id"])


def test_independent_solves_on_a_batch_of_its_own():
    batches = draw(Minibatches(6, policy="independent", fits=2))
    rows = [np.asarray(batches.inner(fit)["id"]) for fit in range(2)]
    assert not any(np.array_equal(r, batches.linear["id"]) for r in rows)


def test_draws_depend_on_step_and_key_only():
    sampler = Minibatches(6)
    first, again = draw(sampler), draw(sampler)
    np.testing.assert_array_equal(first.linear["id"], again.linear["id"])
    assert not np.array_equal(first.linear["id"], draw(sampler, step=4).linear["id"])
    assert not np.array_equal(first.linear["id"], draw(sampler, seed=1).linear["id"])


def test_blocks_partition_the_data():
    sampler = Minibatches(4, 3, blocks=True)
    blocks = {}
    for step in range(40):
        batches = draw(sampler, step)
        assert (batches.inner_count, batches.outer_count) == (3, 2)
        blocks[int(batches.inner_number)] = tuple(np.asarray(batches.linear["id"]))
    assert sorted(sum(blocks.values(), ())) == list(range(12))


def test_a_users_own_batches():
    batches = Batches(INNER, OUTER, linear_rows=jnp.asarray([1, 2]))
    assert batches.inner()["x"].shape == (12,)
    np.testing.assert_array_equal(batches.linear["x"], [1.0, 2.0])


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Minibatches(13), "inner_data has 12 examples, fewer than a batch of 13"),
        (Minibatches(12, 7), "outer_data has 6 examples, fewer than a batch of 7"),
        (Minibatches(5, blocks=True), "12 examples, which do not divide into blocks of 5"),
    ],
)
def test_impossible_sizes_are_refused(sampler, message):
    with pytest.raises(ValueError, match=message):
        draw(sampler)


def test_ragged_data_and_unknown_policies_are_refused():
    with pytest.raises(ValueError, match=r"first axis, received shapes \[\(3,\), \(4,\)\]"):
        Minibatches(2)((jnp.ones(3), jnp.ones(4)), OUTER, jnp.asarray(0), jax.random.key(0))
    with pytest.raises(ValueError, match="received 'other'"):
        Minibatches(2, policy="other")
    with pytest.raises(ValueError, match="size: expected an integer >= 1, received 0"):
        Minibatches(0)
