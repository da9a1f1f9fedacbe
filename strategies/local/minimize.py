"""The embedded engine: run a search in this process, with no server and no cluster."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from strategies.arguments import asks_to_stop, functions, integer, positive, switch
from strategies.ledger import Ledger, ledger_of
from strategies.local.executors import work, work_together
from strategies.local.outcome import Outcome, evaluate
from strategies.local.progress import shown
from strategies.local.results import Result, Trial
from strategies.local.running import Lost
from strategies.observation import Observation, Suggestion
from strategies.searchers.base import Item, Searcher
from strategies.space import Config, SearchSpace
from strategies.space.point import copied
from strategies.state import exclusive_lock, save_if_there_is_space, state_exists
from strategies.stopping import ASKED, INTERRUPTED, Stop, Watch

if TYPE_CHECKING:
    from strategies.population.together import Together

Objective = Callable[[Config], Any]


def minimize(
    objective: Objective,
    space: SearchSpace | Mapping[str, Any],
    *,
    trials: int | None = None,
    stop: Stop | None = None,
    searcher: Searcher | Ledger | None = None,
    seed: int = 0,
    workers: int | Executor = 1,
    timeout: float | None = None,
    state_path: str | os.PathLike[str] | None = None,
    callbacks: Iterable[Callable[[Trial], bool | None]] = (),
    raise_errors: bool = False,
    progress: bool | None = None,
    population: int | None = None,
    context: float | Mapping[str, Any] | None = None,
) -> Result:
    """Search for the configuration with the smallest objective.

    **Arguments:**

    - `objective`: takes a configuration (nested dict of plain Python values) and returns a number,
      or a `Report` from `strategies.report(value, gradient, ...)`, which may carry constraints, or
      several objectives in place of one.
    - `space`: a `SearchSpace`, or the mapping that makes one.
    - `trials`: total number of trials to reach, at least 1, those restored from `state_path`
      included: one that has been reached trains nothing, and what was saved is returned. Points
      that it was given (`Ledger.warm_start`) are not counted. May be left out beside `stop`.
    - `stop`: what ends the search before: a `Stop` by time, cost, patience or expected gain. Why it
      ended is `Result.stopped`.
    - `searcher`: decides what to try, or the `Ledger` of one, to go on from what that was told.
      Default: `AutoSearcher(space, seed=seed)`. Several objectives take a
      `MultiObjectiveSearcher`.
    - `seed`: for the default searcher.
    - `workers`: trials at a time: a number of threads, or a `concurrent.futures.Executor`.
      Suggestions then depend on which trials have finished; with 1 they depend on the seed only.
    - `timeout`: seconds after which a trial is given up: it has failed. Its thread or worker is
      left alone, since nothing can stop it; an executor has one less until it ends. Default: never.
    - `state_path`: file for the state, written after every trial. If it exists the search resumes
      there: observations are kept, and what was being evaluated is evaluated again. A disk that is
      full is a warning.
    - `callbacks`: called with a `Trial` after each, in this thread. One that returns `True` ends
      the search; what is running then is still recorded.
    - `raise_errors`: re-raise an exception of the objective (after saving the state). By default
      the trial is recorded as failed, with a warning, and the search goes on.
    - `progress`: show trials, incumbent, failures and the time left on the standard error stream.
      Default: where that is a terminal.
    - `population`: evaluate so many trials at a time in one compiled program. The objective is
      traced by JAX: the numbers of a configuration arrive as JAX values, other hyperparameters, and
      those that decide whether there are others, as plain values with a program for each
      combination. `report` works there as it does elsewhere, gradients included. The searcher is
      asked for all of them before the first is told, so suggestions depend on this number and the
      seed. Default: one by one, any objective.
    - `context`: what is known of the task, for a `BayesSearcher` with a space of contexts or a
      contextual bandit; hand its ledger from task to task. `trials`, `stop`, the progress and the
      result are then of this context only, the ledger's history of all.

    Ctrl-C ends the search: what has finished is in the result, what was running is pending and is
    evaluated again by a search that resumes at `state_path` or goes on with `Result.ledger`.

    **Returns:** A `Result`.

    **Raises:** `ValueError` if a returned value or gradient does not fit the space, naming the
    key, what was expected and what was received. That is a bug in the objective, not a failed
    trial; everything told before it is in `state_path`. Also if another run works on `state_path`.
    A trial that kills its worker is tried again, alone, and has failed then: pools of processes,
    of the standard library and of loky (joblib), are replaced. `BrokenExecutor` if an executor
    dies that is no such pool (the same call continues), or one that dies of itself, in its
    initializer for instance.
    What an objective raises while it is traced for a `population` is an error of all its trials.
    """
    space = SearchSpace.of(space)
    if stop is not None and not isinstance(stop, Stop):
        raise ValueError(f"'stop': expected a Stop, received {stop!r:.80}")
    if trials is None and stop is None:
        raise ValueError("'trials', 'stop': expected one of them, as the search has no end")
    trials = None if trials is None else integer("trials", trials, 1)
    if not isinstance(workers, Executor):
        workers = integer("workers", workers, 1)
    if timeout is not None:
        timeout = positive("timeout", timeout)
    if population is not None:
        population = integer("population", population, 2)
        if workers != 1 or timeout is not None:
            raise ValueError(
                "'workers', 'timeout': expected none beside 'population', whose trials are one "
                f"program, received workers={workers!r:.80}, timeout={timeout!r}"
            )
    if not callable(objective):
        raise ValueError(f"'objective': expected a function, received {objective!r:.80}")
    if searcher is None:
        from strategies.searchers.auto import AutoSearcher

        searcher = AutoSearcher(space, seed=seed)
    ledger = ledger_of(searcher)
    if ledger.space != space:
        raise ValueError(f"'searcher': expected one on {space}, received one on {ledger.space}")
    if context is not None:
        ledger.searcher.expect_context(context)
    runner: _Alone | _Batches = _Alone(objective, workers, timeout, ledger)
    if population is not None:
        from strategies.population.together import Together

        runner = _Batches(Together(objective, space, population), population)
    callbacks = functions("callbacks", callbacks)
    raise_errors = switch("raise_errors", raise_errors)
    progress = None if progress is None else switch("progress", progress)
    with exclusive_lock(state_path):
        if state_path is not None and state_exists(state_path):
            ledger.restore(state_path)
        watch = None if stop is None else Watch(stop, space)
        task = _Task(ledger, context)
        with shown(progress, task, trials, watch) as show:
            told = (*show, *callbacks)
            return _search(runner, task, trials, watch, state_path, told, raise_errors)


@dataclass(frozen=True)
class _Task:
    """What of a ledger belongs to the task at hand: all, or what has its context."""

    ledger: Ledger
    context: float | Mapping[str, Any] | None

    def ask(self) -> Suggestion:
        return self.ledger.ask(self.context)

    def of(self, items: Iterable[Item]) -> list[Item]:
        if self.context is None:
            return [*items]
        return self.ledger.searcher.within(items, self.context)

    @property
    def history(self) -> list[Observation]:
        return self.of(self.ledger.history)

    @property
    def trials(self) -> int:
        if self.context is None:
            return self.ledger.trials
        return sum(item.number is not None for item in self.history)

    @property
    def best(self) -> Observation | None:
        complete = [item for item in self.history if item.status == "complete"]
        return min(complete, key=lambda item: item.rank, default=None)


@dataclass(frozen=True)
class _Alone:
    """Each trial is a call of the objective."""

    objective: Objective
    workers: int | Executor
    timeout: float | None
    ledger: Ledger

    def __call__(self, more: "_More", record: "_Record") -> None:
        def call(task: Suggestion) -> tuple[Any, ...]:
            return evaluate, self.objective, copied(task.config)

        work(more, call, record, self.workers, self.timeout, self.ledger.suspects)


@dataclass(frozen=True)
class _Batches:
    """Many trials are one call of a compiled program."""

    together: "Together"
    size: int

    def __call__(self, more: "_More", record: "_Record") -> None:
        def call(tasks: list[Suggestion]) -> list[Outcome]:
            return [Outcome(made, seconds) for made, seconds in self.together(tasks)]

        work_together(more, call, record, self.size)


def _search(
    runner: _Alone | _Batches,
    task: _Task,
    trials: int | None,
    watch: Watch | None,
    state_path: str | os.PathLike[str] | None,
    callbacks: Iterable[Callable[[Trial], bool | None]],
    raise_errors: bool,
) -> Result:
    ledger = task.ledger
    finished: list[Trial] = []
    stops: list[Any] = []

    def record(suggestion: Suggestion, found: Outcome | Lost) -> None:
        outcome = Outcome.of(found)
        told = ledger.record(
            ledger.intake(
                suggestion.point or suggestion.config,
                outcome.report,
                number=suggestion.number,
                note=suggestion.note,
            )
        )
        if state_path is not None:
            save_if_there_is_space(ledger.save, state_path)
        if outcome.error is not None and raise_errors:
            raise outcome.error
        if outcome.error is not None:
            warnings.warn(
                f"trial {suggestion.number} failed: {outcome.error!r} "
                f"at {suggestion.config!r:.200}",
                stacklevel=3,
            )
        trial = Trial(
            number=suggestion.number,
            config=dict(told.config),
            value=told.value,
            status=told.status,
            seconds=outcome.seconds,
            note=suggestion.note,
            info=outcome.made.info,
            error=outcome.error,
            values=told.values,
            constraints=told.constraints,
        )
        finished.append(trial)
        stops.extend(callback for callback in callbacks if asks_to_stop(callback(trial)))

    # What a killed run was evaluating is evaluated again, under the same numbers.
    again = task.of(ledger.pending)

    def more(running: int) -> Suggestion | None:
        if stops or (trials is not None and task.trials + running >= trials):
            return None
        if watch is not None and watch.over(task.history):
            return None
        return again.pop(0) if again else task.ask()

    interrupted = False
    try:
        runner(more, record)
    except KeyboardInterrupt:
        interrupted = True
    except BrokenExecutor:
        # Who continues needs to know which trials may have killed it.
        if state_path is not None:
            save_if_there_is_space(ledger.save, state_path)
        raise
    stopped = INTERRUPTED if interrupted else ASKED if stops else None
    if stopped is None and watch is not None and (trials is None or task.trials < trials):
        stopped = watch.reason
    best = task.best
    return Result(
        best_config=None if best is None else dict(best.config),
        best_value=None if best is None else best.value,
        history=task.history,
        trials=finished,
        ledger=ledger,
        stopped=stopped,
    )


_More: TypeAlias = Callable[[int], Suggestion | None]
_Record: TypeAlias = Callable[[Suggestion, Outcome | Lost], None]
