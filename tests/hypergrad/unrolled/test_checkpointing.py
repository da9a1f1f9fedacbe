"""The schedule: optimal, within its budget, and able to say when there is none."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from hypergrad.unrolled.checkpointing import schedule


@cache
def fewest_advances(blocks: int, slots: int) -> int:
    """Blocks run again by the best of all schedules, by dynamic programming."""
    if blocks == 1:
        return 0
    if slots == 1:
        return blocks * (blocks - 1) // 2
    return min(
        first + fewest_advances(blocks - first, slots - 1) + fewest_advances(first, slots)
        for first in range(1, blocks)
    )


@pytest.mark.parametrize("slots", [2, 3, 4, 6, 9])
@pytest.mark.parametrize("steps", [7, 16, 40, 65])
def test_no_schedule_runs_fewer_steps(steps, slots):
    # With steps that keep as much as a state, blocks of one step are forced by the budget.
    chosen = schedule(steps, 100, 100 * steps, (slots + 2) * 100 + 100 * steps)
    assert chosen.block == 1
    assert chosen.slots == min(slots, steps)
    assert chosen.advances == fewest_advances(steps, chosen.slots - 1) + 1


@pytest.mark.parametrize(("steps", "memory"), [(1, None), (50, 900), (97, 1500), (1000, 2500)])
def test_the_moves_make_every_block_start_in_time(steps, memory):
    chosen = schedule(steps, 100, 30, memory)
    held = {0: 0}
    done = 0
    for block in reversed(range(chosen.blocks)):
        needed, slot = chosen.ready[block]
        for source, target, first, count in chosen.moves[done:needed].tolist():
            assert held[source] == first
            assert 0 < target < chosen.slots
            held[target] = first + count
        done = int(needed)
        assert held[int(slot)] == block
    assert done == len(chosen.moves)
    assert chosen.blocks * chosen.block + chosen.tail == steps
    assert memory is None or chosen.bytes <= memory


def test_more_memory_never_runs_more_steps():
    budgets = np.geomspace(600, 200_000, 40).astype(int)
    runs = [schedule(1000, 100, 170, int(b)).advances for b in budgets]
    # A tail is taken only if it saves more than it costs to compile, which the order leaves open.
    assert all(b <= a + 50 for a, b in pairwise(runs))
    assert runs[-1] == 1000


def test_memory_that_saves_no_step_is_not_taken():
    """As long as the run does not fit as a whole, every step is run once more at best."""
    least = schedule(64, 100, 170, 3600)
    for memory in (5000, 8000, 11_000):
        chosen = schedule(64, 100, 170, memory)
        assert (chosen.advances, chosen.bytes) == (64, least.bytes)
    whole = schedule(64, 100, 170, 64 * 170 + 300)
    assert (whole.blocks, whole.tail) == (1, 0)


def test_without_a_budget_no_step_is_run_more_than_twice():
    mega = 2**20
    chosen = schedule(1000, mega, 2 * mega)
    assert chosen.advances <= 1000
    assert chosen.bytes < 2.2 * mega * (2 * 1000) ** 0.5
    assert schedule(1000, 100, 100).blocks == 1


def test_too_little_memory_states_what_is_needed():
    with pytest.raises(ValueError, match="expected at least 470") as info:
        schedule(1000, 100, 70, 469)
    assert "1000 steps" in str(info.value)
    assert schedule(1000, 100, 70, 470).slots == 2
