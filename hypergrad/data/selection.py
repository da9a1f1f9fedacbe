"""The subset of the examples to train on, found by metagradient steps.

With a weight of 1 for the examples in the subset and 0 for the others, `g = dq/dp` is known for
both: exchanging `i` inside for `j` outside changes the mean query loss by `g_j − g_i` to first
order. The derivative is that of a training on the subset (Engstrom et al. 2025, section 4, who move
the counts of a random share of the examples by the sign of `g`). Here a step exchanges the most
promising pairs, so that the size stays, and is taken back if the loss rose.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.data.frames import to_frame, without_frames
from hypergrad.data.trained import (
    check_count,
    check_finite,
    check_order,
    check_queries,
    train,
)
from hypergrad.data.weighted import WeightedExamples
from hypergrad.estimator import Estimator
from hypergrad.expected import require_number
from hypergrad.implicit.trains import check_trains
from hypergrad.problem import BilevelProblem

# A refused exchange is tried again with so much fewer pairs.
_SHRINK = 4


class Selection(eqx.Module):
    """What `select` found.

    - `chosen`: numbers of the `k` examples, increasing.
    - `scores`: `dq/dp_i` at the subset, for all `n` examples: negative ones would lower the loss.
    - `params`: the training on the subset.
    - `value`: its mean query loss, the least of `losses`.
    - `losses`: of all trainings, in order: the start first.
    - `exchanged`: how many examples each training had exchanged.
    - `index`: of the rows, if the examples were data frames.
    """

    chosen: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " n"]
    params: PyTree
    value: float
    losses: Float[np.ndarray, " trainings"]
    exchanged: Int[np.ndarray, " trainings"]
    index: Any = None

    def frame(self) -> Any:
        """A pandas data frame with a row an example: `chosen` (true or false) and `score`."""
        inside = np.isin(np.arange(len(self.scores)), self.chosen)
        return to_frame({"chosen": inside, "score": self.scores}, self.index)


def select(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    examples: PyTree,
    queries: PyTree,
    k: int,
    *,
    estimator: Estimator,
    steps: int = 20,
    share: float = 0.2,
    start: Any = None,
    order: Any = None,
    key: Array | None = None,
) -> Selection:
    """The `k` examples to train on, for the least mean query loss.

    Costs a training with its derivative a step. The first subset is the best `k` by the scores of
    one training on all examples.

    **Arguments:**

    - `problem`, `params`, `hparams`, `examples`, `queries`, `order`, `key`: as for `attribute`;
      `params` are where each training starts. Data frames are taken as arrays.
    - `k`: size of the subset.
    - `estimator`: it trains: `Unrolled(...)`, `ImplicitDifferentiation(solver)`.
    - `steps`: trainings at most, besides the one on all.
    - `share`: largest share of the subset that one step exchanges. Default 0.2.
    - `start`: numbers of `k` examples to begin with.

    **Returns:** a `Selection`, the best subset that was trained on.

    **Raises:** `ValueError` for bad input, `FloatingPointError` if the first training diverges.
    """
    check_call("select", problem, key, params=params, hparams=hparams)
    check_trains(estimator, "each step has other weights")
    examples, index = without_frames("examples", examples)
    queries, _ = without_frames("queries", queries)
    params, hparams, examples, queries = as_arrays((params, hparams, examples, queries))
    weighted = WeightedExamples(problem, hparams, examples)
    check_queries(weighted, params, queries, key)
    size = weighted.size
    k, steps = check_count("k", k, size), check_count("steps", steps)
    require_number("select", "share", share)
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], received {share!r}.")
    numbers = jnp.arange(size) if order is None else check_order(order, size)
    dtype = jnp.result_type(float)

    def trained(inside: np.ndarray) -> tuple[float, np.ndarray, PyTree]:
        weights = jnp.asarray(inside, dtype)
        out = train(weighted, estimator, params, weights, numbers, queries, key)
        return float(out.value), np.asarray(out.grad, float), out.state.params

    if start is None:
        value, scores, _ = trained(np.ones(size, bool))
        check_finite(value, 0)
        inside = np.zeros(size, bool)
        inside[np.argsort(scores, kind="stable")[:k]] = True
    else:
        inside = _started(start, k, size)
    value, scores, best = trained(inside)
    check_finite(value, 0)
    losses, exchanged = [value], [0]
    most = max(1, round(share * k))
    while len(losses) <= steps:
        leave, enter = _exchange(inside, scores, most)
        if not leave.size:
            break
        trial = inside.copy()
        trial[leave], trial[enter] = False, True
        new, new_scores, new_params = trained(trial)
        losses.append(new)
        exchanged.append(leave.size)
        if new < value:  # Never true of a training that diverged.
            value, scores, best, inside = new, new_scores, new_params, trial
        elif leave.size == 1:
            break
        else:
            most = max(1, leave.size // _SHRINK)
    chosen = np.flatnonzero(inside)
    return Selection(chosen, scores, best, value, np.array(losses), np.array(exchanged), index)


def _exchange(inside: np.ndarray, scores: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose exchange promises most: who leaves, who enters."""
    kept, other = np.flatnonzero(inside), np.flatnonzero(~inside)
    leave = kept[np.argsort(-scores[kept], kind="stable")[:most]]
    enter = other[np.argsort(scores[other], kind="stable")[:most]]
    pairs = min(len(leave), len(enter))
    gain = scores[leave[:pairs]] > scores[enter[:pairs]]
    return leave[:pairs][gain], enter[:pairs][gain]


def _started(start: Any, k: int, size: int) -> np.ndarray:
    numbers = np.asarray(start)
    whole = np.issubdtype(numbers.dtype, np.integer)
    if not whole or numbers.shape != (k,) or len(set(numbers.tolist()) & set(range(size))) != k:
        raise ValueError(
            f"start: expected {k} different integers from 0 to {size - 1}, received "
            f"{numbers.dtype} of shape {numbers.shape}."
        )
    inside = np.zeros(size, bool)
    inside[numbers] = True
    return inside
