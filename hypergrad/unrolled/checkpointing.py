"""When to store and when to run again: reverse mode within a chosen memory.

Reverse mode needs the states of a run in the opposite order. The run is cut into blocks. A block is
pulled back as a whole, holding what its steps leave for their derivatives; block starts are kept in
a few slots, or run again from an earlier slot, in the binomial order that is optimal for a given
number of slots (Griewank & Walther, *Algorithm 799: revolve*, ACM TOMS 2000). With `c` slots and
each block run at most `r` times before it is pulled back, `C(c + r, c)` blocks can be reversed:
memory grows like the number of slots, and not like the number of steps.
"""

from functools import lru_cache
from math import comb
from typing import Any, NamedTuple

import numpy as np

from hypergrad.expected import require_finite

_PLAIN_BYTES = 2**26


class CheckpointSchedule(NamedTuple):
    """How a run of `steps` is reversed.

    - `block`: steps that are pulled back together.
    - `blocks`: number of such blocks; the `tail` steps that are left over come last.
    - `slots`: states stored at a time, the start and a scratch slot included.
    - `moves`: rows `(from slot, to slot, first block, number of blocks)`: run on from one stored
      state to make another.
    - `ready`: for each block in the order of time, the number of moves after which its start is
      stored, and the slot that it is then in.
    - `advances`: steps run without being pulled back.
    - `bytes`: predicted memory.
    """

    block: int
    blocks: int
    tail: int
    slots: int
    moves: np.ndarray
    ready: np.ndarray
    advances: int
    bytes: int


@lru_cache(maxsize=256)
def schedule(
    steps: int, state_bytes: int, step_bytes: int, memory: int | None = None
) -> CheckpointSchedule:
    """The schedule that runs the fewest steps again within `memory`, and of such takes the least.

    **Arguments:**

    - `steps`: length of the run.
    - `state_bytes`: size of params and optimizer state.
    - `step_bytes`: what one step keeps for its derivative when several are pulled back together.
    - `memory`: bytes allowed. `None` stores the whole run if that takes less than 64 MiB, and
      otherwise takes the least memory at which no step is run more than twice, about
      `2 sqrt(steps * state_bytes * step_bytes)`.

    **Raises:** `ValueError` if the budget is less than the minimum, which the message states.
    """
    state_bytes, step_bytes = max(state_bytes, 1), max(step_bytes, 1)
    best: tuple[float, int, int, int] | None = None
    for block in _candidates(steps):
        blocks, tail = divmod(steps, block)
        least = _bytes(1 if blocks == 1 else 2, tail, block, state_bytes, step_bytes)
        if memory is None:
            slots = blocks
            needed = _bytes(slots, tail, block, state_bytes, step_bytes)
            # One more program to compile for a tail.
            score = needed * (1.1 if tail else 1.0)
            if block == steps and needed <= _PLAIN_BYTES:
                score = 0.0
        else:
            if least > memory:
                continue
            spare = (memory - least) // state_bytes
            slots = min(blocks, (1 if blocks == 1 else 2) + spare)
            needed = _bytes(slots, tail, block, state_bytes, step_bytes)
            # A run that is one block is pulled back as it is run. Else the last block is run before
            # it is pulled back, like all others: with every state stored, blocks of any size run
            # each step once more, and the smallest memory is taken.
            again = (_advances(blocks, slots - 1) + 1) * block + tail
            score = 0 if block == steps else again + (0.05 * steps if tail else 0)
        if best is None or (score, needed) < best[:2]:
            best = (score, needed, block, slots)
    if best is None:
        least = _bytes(2 if steps > 1 else 1, 0, 1, state_bytes, step_bytes)
        raise ValueError(
            f"memory={memory} bytes is too little to reverse {steps} steps: expected at least "
            f"{least}, for a state of {state_bytes} bytes and {step_bytes} bytes kept by a step."
        )
    _, needed, block, slots = best
    blocks, tail = divmod(steps, block)
    moves, ready = _moves(blocks, slots - 1)
    advances = int(moves[:, 3].sum() + 1) * block + tail
    return CheckpointSchedule(block, blocks, tail, slots, moves, ready, advances, needed)


def bytes_allowed(owner: str, memory: Any) -> int | None:
    """A budget in bytes, if it is a number or `None`; `owner` is who is given it."""
    if memory is None:
        return None
    require_finite(owner, "memory (bytes)", memory)
    return int(memory)


def _bytes(slots: int, tail: int, block: int, state_bytes: int, step_bytes: int) -> int:
    # Besides the slots: the adjoint, the state under way, and the start of the tail.
    return (slots + 2 + (tail > 0)) * state_bytes + block * step_bytes


def _candidates(steps: int) -> list[int]:
    if steps <= 4096:
        return list(range(1, steps + 1))
    divisors = {d for d in range(1, int(steps**0.5) + 1) if steps % d == 0}
    divisors |= {steps // d for d in divisors}
    return sorted(divisors | set(np.unique(np.geomspace(1, steps, 1000).astype(int)).tolist()))


def _repeats(blocks: int, slots: int) -> int:
    """The fewest runs per block with which `slots` stored states can reverse `blocks`."""
    if blocks == 1:
        return 0
    if slots == 1:
        return blocks - 1
    repeats = 0
    while comb(slots + repeats, slots) < blocks:
        repeats += 1
    return repeats


def _advances(blocks: int, slots: int) -> int:
    """Blocks that have to be run besides those pulled back (Griewank's formula)."""
    if blocks == 1:
        return 0
    repeats = _repeats(blocks, slots)
    return repeats * blocks - comb(slots + repeats, repeats - 1)


def _moves(blocks: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """The moves of the binomial order. Slot `slots` is scratch: only ever read by a pull-back."""
    moves: list[tuple[int, int, int, int]] = []
    ready = np.zeros((blocks, 2), np.int32)
    # Segments still to be reversed, the latest last: first block, number of blocks, slot that holds
    # the start of the first.
    pending = [(0, blocks, 0)]
    while pending:
        first, count, slot = pending.pop()
        if count == 1:
            ready[first] = len(moves), slot
            continue
        free = slots - slot
        if free == 1:
            moves.append((slot, slots, first, count - 1))
            ready[first + count - 1] = len(moves), slots
            pending.append((first, count - 1, slot))
            continue
        repeats = _repeats(count, free)
        later = comb(free - 1 + repeats, free - 1)
        split = max(count - later, comb(free + repeats - 2, free) if repeats > 1 else 1, 1)
        moves.append((slot, slot + 1, first, split))
        pending.append((first, split, slot))
        pending.append((first + split, count - split, slot + 1))
    return np.asarray(moves, np.int32).reshape(-1, 4), ready
