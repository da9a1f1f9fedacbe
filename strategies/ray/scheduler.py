"""Hyperband, its iterative deepening and ASHA on Ray Tune: searcher and scheduler as one.

```python
import functools
from ray import tune
from strategies.ray import ScheduledSearch
from strategies.schedulers import Hyperband

search = ScheduledSearch(functools.partial(Hyperband, max_resource=27, eta=3), seed=0)
tuner = tune.Tuner(
    train,
    param_space=...,
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=-1,
        search_alg=search, scheduler=search.trial_scheduler,
    ),
)
```

Ray saves its searcher and not its scheduler, so here the searcher holds everything and the
scheduler only asks it. That is why both come from one object, and why `Tuner.restore` works.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.train._internal.session import _TrainingResult
from ray.tune import Callback, Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Repeater
from ray.tune.trainable import FunctionTrainable
from ray.tune.utils.util import flatten_dict

from strategies.arguments import instance
from strategies.ledger import Ledger
from strategies.observation import Observation, Report
from strategies.ray.layout import Layout
from strategies.ray.reports import as_number
from strategies.ray.search import HypergradSearch
from strategies.schedulers import Scheduler
from strategies.searchers.base import Searcher

logger = logging.getLogger(__name__)


class ScheduledSearch(HypergradSearch):
    """A search algorithm whose trials get as much resource as a scheduler of ours decides.

    **Arguments:**

    - `schedule`: a function of the searcher that builds the scheduler, such as
      `functools.partial(Hyperband, max_resource=27, eta=3)`.
    - `searcher`: the searcher inside; see `HypergradSearch`.
    - `resource`: the reported quantity that is the resource. Default `"training_iteration"`. A
      trial pauses at the first report that reaches its rung.
    - `options`: as `HypergradSearch`: `space`, `metric`, `mode`, `points_to_evaluate`,
      `max_concurrent`, `seed`.

    Give `search_alg=search` and `scheduler=search.trial_scheduler` to `TuneConfig`, with
    `num_samples=-1`: the scheduler knows how many configurations it wants. A trial pauses at its
    rung and goes on from its checkpoint when it is promoted: a class trainable saves one by itself,
    a function has to give one with the report of the rung, else it starts again.

    To let the maximum of an `IterativeDeepeningHyperband` grow after the experiment has finished,
    restore the search from the experiment's folder, call `search.schedule.deepen()`, and run a new
    experiment with it: trials are continued from the checkpoints of the old one.
    """

    _scheduled = True

    def __init__(
        self,
        schedule: Callable[[Searcher], Scheduler],
        searcher: Searcher | Callable[..., Searcher] | None = None,
        *,
        resource: str = "training_iteration",
        **options: Any,
    ) -> None:
        if not callable(schedule):
            raise ValueError(
                "'schedule': expected a function of the searcher, such as "
                f"functools.partial(Hyperband, max_resource=27); received {schedule!r}"
            )
        self._make_schedule = schedule
        self._schedule: Scheduler | None = None
        self.resource = resource
        #: By configuration: where its last checkpoint is, and the metrics that Ray keeps with it.
        self._checkpoints: dict[int, list[Any]] = {}
        #: Configurations whose trial ended by itself before its rung, with its last report.
        self._ended: dict[int, Report] = {}
        super().__init__(searcher, **options)
        self.trial_scheduler = HypergradScheduler(self)
        self._in_charge = True

    @property
    def schedule(self) -> Scheduler:
        """The scheduler inside, with its `incumbent`, `progress` and `spent` (values minimised)."""
        if self._schedule is None:
            raise ValueError("ScheduledSearch has no space yet: Ray gives it when the run starts.")
        return self._schedule

    def _begin(self, layout: Layout, ledger: Ledger) -> None:
        super()._begin(layout, ledger)
        self._schedule = instance("schedule", self._make_schedule(ledger.searcher), Scheduler)

    def results(self) -> list[Observation]:
        """Those at the highest rung that has any, by number: the schedule has them, no ledger."""
        return self.schedule.results()

    def costs(self) -> float:
        """What all jobs have cost."""
        return self.schedule.costs()

    # What the scheduler's adapter asks

    def number_of(self, trial_id: str) -> int | None:
        """The configuration of a trial, or `None` if the trial is not ours."""
        return self._numbers.get(trial_id)

    def reached(self, trial_id: str, result: Mapping[str, Any]) -> str:
        """What to do with a trial that has just reported."""
        number = self.number_of(trial_id)
        if number is None or trial_id not in self._live:
            # Started after the last save before a kill: its job was handed out to another trial.
            return TrialScheduler.STOP
        last = self._live[trial_id] = self._read_result(result)
        job = self.schedule.job(number)
        if job is not None:
            done = as_number(result.get(self.resource))
            if done is None:
                self._intake.complain(
                    trial_id, "resource", f"{self.resource!r} is not reported", "it runs to its end"
                )
            if done is None or done < job.resource:
                return TrialScheduler.CONTINUE
            self._tell_schedule(trial_id, number, last)
        # Without a job these are iterations repeated after a retry or a restore.
        if self.schedule.promote(only=number) is not None:
            return TrialScheduler.CONTINUE
        if self.schedule.settled(number):
            return TrialScheduler.STOP
        self.on_pause(trial_id)
        return TrialScheduler.PAUSE

    def catch_up_with(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take over the result of a rung that Ray has saved with its trial, and we have not.

        The trial goes on behind it from its checkpoint, and will never report it again.
        """
        job = self.schedule.job(self._numbers[trial_id])
        done = as_number(result.get(self.resource))
        if job is not None and done is not None and done >= job.resource:
            self.reached(trial_id, result)

    def resume(self, number: int) -> bool:
        """Hand out the next job of a configuration whose trial is paused."""
        return self.schedule.promote(only=number) is not None

    def keep_checkpoint(self, trial_id: str, checkpoint: Any) -> None:
        """Remember where a trial's last checkpoint is, for an experiment that continues it."""
        number = self.number_of(trial_id)
        if number is not None and checkpoint is not None and checkpoint.checkpoint is not None:
            metrics = {
                key: value
                for key, value in (checkpoint.metrics or {}).items()
                if key in ("training_iteration", "time_total_s")
            }
            self._checkpoints[number] = [checkpoint.checkpoint.path, metrics]

    def checkpoint_of(self, trial_id: str) -> list[Any] | None:
        """The checkpoint of an earlier trial of the same configuration."""
        number = self.number_of(trial_id)
        return None if number is None else self._checkpoints.get(number)

    def settle(self) -> None:
        """Promote those that cannot train any longer with the value that they ended with."""
        while waiting := [n for n in self.schedule.waiting() if n in self._ended]:
            self.schedule.promote(only=waiting[0])
            self._tell_schedule(None, waiting[0], self._ended[waiting[0]])

    # What Ray asks

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """See `HypergradSearch`; a run of Ray has to make itself known to our scheduler next."""
        self._in_charge = not spec
        return super().set_search_properties(metric, mode, config, **spec)

    def take_charge(self) -> None:
        """Our scheduler is the one of the run."""
        self._in_charge = True

    def _suggest(self, trial_id: str) -> Any:
        if not self._in_charge:
            raise ValueError(
                "'scheduler': expected search.trial_scheduler of this ScheduledSearch in "
                "TuneConfig(scheduler=...), received another one or none"
            )
        self.settle()
        live = {self._numbers[other] for other in self._live}
        waiting = self.schedule.waiting()
        for number in waiting:
            if number not in live:
                # Its trial belongs to an earlier experiment, or was lost: a new one continues it.
                job = self.schedule.promote(only=number)
                assert job is not None
                return self._issue(trial_id, number, job.config)
        if waiting:
            # A paused trial goes first; the scheduler's adapter resumes it in this very step.
            return None
        job = self.schedule.start()
        if job is None:
            return self.FINISHED if self.schedule.finished else None
        return self._issue(trial_id, job.number, job.config)

    def _complete(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool) -> None:
        if trial_id not in self._live:
            return
        number, last = self._numbers[trial_id], self._last_report(trial_id, result, failed)
        self._leave(trial_id)
        job = self.schedule.job(number)
        if job is None:
            return
        if last is None:
            self.schedule.forget(number)
            return
        if failed:
            last = Report(None)
        done = as_number((result or {}).get(self.resource))
        if done is None or done < job.resource:
            # It ended before its rung: what it reported last is all that there will be.
            self._ended[number] = last
        self._tell_schedule(trial_id, number, last)

    def _tell_schedule(self, trial_id: str | None, number: int, last: Report) -> None:
        config = self.schedule.candidates[number].config
        report = self._translated(trial_id or f"of configuration {number}", config, last)
        self.schedule.tell(number, report, maximise=self._maximised()[0], strict=False)

    def _end(self, trial_id: str) -> None:
        self._leave(trial_id)
        if self._schedule is not None and trial_id in self._numbers:
            self._schedule.forget(self._numbers[trial_id])

    def add_evaluated_point(self, *arguments: Any, **options: Any) -> None:
        """Not for schedulers: a point without its rungs has no place in a bracket."""
        raise NotImplementedError("ScheduledSearch takes no points that were evaluated elsewhere")

    def _lose(self, trial_id: str) -> None:
        """The job of a trial that Ray does not know any more is handed out again."""
        self.schedule.forget(self._numbers[trial_id])
        super()._lose(trial_id)

    def _cut_off(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Its rung is reached by another trial, from its checkpoint."""
        self.catch_up_with(trial.trial_id, result)
        self.keep_checkpoint(trial.trial_id, trial.latest_checkpoint_result)
        self._lose(trial.trial_id)

    def _recognise(self, trial: Trial) -> None:
        """A trial that was started after the last save: its job is handed out again to another."""

    # State

    def _aim(self) -> dict[str, Any]:
        return super()._aim() | {"resource": self.resource}

    def get_state(self) -> dict[str, Any]:
        """See `HypergradSearch`; with the scheduler's state."""
        return super().get_state() | {
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "checkpoints": [[n, *found] for n, found in self._checkpoints.items()],
            "ended": [[n, last.to_json()] for n, last in self._ended.items()],
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._checkpoints = {n: [path, metrics] for n, path, metrics in state["checkpoints"]}
        self._ended = {n: Report.from_json(last) for n, last in state["ended"]}
        if state["schedule"] is not None:
            self.schedule.load_state_dict(state["schedule"])


class HypergradScheduler(TrialScheduler):
    """Ray's scheduler for a `ScheduledSearch`: made by it, never alone.

    It holds nothing: every decision is the search's, and is saved and restored with it.
    """

    _supports_buffered_results = False

    def __init__(self, search: ScheduledSearch) -> None:
        super().__init__()
        self._search = search

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the metric of `TuneConfig`; Ray requires every report to have it."""
        self._metric = metric or self._search.metric
        self._search.take_charge()
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new trial, or one of a restored experiment."""
        wrapper = getattr(tune_controller, "search_alg", None)
        while (wrapper := getattr(wrapper, "searcher", None)) is not None:
            if isinstance(wrapper, Repeater):
                raise ValueError(
                    "'search_alg': expected a ScheduledSearch that is not wrapped, received one in "
                    "a Repeater: a rung compares configurations by one trial of each; average "
                    "repetitions in the trainable"
                )
        number = self._search.number_of(trial.trial_id)
        if number is None:
            return
        if trial.status in (Trial.TERMINATED, Trial.ERROR):
            # It ended after the searcher's last save.
            self._search.has_ended(trial)
            return
        self._search.catch_up_with(trial.trial_id, flatten_dict(trial.last_result or {}))
        if self._search.schedule.job(number) is None:
            # Ray wants to run all trials of a restored experiment, those that wait included.
            trial.set_status(Trial.PAUSED)
            self._search.on_pause(trial.trial_id)
            return
        earlier = self._search.checkpoint_of(trial.trial_id)
        if earlier is not None and trial.latest_checkpoint_result is None:
            path, metrics = earlier
            trial._restore_checkpoint_result = _TrainingResult(
                checkpoint=Checkpoint(path), metrics=dict(metrics)
            )

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial raised; Ray retries it, or tells the searcher that it failed."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Go on, or pause at the rung."""
        try:
            decision = self._search.reached(trial.trial_id, result)
        except Exception:
            logger.exception("Trial %s: its report was not understood.", trial.trial_id)
            return TrialScheduler.CONTINUE
        if decision == TrialScheduler.PAUSE:
            self._warn_if_lost(trial, result)
        return str(decision)

    def _warn_if_lost(self, trial: Trial, result: Mapping[str, Any]) -> None:
        trainable = trial.get_trainable_cls()
        function = isinstance(trainable, type) and issubclass(trainable, FunctionTrainable)
        if function and not result.get("checkpoint_dir_name"):
            message = (
                "it starts again from the beginning when it is promoted. Give "
                f"report(..., checkpoint=...) at every rung: {self._search.schedule.resources}"
            )
            self._search._intake.complain(
                trial.trial_id,
                "checkpoint",
                "paused without a checkpoint in its last report",
                message,
            )

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial ended; Ray tells the searcher too, and that is enough."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial was stopped while it waited."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """A pending trial, or a paused one that is promoted; also the end of all that wait."""
        trials = tune_controller.get_trials()
        paused: dict[int, Any] = {}
        active = False
        for trial in trials:
            if trial.status == Trial.PENDING:
                return trial
            if trial.status == Trial.RUNNING:
                active = True
            elif trial.status == Trial.PAUSED:
                number = self._search.number_of(trial.trial_id)
                if number is not None:
                    paused[number] = trial
        if not paused:
            return None
        schedule = self._search.schedule
        self._search.settle()
        for number, trial in paused.items():
            if schedule.job(number) is not None:
                self._search.on_unpause(trial.trial_id)
                return trial
        if self._search.has_room():
            for number in schedule.waiting():
                if number in paused and self._search.resume(number):
                    self._search.on_unpause(paused[number].trial_id)
                    return paused[number]
        short = tune_controller.search_alg.is_finished() and not schedule.finished
        if not active and (schedule.finished or (short and not schedule.waiting())):
            if short and hasattr(schedule, "brackets"):
                self._search._intake.complain(
                    "",
                    "num_samples",
                    "num_samples ended the run before all rungs were full",
                    "use -1",
                )
            for trial in paused.values():
                self._search.keep_checkpoint(trial.trial_id, trial.latest_checkpoint_result)
                tune_controller.stop_trial(trial)
        return None

    def debug_string(self) -> str:
        """The state of all rungs."""
        progress = getattr(self._search._schedule, "progress", None)
        return progress() if progress is not None else type(self._search).__name__


class BracketProgress(Callback):
    """Prints how far the rungs are: Ray's own output does not show its scheduler.

    **Arguments:**

    - `search`: the `ScheduledSearch` of the run.
    - `seconds`: print at most so often. Default 30.
    """

    def __init__(self, search: ScheduledSearch, seconds: float = 30.0) -> None:
        self._search = search
        self._seconds = seconds
        self._last = 0.0

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **_: Any
    ) -> None:
        """Called by Ray after each report."""
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            print(self._search.trial_scheduler.debug_string())

    def on_experiment_end(self, trials: list[Trial], **_: Any) -> None:
        """Called by Ray at the end."""
        print(self._search.trial_scheduler.debug_string())
