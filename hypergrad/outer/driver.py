"""Run any outer algorithm: progress, stopping, checkpoints, history, and guards.

The algorithm's `step` is pure; everything that is not (clocks, files, warnings, printing) is here.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.expected import (
    received,
    require,
    require_count,
    require_finite,
    require_functions,
    require_seed,
)
from hypergrad.outer import checkpoint as files
from hypergrad.outer import guards
from hypergrad.outer.base import RUNNING, OuterAlgorithm, OuterInfo
from hypergrad.outer.batches import FullBatch, Sampler
from hypergrad.outer.constraints import check_start
from hypergrad.outer.identity import identity_of_run
from hypergrad.outer.programs import Progressed, Setting, advance, begin, evaluate
from hypergrad.outer.report import Callback, Row, StepReport
from hypergrad.outer.result import Result
from hypergrad.problem import BilevelProblem
from hypergrad.recompilation import numbers_traced


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

    The run evaluates every `every` steps: it takes the outer loss on all of the outer (and the
    held-out) data, reports, tests the stopping rules, and saves. The steps in between are one
    compiled program.

    **Arguments:**

    - `problem`: the two losses.
    - `algorithm`: `Alternating`, `HOAG`, `MAID` or one of the stochastic methods, such as `SABA`;
      `Extragradient` or `DualAscent` for problems of two players or with constraints.
    - `params`: where the inner problem starts, any pytree.
    - `hparams`: where the outer problem starts, any pytree. Python floats are taken as arrays.
    - `inner_data`, `outer_data`: training and validation data, any pytrees.
    - `steps`: outer steps in total, those before a resume included.
    - `sampler`: which examples enter which part of a step. Default: all of them, `FullBatch()`.
    - `seed`: of the mini-batches and of the losses' own noise.
    - `every`: steps between two evaluations. Default 1.
    - `holdout_data`: data that tune nothing: the guard against over-tuning watches the outer loss
      on them.
    - `overtuning_margin`: the guard warns when, since the step with the best held-out loss, that
      loss has risen by more than this fraction of its size while the validation loss has fallen by
      more than it. Default 0.05.
    - `tol`: stop as "stationary" when `OuterInfo.stationarity <= tol`, unless the estimated error
      of the hypergradient leaves that open. Default: never.
    - `patience`: stop when the outer loss has not fallen by more than `min_delta` below its best
      for so many steps. Default: never.
    - `min_delta`: see `patience`.
    - `callbacks`: called with a `StepReport` at each evaluation; one that returns `True` stops
      the run.
    - `checkpoint`: a file. If it exists the run continues from it, and gives what the uninterrupted
      run gives, bit for bit on the same machine, also if a callback or a stopping rule that no
      longer holds had ended it. Delete it to start over.
    - `checkpoint_seconds`: least time between two saves; 0 saves at each evaluation. Default 10.
      The end of the run is always saved.

    **Returns:** a `Result`.

    **Raises:** `ValueError` for data that are not finite, a start outside the constraint,
    hyperparameters without effect, `CheckpointError` (a `ValueError`) for a checkpoint that is
    damaged or of another problem (other losses, data, start, algorithm, sampler or seed: functions
    are compared by content). All name the offender.

    Numbers among the algorithm's options are traced: a new value compiles nothing.

    **Warns:** `OverTuningWarning`; `RecompilationWarning`, once, when one program is compiled again
    and again because the problem or the algorithm is made anew for each run;
    `InaccurateHypergradientWarning` when the estimated error of the hypergradient exceeds its norm
    for ten steps in a row, or to the end of a shorter run.
    """
    require_count("run", "steps", steps)
    require_count("run", "every", every)
    require_seed("run", seed)
    require_finite("run", "overtuning_margin", overtuning_margin)
    require_finite("run", "min_delta", min_delta)
    require_finite("run", "checkpoint_seconds", checkpoint_seconds)
    if tol is not None:
        require_finite("run", "tol", tol)
    if patience is not None:
        require_count("run", "patience", patience)
    require_functions("run", "callbacks", callbacks)
    if not isinstance(checkpoint, str | Path | None):
        raise ValueError(f"run: checkpoint: expected a path, received {received(checkpoint)}.")
    require("run", "algorithm", algorithm, OuterAlgorithm, "Alternating(estimator, optimizer)")
    if sampler is not None:
        require("run", "sampler", sampler, Sampler, "Minibatches(32)")
    check_call(
        "run",
        problem,
        None,
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
    problem.check_start(params, hparams)
    inner_data, outer_data, holdout_data = data
    root = jax.random.key(seed)
    key, evaluation_key = jax.random.split(root)

    path = None if checkpoint is None else Path(checkpoint)
    identity: dict[str, str] = {}
    if path is not None:
        identity = identity_of_run(problem, algorithm, sampler, params, hparams, data, seed)
    algorithm = numbers_traced(algorithm)
    setting = Setting(problem, algorithm, sampler, inner_data, outer_data, key)
    begun = partial(begin, setting, params, hparams)
    history: list[Row] = []
    spent = 0.0
    if path is not None and files.exists(path):
        saved, extra = files.load(path, eqx.filter_eval_shape(begun), identity)
        history, spent = extra["history"], extra["seconds"]
    else:
        saved = begun()
    state, best, holdout_best = saved.state, saved.best, saved.holdout_best

    rules = guards.StoppingRules(tol, patience, min_delta)
    # A run continues unless the rules of this call, too, say that it is finished.
    status = rules.status(history)
    started = last_save = time.monotonic()
    warned_overtuned = any(row["overtuned"] for row in history)
    warned_untrusted = False
    taken = 0
    measured_from = (started, 0)
    while status == "steps" and len(history) < steps:
        count = min(every, steps - len(history))
        state, infos = advance(setting, state, count)
        rows = _rows(infos, len(history), spent + time.monotonic() - started)
        history += rows
        row, number = history[-1], len(history)

        point = (state.params, state.visited)
        noise = jax.random.fold_in(evaluation_key, number)
        evaluated = sampler.evaluation_data(outer_data)
        if evaluated is None:
            row["validation"] = row["value"]
        else:
            row["validation"] = float(evaluate(problem, *point, evaluated, noise))
        if holdout_data is not None:
            row["holdout"] = float(evaluate(problem, *point, holdout_data, noise))
        best = best.better_of(number, row["validation"], state)
        holdout_best = holdout_best.better_of(number, row["holdout"], state)
        turn = history[max(int(holdout_best.step), 1) - 1]
        row["overtuned"] = guards.is_overtuned(turn, row, overtuning_margin)
        if row["overtuned"] and not warned_overtuned:
            warned_overtuned = True
            guards.warn_overtuning(turn, row, hparams)

        taken += len(rows)
        now = time.monotonic()
        pace = (now - measured_from[0]) / (taken - measured_from[1])
        if taken == len(rows):  # what the first evaluation took to compile is left out later
            measured_from = (now, taken)
        seconds = spent + now - started
        report = StepReport(number, steps, row, state, seconds, pace * (steps - number))
        asked = [_asked(callback(report)) for callback in callbacks]
        status = rules.status(history)
        if status == "steps" and any(asked):
            status = "callback"
        ended = status != "steps" or number >= steps
        doubtful = guards.untrusted(history, ended=ended)
        if doubtful is not None and not warned_untrusted:
            warned_untrusted = True
            guards.warn_untrusted(doubtful)
        if path is not None and (ended or now - last_save >= checkpoint_seconds):
            extra = {"history": history, "seconds": seconds}
            files.save(path, Progressed(state, best, holdout_best), identity, extra)
            last_save = now

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
            "run: of a callback expected True to stop the run, None or False to go on, received a "
            f"{type(answer).__name__}."
        )
    return bool(answer)


def _rows(infos: OuterInfo, before: int, seconds: float) -> list[Row]:
    """One row for each step taken, none for those after one that says stop."""
    columns = {name: np.atleast_1d(column) for name, column in vars(jax.device_get(infos)).items()}
    stopped = np.flatnonzero(columns["stop"] != RUNNING)
    count = int(stopped[0]) + 1 if stopped.size else len(columns["stop"])
    tail = {"validation": math.nan, "holdout": math.nan, "overtuned": False}
    return [
        {
            "step": before + i + 1,
            "seconds": seconds,
            **{name: column[i].item() for name, column in columns.items()},
            **tail,
        }
        for i in range(count)
    ]


def _require_finite(name: str, data: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if not eqx.is_inexact_array(leaf):
            continue
        bad = int(jnp.sum(~jnp.isfinite(leaf)))
        if bad:
            where = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))[0].tolist()
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: expected finite values, received {bad} of "
                f"{leaf.size} that are NaN or infinite, the first at index {where}."
            )
