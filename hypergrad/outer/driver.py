"""Run any outer algorithm: progress, stopping, checkpoints, history, and a guard.

The algorithm's `step` is pure; everything that is not (clocks, files, warnings, printing) is here.
"""

import csv
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.compiled import as_arrays, strong
from hypergrad.mistakes import check_leaves
from hypergrad.outer import checkpoint as files
from hypergrad.outer.base import RUNNING, STOPS, Batches, OuterAlgorithm, OuterInfo, OuterState
from hypergrad.outer.batches import FullBatch, Sampler
from hypergrad.outer.constraints import check_start
from hypergrad.problem import BilevelProblem

Row = dict[str, float | int | bool]


class OverTuningWarning(UserWarning):
    """The validation loss falls while the loss on held-out data rises."""


class Point(eqx.Module):
    """Hyperparameters, the inner parameters found for them, their outer loss, and the step."""

    step: Array
    value: Array
    hparams: PyTree
    params: PyTree


@dataclass(frozen=True)
class Report:
    """What a callback is given after each look.

    - `step`, `steps`: outer steps taken, and asked for.
    - `row`: the last row of the history.
    - `state`: the algorithm's state.
    - `seconds`, `seconds_left`: wall-clock time spent, and an estimate of what is left.
    """

    step: int
    steps: int
    row: Row
    state: OuterState
    seconds: float
    seconds_left: float


Callback = Callable[[Report], bool | None]


@dataclass(frozen=True)
class Result:
    """What a run found.

    - `hparams`, `params`: the last hyperparameters visited, and the inner parameters there.
    - `value`: their outer loss.
    - `status`: "steps" (all taken), "stationary", "patience", "callback", "accuracy_limit" (no
      decrease can be certified with the accuracy that can be had), or "breakdown" (a number was not
      finite: nothing moved in that step).
    - `best`: the point of smallest outer loss among those looked at.
    - `holdout_best`: the point of smallest held-out loss; its `value` is that loss. `None` without
      held-out data.
    - `history`: one row per outer step: `step`, `seconds`, the fields of `OuterInfo`,
      `validation` (outer loss on all outer data) and `holdout`, NaN at steps without a look.
    - `state`: the algorithm's state after the last step.
    """

    hparams: PyTree
    params: PyTree
    value: float
    status: str
    best: Point
    holdout_best: Point | None
    history: list[Row]
    state: OuterState

    def write_csv(self, path: str | Path) -> None:
        """Write the history as a CSV file with a header line."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]) if self.history else [])
            writer.writeheader()
            writer.writerows(self.history)


@dataclass
class Progress:
    """A callback that prints step, outer loss, hypergradient norm, error estimate, time left.

    **Arguments:**

    - `stream`: where to; the standard error stream by default. On a terminal the line is rewritten
      in place.
    - `every`: seconds between two lines where they cannot be rewritten. Default 5.
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every: float = 5.0
    _last: float = field(default=-math.inf, repr=False)

    def __call__(self, report: Report) -> None:
        """Print the line."""
        row, last = report.row, report.step >= report.steps
        text = (
            f"step {report.step}/{report.steps}  outer loss {row['validation']:.6g}  "
            f"|hypergradient| {row['hypergradient_norm']:.3g}  error {row['error']:.2g}  "
            f"{report.seconds_left:.0f} s left"
        )
        if self.stream.isatty():
            self.stream.write(f"\r{text:<100}" + ("\n" if last else ""))
            self.stream.flush()
        elif last or time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self.stream.write(text + "\n")


class _Ledger(eqx.Module):
    """Everything that a checkpoint holds besides the history."""

    state: OuterState
    best: Point
    holdout_best: Point


def run(
    problem: BilevelProblem,
    algorithm: OuterAlgorithm,
    params: PyTree,
    hparams: PyTree,
    inner_data: PyTree,
    outer_data: PyTree,
    *,
    steps: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    every: int = 1,
    holdout_data: PyTree = None,
    overtuning_margin: float = 0.05,
    tol: float | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
) -> Result:
    """Tune the hyperparameters.

    The run looks up every `every` steps: it records and reports, evaluates the outer loss on all of
    the outer (and the held-out) data, tests the stopping rules, and saves. The steps in between are
    one compiled program.

    **Arguments:**

    - `problem`: the two losses.
    - `algorithm`: `Alternating`, `HOAG`, `MAID`, `SOBA`, `SABA` or `F2SA`.
    - `params`: where the inner problem starts, any pytree.
    - `hparams`: where the outer problem starts, any pytree. Python floats are taken as arrays.
    - `inner_data`, `outer_data`: training and validation data, any pytrees.
    - `steps`: outer steps in total, those before a resume included.
    - `sampler`: which examples enter which part of a step. Default: all of them, `FullBatch()`.
    - `seed`: of the mini-batches and of the losses' own noise.
    - `every`: steps between two looks. Default 1.
    - `holdout_data`: data that tune nothing: the guard against over-tuning watches the outer loss
      on them.
    - `overtuning_margin`: the guard warns when, since the step with the best held-out loss, that
      loss has risen by more than this fraction of its size while the validation loss has fallen by
      more than it. Default 0.05.
    - `tol`: stop as "stationary" when `OuterInfo.stationarity <= tol`. Default: never.
    - `patience`: stop when the outer loss has not fallen by more than `min_delta` below its best
      for so many steps. Default: never.
    - `min_delta`: see `patience`.
    - `callbacks`: called with a `Report` at each look; one that returns `True` stops the run.
    - `checkpoint`: a file. If it exists the run continues from it, and gives what the uninterrupted
      run gives, bit for bit on the same machine. Delete it to start over.
    - `checkpoint_seconds`: least time between two saves; 0 saves at each look. Default 10. The end
      of the run is always saved.

    **Returns:** a `Result`.

    **Raises:** `ValueError` for data that are not finite, a start outside the constraint,
    hyperparameters without effect, `CheckpointError` (a `ValueError`) for a checkpoint that is
    damaged or of another problem. All name the offender.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"run: steps and every must be at least 1, got {steps} and {every}.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise ValueError(f"run: seed expected an integer, received {seed!r}; the default is 0.")
    check_leaves(
        params=params,
        hparams=hparams,
        inner_data=inner_data,
        outer_data=outer_data,
        holdout_data=holdout_data,
    )
    sampler = FullBatch() if sampler is None else sampler
    params, hparams = as_arrays(params), as_arrays(hparams)
    data = as_arrays((inner_data, outer_data, holdout_data))
    for name, part in zip(("inner_data", "outer_data", "holdout_data"), data, strict=True):
        _require_finite(name, part)
    check_start(algorithm.constraint, hparams)
    inner_data, outer_data, holdout_data = data
    root = jax.random.key(seed)
    key, look_key = jax.random.split(root)

    begin = (problem, algorithm, sampler, params, hparams, inner_data, outer_data, key)
    path = None if checkpoint is None else Path(checkpoint)
    identity: dict[str, str] = {}
    if path is not None:
        identity = _identity(problem, algorithm, sampler, params, hparams, data, seed)
    history: list[Row] = []
    spent, status = 0.0, "steps"
    if path is not None and files.exists(path):
        like = eqx.filter_eval_shape(_begin, *begin)
        ledger, extra = files.load(path, like, identity)
        history, spent, status = extra["history"], extra["seconds"], extra["status"]
    else:
        ledger = _begin(*begin)
    state, best, holdout_best = ledger.state, ledger.best, ledger.holdout_best

    started = time.monotonic()
    saved = started
    warned = any(row["overtuned"] for row in history)
    taken = 0
    measured_from = (started, 0)
    while status == "steps" and len(history) < steps:
        count = min(every, steps - len(history))
        state, infos = _advance(
            problem, algorithm, sampler, state, inner_data, outer_data, key, count
        )
        infos = jax.device_get(infos)
        stops = np.atleast_1d(infos.stop)
        stopped = np.flatnonzero(stops != RUNNING)
        kept = int(stopped[0]) + 1 if stopped.size else count
        seconds = spent + time.monotonic() - started
        for i in range(kept):
            fields = {
                name: np.atleast_1d(getattr(infos, name))[i].item()
                for name in OuterInfo.__dataclass_fields__
            }
            number = len(history) + 1
            tail = {"validation": math.nan, "holdout": math.nan, "overtuned": False}
            history.append({"step": number, "seconds": seconds, **fields, **tail})
        row = history[-1]

        point = (state.params, state.visited)
        noise = jax.random.fold_in(look_key, len(history))
        look = sampler.look(outer_data)
        if look is None:
            row["validation"] = row["value"]
        else:
            row["validation"] = float(_outer_loss(problem, *point, look, noise))
        if holdout_data is not None:
            row["holdout"] = float(_outer_loss(problem, *point, holdout_data, noise))
        number = len(history)
        if row["validation"] < float(best.value) - min_delta:
            best = _point(best, number, row["validation"], state)
        if row["holdout"] < float(holdout_best.value):
            holdout_best = _point(holdout_best, number, row["holdout"], state)
        turn = history[max(int(holdout_best.step), 1) - 1]
        row["overtuned"] = _overtuned(turn, row, overtuning_margin)
        if row["overtuned"] and not warned:
            warned = True
            _warn_overtuning(turn, row, hparams)

        taken += kept
        now = time.monotonic()
        pace = (now - measured_from[0]) / (taken - measured_from[1])
        if taken == kept:  # later looks leave out what the first one took to compile
            measured_from = (now, taken)
        report = Report(number, steps, row, state, spent + now - started, pace * (steps - number))
        asked = [_asked(callback(report)) for callback in callbacks]
        if stopped.size:
            status = STOPS[int(stops[stopped[0]])]
        elif tol is not None and row["stationarity"] <= tol:
            status = "stationary"
        elif patience is not None and number - int(best.step) >= patience:
            status = "patience"
        elif any(asked):
            status = "callback"
        finished = status != "steps" or number >= steps
        if path is not None and (finished or now - saved >= checkpoint_seconds):
            extra = {"history": history, "seconds": spent + now - started, "status": status}
            files.save(path, _Ledger(state, best, holdout_best), identity, extra)
            saved = now

    return Result(
        hparams=state.visited,
        params=state.params,
        value=history[-1]["validation"],
        status=status,
        best=best,
        holdout_best=None if holdout_data is None else holdout_best,
        history=history,
        state=state,
    )


def _asked(answer: object) -> bool:
    if answer is not None and not isinstance(answer, bool | np.bool_):
        raise ValueError(
            "run: a callback returns True to stop the run, None or False to go on; received a "
            f"{type(answer).__name__}."
        )
    return bool(answer)


@eqx.filter_jit
def _begin(
    problem: BilevelProblem,
    algorithm: OuterAlgorithm,
    sampler: Sampler,
    params: PyTree,
    hparams: PyTree,
    inner_data: PyTree,
    outer_data: PyTree,
    key: Array,
) -> _Ledger:
    draw, noise = jax.random.split(key)
    batches = sampler(inner_data, outer_data, jnp.zeros((), jnp.int32), draw)
    state = algorithm.init(problem, params, hparams, batches, noise)
    dtype = _value_type(problem, params, hparams, batches, noise)
    worst = jnp.full((), jnp.inf, dtype)
    nowhere = Point(jnp.zeros((), jnp.int32), worst, hparams, params)
    return strong(_Ledger(state, nowhere, nowhere))


@eqx.filter_jit
def _advance(
    problem: BilevelProblem,
    algorithm: OuterAlgorithm,
    sampler: Sampler,
    state: OuterState,
    inner_data: PyTree,
    outer_data: PyTree,
    key: Array,
    count: int,
) -> tuple[OuterState, OuterInfo]:
    """`count` steps; none is taken after one that says stop."""
    draw, noise = jax.random.split(key)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def step(dynamic: PyTree) -> tuple[PyTree, OuterInfo]:
        state = eqx.combine(dynamic, static)
        batches = sampler(inner_data, outer_data, state.step, draw)
        step_key = jax.random.fold_in(noise, state.step)
        state, info = algorithm.step(problem, state, batches, step_key)
        return eqx.filter(strong(state), eqx.is_array), info

    if count == 1:
        dynamic, info = step(dynamic)
        return eqx.combine(dynamic, static), info

    blank = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda d: step(d)[1], dynamic)
    )

    def guarded(carry: tuple, _: None) -> tuple[tuple, OuterInfo]:
        dynamic, stop = carry
        dynamic, info = jax.lax.cond(stop == RUNNING, step, lambda d: (d, blank), dynamic)
        return (dynamic, jnp.where(stop == RUNNING, info.stop, stop)), info

    start = (dynamic, jnp.asarray(RUNNING, jnp.int32))
    (dynamic, _), infos = jax.lax.scan(guarded, start, None, length=count)
    return eqx.combine(dynamic, static), infos


@eqx.filter_jit
def _outer_loss(
    problem: BilevelProblem, params: PyTree, hparams: PyTree, data: PyTree, key: Array
) -> Array:
    return problem.outer_loss(params, hparams, data, key)[0]


def _value_type(
    problem: BilevelProblem, params: PyTree, hparams: PyTree, batches: Batches, key: Array
) -> jnp.dtype:
    loss = eqx.filter_eval_shape(problem.outer_loss, params, hparams, batches.outer, key)
    return loss[0].dtype


def _point(last: Point, step: int, value: float, state: OuterState) -> Point:
    number, loss = jnp.asarray(step, jnp.int32), jnp.asarray(value, last.value.dtype)
    return Point(number, loss, state.visited, state.params)


def _overtuned(turn: Row, row: Row, margin: float) -> bool:
    risen = row["holdout"] - turn["holdout"] > margin * abs(turn["holdout"])
    fallen = turn["validation"] - row["validation"] > margin * abs(turn["validation"])
    return risen and fallen


def _warn_overtuning(turn: Row, row: Row, hparams: PyTree) -> None:
    count = sum(x.size for x in jax.tree.leaves(eqx.filter(hparams, eqx.is_inexact_array)))
    warnings.warn(
        f"Over-tuning: since step {turn['step']} the validation loss fell from "
        f"{turn['validation']:.4g} to {row['validation']:.4g} while the held-out loss rose from "
        f"{turn['holdout']:.4g} to {row['holdout']:.4g}. {count} hyperparameters are fitting the "
        "validation set; `Result.holdout_best` is the point before.",
        OverTuningWarning,
        stacklevel=3,
    )


def _require_finite(name: str, data: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if not eqx.is_inexact_array(leaf):
            continue
        bad = int(jnp.sum(~jnp.isfinite(leaf)))
        if bad:
            where = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))[0].tolist()
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be finite: {bad} of {leaf.size} values "
                f"are NaN or infinite, the first at index {where}."
            )


def _identity(
    problem: BilevelProblem,
    algorithm: OuterAlgorithm,
    sampler: Sampler,
    params: PyTree,
    hparams: PyTree,
    data: tuple,
    seed: int,
) -> dict[str, str]:
    inner_data, outer_data, holdout_data = data
    key = jax.random.key(0)
    inner_loss = problem.residual if problem.inner is None else problem.inner_loss
    return files.identify(
        inner_loss=files.describe_loss(inner_loss, params, hparams, inner_data, key),
        outer_loss=files.describe_loss(problem.outer_loss, params, hparams, outer_data, key),
        params=jax.tree.leaves(params),
        hparams=jax.tree.leaves(hparams),
        inner_data=jax.tree.leaves(inner_data),
        outer_data=jax.tree.leaves(outer_data),
        holdout_data=jax.tree.leaves(holdout_data),
        algorithm=algorithm,
        sampler=sampler,
        seed=seed,
    )
