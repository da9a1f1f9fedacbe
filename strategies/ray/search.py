"""Any of our searchers as a search algorithm of Ray Tune."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import UNDEFINED_METRIC_MODE, UNDEFINED_SEARCH_SPACE
from ray.tune.search.searcher import Searcher as RaySearcher
from ray.tune.utils.util import flatten_dict

from strategies.arguments import integer, mapping
from strategies.intake import Intake
from strategies.ledger import Ledger, ledger_of
from strategies.observation import Observation, Report
from strategies.plain import constraints_to_json
from strategies.ray.aims import expected_aim, expected_bounds
from strategies.ray.layout import Layout
from strategies.ray.recovery import (
    EXPERIMENT,
    experiment_folder,
    is_repeated,
    take_snapshot,
    was_cut_off,
)
from strategies.ray.reports import as_number
from strategies.ray.results import read_result, under
from strategies.ray.spaces import decode, encode, read_layout
from strategies.searchers.base import Searcher
from strategies.space import SearchSpace
from strategies.state import OtherSearchError, as_json, expect, replacing, seal, unseal

logger = logging.getLogger(__name__)

_BACKUP = "searcher-backup-{}.pkl"
_FORMAT = "hypergrad ray searcher state"
_VERSION = 2


class HypergradSearch(RaySearcher):
    """Any of our searchers as a search algorithm of Ray Tune.

    **Arguments:**

    - `searcher`: a searcher, or the `Ledger` of one, to go on from what it was told; or a function
      `(space, *, seed, first) -> searcher`, such as a searcher's class or a `functools.partial` of
      it, which is called once the space is known. Default: `AutoSearcher`.
    - `space`: where to search: a `SearchSpace`, or a dict of `tune.*` domains. Default: the
      `param_space` of the tuner.
    - `metric`, `mode`: what to optimise, `"min"` or `"max"`. Default: those of `TuneConfig`. They
      must be given here when the tuner has no `param_space`: Ray does not pass them on then.
      Several objectives are a list of metrics, with a list of modes or one for all; `TuneConfig`
      takes none, and the default searcher is `MultiObjectiveSearcher`.
    - `constraints`: names of metrics that must not be above 0, or a mapping of names to what they
      must not be above. What `report(constraints=...)` says counts as well.
    - `points_to_evaluate`: configurations to try first, nested or flat, complete or partial.
    - `max_concurrent`: the most trials that may run at once, paused ones not counted. 0 (default)
      leaves that to Ray. `TuneConfig(max_concurrent_trials=...)` and `ConcurrencyLimiter` set it
      too.
    - `seed`: an integer; with the position of a suggestion it decides all randomness.
    - `number_key`: put the position of each suggestion into its config, under this key. Default:
      not.
    - `context`: what is known of the task, for a `BayesSearcher` with a space of contexts. Earlier
      tasks come with its `Ledger`.

    Ray asks for the next configuration one trial ahead of need; a search that should see each
    result before the next step wants `max_concurrent=1`.

    Failures: a value that is NaN, infinite, missing or no number, and a trial that raised, are
    failed observations. A gradient entry that does not fit is dropped, with a warning; the value
    counts. See "When trials fail" in the documentation.

    **Raises:** `ValueError` before the first trial if the space cannot be searched or metric and
    mode are missing.
    """

    def __init__(
        self,
        searcher: Searcher | Ledger | Callable[..., Searcher] | None = None,
        *,
        space: SearchSpace | Mapping[str, Any] | None = None,
        metric: str | Sequence[str] | None = None,
        mode: str | Sequence[str] | None = None,
        constraints: Sequence[str] | Mapping[str, float] = (),
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        max_concurrent: int = 0,
        seed: int = 0,
        number_key: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        metric, mode = expected_aim(metric, mode)
        super().__init__(metric=metric, mode=mode)
        self._bounds = expected_bounds(constraints)
        # The base class drops either of them when the other is missing.
        self._metric, self._mode = metric, mode
        given = isinstance(searcher, Searcher | Ledger)
        if given and (space is not None or points_to_evaluate):
            name = "space" if space is not None else "points_to_evaluate"
            raise ValueError(
                f"{name!r}: expected nothing beside a searcher that is built already; give it to "
                "the searcher (`space`, `first`), or give the searcher's class here"
            )
        self.max_concurrent = integer("max_concurrent", max_concurrent, 0)
        self._seed = integer("seed", seed, 0)
        if number_key is not None and not isinstance(number_key, str):
            raise ValueError(f"'number_key': expected a name, received {number_key!r:.80}")
        self._number_key = number_key
        self._context = None if context is None else mapping("context", context, "a mapping")
        self._make = searcher
        points = () if points_to_evaluate is None else points_to_evaluate
        if isinstance(points, Mapping | str) or not isinstance(points, Iterable):
            raise ValueError(
                f"'points_to_evaluate': expected a list of configurations, received "
                f"{points_to_evaluate!r:.80}"
            )
        self._points = list(points)
        self._param_space: Any = None
        self._layout: Layout | None = None
        self._ledger: Ledger | None = None
        self._numbers: dict[str, int] = {}
        #: The last report of each trial that runs or is paused, in Ray's keys; `None` before any.
        self._live: dict[str, Report | None] = {}
        self._paused: set[str] = set()
        self._folder: Path | None = None
        if isinstance(searcher, Searcher | Ledger):
            self._begin(Layout(searcher.space, None), ledger_of(searcher))
        elif isinstance(space, SearchSpace):
            self._set_up(Layout(space, None))
        elif space is not None:
            # Ray knows nothing of this one, constants included.
            self._set_up(read_layout(space, complete=True))
        self._own_space = self._ledger is not None

    #: What was pickled before there were any has none.
    _context: Mapping[str, Any] | None = None

    #: Upper bounds of metrics; what was pickled before there were any has none.
    _bounds: Mapping[str, float] = MappingProxyType({})

    #: Whether a scheduler of ours decides how long trials run.
    _scheduled = False

    #: Whether this is a copy, as Ray restores an experiment with.
    _pickled = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._pickled = True

    # Set-up

    @property
    def ledger(self) -> Ledger:
        """What was suggested and told: `history`, `pending`, `best` (values minimised)."""
        if self._ledger is None:
            raise ValueError("HypergradSearch has no space yet: Ray gives it when the run starts.")
        return self._ledger

    @property
    def searcher_(self) -> Searcher:
        """Our searcher inside."""
        return self.ledger.searcher

    def results(self) -> list[Observation]:
        """What was told of this task and can be compared, by number."""
        return self.searcher_.within(self.ledger.history, self._context)

    def costs(self) -> float:
        """What the trials of this task have cost, in the unit that they report, or in seconds."""
        return sum(item.cost or 0.0 for item in self.results())

    def _set_up(self, layout: Layout) -> None:
        make = self._make
        if make is None:
            from strategies.searchers import AutoSearcher, MultiObjectiveSearcher

            make = MultiObjectiveSearcher if isinstance(self._metric, list) else AutoSearcher
        assert not isinstance(make, Searcher | Ledger)
        try:
            first = [layout.point(point) for point in self._points]
        except ValueError as error:
            raise ValueError(f"'points_to_evaluate': {error}") from None
        self._begin(layout, make(layout.space, seed=self._seed, first=first).ledger)

    def _begin(self, layout: Layout, ledger: Ledger) -> None:
        self._layout, self._ledger = layout, ledger
        self._intake = Intake(ledger.space, ledger.searcher.check)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Called by Ray at the start of an experiment (not at a restore).

        Returns whether `config` was taken as the space: it is not if the space was given to the
        constructor. Trials of an earlier experiment that never ended are forgotten.
        """
        metric, mode = expected_aim(metric, mode)
        for name, given in (("metric", metric), ("mode", mode)):
            mine = self._aim()[name]
            if self._numbers and given and mine and given != mine:
                raise ValueError(
                    f"{name!r}: expected {mine!r}, of which this HypergradSearch holds results, "
                    f"received {given!r}; make a new one"
                )
        self._metric = metric or self._metric
        self._mode = mode or self._mode
        for trial_id in list(self._live):
            self._end(trial_id)
        if self._own_space:
            return False
        layout = read_layout(config)
        if self._ledger is not None and layout.space != self._ledger.space:
            raise ValueError(
                "'param_space': expected the space of the earlier experiment, because this "
                "HypergradSearch holds its results; make a new one for another space"
            )
        self._param_space = config
        if self._ledger is None:
            self._set_up(layout)
        else:
            self._layout = layout
        # What cannot be saved is said now: an exception at a save would end the run.
        as_json(self.get_state())
        return True

    def _aim(self) -> dict[str, Any]:
        """What results are of, as JSON values."""
        bounds = constraints_to_json(self._bounds)
        return {"metric": self._metric, "mode": self._mode, "constraints": bounds}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Take over the limit of a `ConcurrencyLimiter`: here paused trials do not count."""
        self.max_concurrent = integer("max_concurrent", max_concurrent, 0)
        return True

    # Suggestions

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The config of a new trial, or `None` while as many run as may."""
        if self._ledger is None or self._layout is None:
            raise ValueError(
                UNDEFINED_SEARCH_SPACE.format(cls=type(self).__name__, space="param_space")
            )
        if not self._metric or not self._mode:
            raise ValueError(
                UNDEFINED_METRIC_MODE.format(
                    cls=type(self).__name__, metric=self._metric, mode=self._mode
                )
            )
        return self._suggest(trial_id) if self.has_room() else None

    def has_room(self) -> bool:
        """Whether one more trial may run."""
        running = len(self._live.keys() - self._paused)
        return not self.max_concurrent or running < self.max_concurrent

    def _suggest(self, trial_id: str) -> Any:
        taken = {self._numbers[other] for other in self._live}
        # Those of trials that were lost, between two of Ray's state files, come first.
        waiting = self.ledger.searcher.within(self.ledger.pending, self._context)
        lost = (s for s in waiting if s.number not in taken)
        suggestion = next(lost, None) or self.ledger.ask(self._context)
        return self._issue(trial_id, suggestion.number, suggestion.config)

    def _issue(self, trial_id: str, number: int, config: Mapping[str, Any]) -> dict[str, Any]:
        assert self._layout is not None
        self._numbers[trial_id] = number
        self._live[trial_id] = None
        given = self._layout.to_ray(config)
        if self._number_key is None:
            return given
        if self._number_key in given:
            raise ValueError(
                f"'number_key': expected a key that the space does not have, received "
                f"{self._number_key!r}"
            )
        return given | {self._number_key: number}

    def on_pause(self, trial_id: str) -> None:
        """A scheduler paused a trial: it no longer counts as running."""
        if trial_id in self._live:
            self._paused.add(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """A paused trial runs again."""
        self._paused.discard(trial_id)

    # Results

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember the last report of a trial: Ray may end the trial without repeating it."""
        try:
            self._note_result(trial_id, result)
        except Exception:
            logger.exception("Trial %s: a report was not understood.", trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the searcher what came of a trial.

        Without a result and without an error (a trial that was stopped while it was paused) the
        last report counts. A trial that never reported is forgotten.
        """
        try:
            self._complete(trial_id, result, error)
        except Exception:
            logger.exception("Trial %s: its result was not passed to the searcher.", trial_id)
            self._end(trial_id)

    def _note_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if trial_id in self._live and self._has_metric(result):
            # Ray may end the trial without repeating its result.
            self._live[trial_id] = self._read_result(result)

    def _read_result(self, result: Mapping[str, Any]) -> Report:
        names = [self._metric] if isinstance(self._metric, str) else list(self._metric or [""])
        return read_result(result, names, self._bounds)

    def _complete(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool) -> None:
        if self._ledger is None or self._layout is None:
            return
        if trial_id not in self._live:
            self._adopt(trial_id, result, failed)
            return
        last = self._last_report(trial_id, result, failed)
        number = self._numbers[trial_id]
        suggestion = next((s for s in self._ledger.pending if s.number == number), None)
        if suggestion is None or last is None:
            self._end(trial_id)
            return
        self._tell(trial_id, number, suggestion.config, last)
        self._leave(trial_id)

    def _last_report(
        self, trial_id: str, result: Mapping[str, Any] | None, failed: bool
    ) -> Report | None:
        """What a trial that has ended comes to; `None` if it has never reported."""
        last = self._live[trial_id]
        if result is not None and self._has_metric(result):
            return self._read_result(result)
        # It raised, or it reported, but never the metric.
        return Report(None) if failed or (result and last is None) else last

    def _leave(self, trial_id: str) -> None:
        """A trial neither runs nor waits any more."""
        self._live.pop(trial_id, None)
        self._paused.discard(trial_id)

    def _adopt(self, trial_id: str, result: Mapping[str, Any] | None, failed: bool) -> None:
        """A result that we did not wait for: of a trial that had failed, or that we do not know.

        `resume_errored` and `restart_errored` run trials that failed again, the latter under a new
        name; what comes of them takes the place of the failure. A kill between two of Ray's state
        files makes trials that we do not know, too. Their config is in the result.
        """
        assert self._layout is not None
        if failed or result is None or not self._has_metric(result):
            return
        config = self.ledger.space.validate(self._layout.from_ray(under(result, "config")))
        known = self.ledger.searcher.within(self.ledger.history, self._context)
        failures = {o.number: o.config for o in known if o.status == "failed"}
        number = self._numbers.get(trial_id)
        if trial_id not in self._numbers:
            number = next((n for n, failure in failures.items() if failure == config), None)
        elif number not in failures:
            return  # told before
        self._tell(trial_id, number, config, self._read_result(result))
        # Known from now on, so that a second completion is not counted twice.
        self._numbers[trial_id] = -1 if number is None else number

    def _tell(
        self, trial_id: str, number: int | None, config: Mapping[str, Any], last: Report
    ) -> None:
        self.ledger.record(
            self._intake(
                config,
                self._translated(trial_id, config, last),
                number=number,
                note=self.ledger.note(number) or self._note,
                maximise=self._maximised(),
                trial=trial_id,
            )
        )

    @property
    def _note(self) -> dict[str, Any]:
        """Of a trial that was not suggested here: the task that it is of."""
        return {} if self._context is None else {"context": self._context}

    def _maximised(self) -> list[bool]:
        modes = [self._mode] if isinstance(self._mode, str) else list(self._mode or ["min"])
        return [mode == "max" for mode in modes]

    def _has_metric(self, result: Mapping[str, Any]) -> bool:
        """Whether a flat result holds what is optimised, at least some of it."""
        if isinstance(self._metric, list):
            return any(name in result for name in self._metric)
        return self._metric in result

    def _translated(self, trial_id: str, config: Mapping[str, Any], report: Report) -> Report:
        """A report in the paths of our space."""
        assert self._layout is not None
        known = {_first(path) for path in self._layout.space.domains}
        layout = self._layout

        def translated(gradient: Mapping[str, Any]) -> dict[str, Any]:
            for key in gradient:
                if _first(key) not in known:
                    why = f"{key!r} is no hyperparameter"
                    self._intake.complain(trial_id, key, "a gradient entry is ignored", why)
            return layout.from_ray(gradient, of=config)

        return replace(
            report.mapped(translated), config=layout.from_ray(report.config or {}, of=config)
        )

    def _end(self, trial_id: str) -> None:
        """A trial is over without a result: its suggestion is not pending any more."""
        self._leave(trial_id)
        if self._ledger is not None and trial_id in self._numbers:
            self._ledger.forget(self._numbers[trial_id])

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Tell the searcher of a point that was evaluated elsewhere.

        **Arguments:**

        - `parameters`: a config as Ray keeps it (`Trial.config`), nested or flat; constants and
          keys that are not searched are ignored.
        - `value`: the metric, in the direction of `mode`.
        - `error`, `pruned`: a point that failed, or that was stopped early.
        - `intermediate_values`: ignored.

        **Raises:** `ValueError` naming the key if a value is missing or outside its domain, or if
        space or mode are not known yet.
        """
        if self._ledger is None or self._layout is None:
            raise ValueError(
                "add_evaluated_point needs the space: give it to HypergradSearch(space=...)"
            )
        if self._mode is None:
            raise ValueError("add_evaluated_point needs the mode: HypergradSearch(mode=...)")
        self._ledger.record(
            self._intake(
                self._layout.from_ray(parameters),
                Report(None if error else as_number(value)),
                note=self._note,
                status="pruned" if pruned else "complete",
                maximise=self._maximised(),
            )
        )

    # State

    def get_state(self) -> dict[str, Any]:
        """Everything that was suggested and told, as plain JSON data."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            **self._aim(),
            "max_concurrent": self.max_concurrent,
            "param_space": None if self._param_space is None else encode(self._param_space),
            "searcher": None if self._ledger is None else self._ledger.state_dict(),
            "numbers": dict(self._numbers),
            "live": {trial: last and last.to_json() for trial, last in self._live.items()},
            "paused": sorted(self._paused),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state of `get_state`.

        **Raises:** `ValueError` if it is damaged, or of another format, metric, mode, searcher or
        space; nothing has changed then.
        """
        with replacing(self):
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        if state.get("format") != _FORMAT or state.get("version") not in (1, _VERSION):
            raise OtherSearchError(
                f"state: expected {_FORMAT!r} version {_VERSION}, received "
                f"{state.get('format')!r} version {state.get('version')!r}"
            )
        expect({"scheduled": "schedule" in state}, {"scheduled": self._scheduled})
        for name, mine in self._aim().items():
            # Constraints and the resource are in later states only.
            if mine is not None and state.get(name) is not None:
                expect({name: state[name]}, {name: mine})
        # Ray pickles us before it tells us the space, so after a restore the space is here.
        if self._ledger is None and state["param_space"] is not None:
            self._param_space = decode(state["param_space"])
            self._set_up(read_layout(self._param_space))
        self._metric = state["metric"] or self._metric
        self._mode = state["mode"] or self._mode
        self.max_concurrent = state["max_concurrent"]
        self._numbers = dict(state["numbers"])
        self._live = {
            trial: Report.from_json(last) if last else None for trial, last in state["live"].items()
        }
        self._paused = set(state["paused"])
        # Last: it changes all of the ledger, or nothing.
        if state["searcher"] is not None:
            self.ledger.load_state_dict(state["searcher"])

    def save(self, checkpoint_path: str) -> None:
        """Write the state to a file. Problems are logged: an exception here would end the run."""
        try:
            with open(checkpoint_path, "w", encoding="utf-8") as file:
                file.write(seal(as_json(self.get_state())))
        except Exception:
            logger.exception("The searcher's state was not saved; the previous one is kept.")
            if os.path.exists(checkpoint_path):
                os.remove(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Load what `save` wrote.

        **Raises:** `ValueError` if the file is damaged or of another search.
        """
        try:
            self.set_state(unseal(Path(checkpoint_path).read_bytes()))
        except OtherSearchError:
            raise
        except ValueError as error:
            raise ValueError(
                f"state: expected a searcher's state, but {checkpoint_path} is truncated or "
                f"damaged ({error})"
            ) from None

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Called by Ray now and then, after it has written its own state.

        The previous file is kept as a backup, and a copy of all that belongs together is put into
        the experiment's folder, for `strategies.ray.restore`.
        """
        path = os.path.join(checkpoint_dir, self.CKPT_FILE_TMPL.format(session_str))
        backup = os.path.join(checkpoint_dir, _BACKUP.format(session_str))
        try:
            if os.path.exists(path):
                shutil.copyfile(path, backup + ".tmp")
                os.replace(backup + ".tmp", backup)
        except OSError:
            logger.exception("The backup of the searcher's state was not written.")
        super().save_to_dir(checkpoint_dir, session_str)
        try:
            self._take_snapshot(Path(checkpoint_dir), session_str)
        except Exception:
            logger.exception("The copy of the experiment's state was not written.")

    def _take_snapshot(self, staging: Path, session: str) -> None:
        written = staging / EXPERIMENT.format(session)
        if self._folder is None and written.exists():
            self._folder = experiment_folder(json.loads(written.read_text(encoding="utf-8")))
        if self._folder is not None and self._folder.is_dir():
            take_snapshot(self._folder, staging, self.CKPT_FILE_TMPL.format(session), session)

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Called by Ray at a restore: the newest state, or its backup if that is damaged.

        If neither can be read this logs an error and begins with an empty history. To raise would
        be worse: Ray would then start the whole experiment over, with one sample.

        **Raises:** `OtherSearchError` (a `ValueError`) if the state is of another search than this
        one, and nothing has changed then; for Ray's own copy of the search that is an error that is
        logged, too.
        """
        # It may have been moved, or another experiment goes on from here.
        self._folder = None
        names = _newest(checkpoint_dir, self.CKPT_FILE_TMPL) + _newest(checkpoint_dir, _BACKUP)
        for name in names:
            try:
                self.restore(os.path.join(checkpoint_dir, name))
                break
            except Exception as error:
                if isinstance(error, OtherSearchError) and not self._pickled:
                    raise
                logger.error("%s cannot be used: %s", name, error)
        else:
            logger.error("No state of the searcher in %s: the search begins anew.", checkpoint_dir)
        try:
            self._catch_up(checkpoint_dir)
        except Exception:
            logger.exception("The trials of %s were not compared with the state.", checkpoint_dir)

    def _catch_up(self, checkpoint_dir: str) -> None:
        """Take over what the trials know and we do not.

        Ray writes its trials first and its searcher next, and copies both in any order. A kill in
        between leaves trials that we have not suggested yet, finished ones that we still wait for,
        and trials that Ray does not know any more.
        """
        # What a repeater has is its own affair: one trial of ours is several of Ray's there.
        if self._ledger is None or is_repeated(Path(checkpoint_dir)):
            return
        for name in _newest(checkpoint_dir, EXPERIMENT)[:1]:
            with open(os.path.join(checkpoint_dir, name), encoding="utf-8") as file:
                stored = json.load(file)
            ids = [json.loads(state)["trial_id"] for state, _ in stored["trial_data"]]
            for trial_id in self._live.keys() - set(ids):
                self._lose(trial_id)
            trials = []
            for trial_id, (state, metadata) in zip(ids, stored["trial_data"], strict=True):
                if trial_id not in self._numbers or trial_id in self._live:
                    trial = Trial.from_json_state(state, stub=True)
                    trial.restore_run_metadata(metadata)
                    trials.append(trial)
            # The tag begins with a counter.
            for trial in sorted(trials, key=lambda t: int(t.experiment_tag.partition("_")[0])):
                if trial.trial_id not in self._numbers:
                    self._recognise(trial)
                if trial.status in (Trial.TERMINATED, Trial.ERROR):
                    self.has_ended(trial)

    def has_ended(self, trial: Trial) -> None:
        """Take over what came of a trial of a restored experiment that runs no more."""
        failed = trial.status == Trial.ERROR
        result = flatten_dict(trial.last_result or {})
        if trial.trial_id in self._live and was_cut_off(trial.status, result):
            self._cut_off(trial, result)
        else:
            self.on_trial_complete(trial.trial_id, None if failed else result, failed)

    def _cut_off(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """A trial that ended with the whole run counts as far as it came, if it came anywhere."""
        if self._live[trial.trial_id] is None and not self._has_metric(result):
            self._lose(trial.trial_id)
        else:
            self.on_trial_complete(trial.trial_id, dict(result))

    def _lose(self, trial_id: str) -> None:
        """Ray does not know a trial of ours: what was suggested for it goes to the next one."""
        self._leave(trial_id)
        self._numbers.pop(trial_id)

    def _recognise(self, trial: Trial) -> None:
        """Suggest again what a trial has; the same history gives the same suggestion."""
        before = self.ledger.state_dict()
        suggested = self._suggest(trial.trial_id)
        given = flatten_dict(suggested) if isinstance(suggested, dict) else {}
        config = flatten_dict(trial.evaluated_params)
        if not given or any(config.get(key) != value for key, value in given.items()):
            # Not ours as it seems: its result will be adopted by its configuration.
            self._leave(trial.trial_id)
            self._numbers.pop(trial.trial_id, None)
            self.ledger.load_state_dict(before)


def _newest(folder: str, template: str) -> list[str]:
    """The files of a template, by the time stamps in their names, newest first."""
    before, after = template.split("{}")
    found = [n for n in os.listdir(folder) if n.startswith(before) and n.endswith(after)]
    return sorted(found, reverse=True)


def _first(path: str) -> str:
    return str(path).split("/")[0]
