"""What all schedulers share: who was given how much resource, and what came of it.

A scheduler decides *how far* each configuration is trained; the searcher inside it decides *which*
configurations there are. Both are engine-free: a scheduler hands out `Job`s and is told their
results, and whoever runs the jobs (this process, Ray Tune, Optuna) translates.

All decisions are computed from the table of results, never from the order of past calls. So a
restored scheduler continues as the uninterrupted one would have, a result that is told twice
changes nothing, and a job that was lost is simply handed out again.
"""

import abc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

from strategies import arguments
from strategies.arguments import integer, mapping, positive, switch
from strategies.intake import Intake
from strategies.observation import Observation, Report, Suggestion
from strategies.schedulers.flips import warn_if_unsafe
from strategies.schedulers.job import (
    Candidate,
    Job,
    is_power,
    plain,
    resource_from_text,
    rung_resources,
)
from strategies.searchers.base import Searcher, require_searcher
from strategies.state import (
    OtherSearchError,
    as_json,
    expect,
    expect_search,
    observation_from_json,
    observation_to_json,
    replacing,
    restore_state,
    search_identity,
    write_state,
)

_VERSION = 2
#: Finished configurations at which it is checked whether rungs rank as the end does: this power of
#: two, and each later one.
_FROM = 8


def _reaches(mine: int | None, stored: int | None) -> bool:
    """Whether a scheduler goes at least as far as the one that was saved."""
    return mine is None or (stored is not None and mine >= stored)


class Scheduler(abc.ABC):
    """Decides which configuration is trained for how long, job by job.

    **Arguments:**

    - `searcher`: any searcher; only its pure method `propose` is used.
    - `max_resource`: the most resource that one configuration may get (epochs, steps, samples). A
      `fractions.Fraction` is taken exactly, such as the third of a maximum to be grown to later.
    - `min_resource`: the least that a configuration gets. Default 1.
    - `eta`: the reduction factor, an integer of at least 2. Default 3.
    - `integer`: round the rungs' resources to whole numbers. Default `True`. The rungs themselves
      are exact fractions, so rounding is the same before and after the maximum grows.

    The rungs are `max_resource / eta^i` for `i = S, ..., 0`, where `S` is the largest integer with
    `min_resource * eta^S <= max_resource`: the largest resource is met exactly, and the smallest
    may lie a little above `min_resource`.
    """

    def __init__(
        self,
        searcher: Searcher,
        max_resource: int | float | Fraction,
        *,
        min_resource: int | float | Fraction = 1,
        eta: int = 3,
        integer: bool = True,
    ) -> None:
        low, high = positive("min_resource", min_resource), positive("max_resource", max_resource)
        if high < low:
            raise ValueError(
                f"'max_resource': expected at least min_resource={low}, received {high}"
            )
        integer = switch("integer", integer)
        if integer and low < 1:
            raise ValueError(
                f"'min_resource': expected a whole unit, or integer=False, received {low}"
            )
        require_searcher(searcher)
        self.searcher = searcher
        # Decimal fractions as they were written: 0.9 is 9 times 0.1 here, and not in binary.
        self._low, self._high = Fraction(str(low)), Fraction(str(high))
        self._constructed_high = self._high
        self.eta = arguments.integer("eta", eta, 2)
        self.integer = bool(integer)
        self.candidates: dict[int, Candidate] = {}
        self._pending: dict[int, int] = {}
        # By level: who has a result there. With `candidates` the one table; see `_record`.
        self._known: dict[int, list[int]] = {}
        self._stored: dict[int, dict[str, Any]] = {}
        self._flips_told = False
        #: Why the last `run` ended before there was nothing left to do; `None` if it did not.
        self.stopped: str | None = None
        self._rungs_known: tuple[Fraction, tuple[int | float, ...]] | None = None
        self._intakes = {
            strict: Intake(searcher.space, self._check, strict) for strict in (True, False)
        }

    def _check(self, observation: Observation) -> None:
        if observation.values:
            raise ValueError(
                f"'values': expected one objective, as rungs rank by one, received "
                f"{len(observation.values)}"
            )
        self.searcher.check(observation)

    # -- resources ---------------------------------------------------------------------------

    @property
    def top(self) -> int:
        """The index of the highest level: `S` above. Integers only, no floating logarithm."""
        return len(self._rung_resources()) - 1

    @property
    def max_resource(self) -> int | float:
        """The most resource that one configuration may get."""
        return plain(self._high)

    @property
    def resources(self) -> list[int | float]:
        """The resource of each level, lowest first."""
        return list(self._rung_resources())

    def _rung_resources(self) -> tuple[int | float, ...]:
        # Asked for all the time, and a fraction takes long to be looked up.
        if self._rungs_known is None or self._rungs_known[0] is not self._high:
            found = rung_resources(self._low, self._high, self.eta, self.integer)
            self._rungs_known = self._high, found
        return self._rungs_known[1]

    # -- jobs --------------------------------------------------------------------------------

    def ask(self) -> Job | None:
        """The next job: a promotion if there is one, otherwise a new configuration.

        Returns `None` when nothing can be decided before further results arrive, and when the
        scheduler has finished; `finished` tells which.
        """
        return self.promote() or self.start()

    def promote(self, only: int | None = None) -> Job | None:
        """The next job for a configuration that is already known, or `None`.

        With `only`, the next job of that configuration, if it has one: an engine asks so whether
        a trial that has just reached its rung may go on without being paused.
        """
        for number, level in self._promotions():
            if only is None or number == only:
                return self._issue(number, level)
        return None

    def waiting(self) -> list[int]:
        """The known configurations that `promote` would hand out now, most wanted first."""
        return [number for number, _ in self._promotions()]

    def start(self) -> Job | None:
        """The first job of a new configuration, or `None` if no new one is wanted now."""
        place = self._place()
        if place is None:
            return None
        number, level = place
        if number not in self.candidates:
            suggestion = self.searcher.propose(
                number, self.history(), [self._suggestion(n) for n in self._pending]
            )
            self.candidates[number] = Candidate(number, suggestion.config, suggestion.note)
        return self._issue(number, level)

    def tell(
        self,
        number: int,
        report: Report | float | None,
        *,
        maximise: bool = False,
        strict: bool = True,
    ) -> None:
        """Record the result of a configuration's pending job.

        **Arguments:**

        - `number`: the job's number.
        - `report`: what came of it: a `Report`, or just the value. NaN, infinity and `None` are
          failures: ranked last and never promoted.
        - `maximise`: the value is to be maximised.
        - `strict`: see `strategies.intake.Intake`.

        **Raises:** `ValueError` for a number that has never been handed out, and if `strict` for a
        report that does not fit; the job is still pending then. A result for a job that is not
        pending (told before, or after a restore from an older state) is ignored.
        """
        self._candidate(number)
        maximise, strict = switch("maximise", maximise), switch("strict", strict)
        level = self._pending.get(number)
        if level is None:
            return
        candidate = self.candidates[number]
        if not isinstance(report, Report):
            report = Report(report)
        observation = self._intakes[strict](
            candidate.config,
            replace(report, resource=self.resources[level]),
            number=number,
            note=candidate.note,
            maximise=maximise,
        )
        del self._pending[number]
        self._record(number, level, observation)
        self._reached(number, level)
        done = len(self._at(self.top))
        # Of enough configurations, and not at every one of them.
        if level == self.top and done >= _FROM and not done & (done - 1) and not self._flips_told:
            self._flips_told = warn_if_unsafe(self)

    def job(self, number: int) -> Job | None:
        """The pending job of a configuration, if it has one."""
        level = self._pending.get(integer("number", number, 0))
        return None if level is None else self._job(number, level)

    def take_up(
        self, number: int, level: int, config: Mapping[str, Any], note: Mapping[str, Any]
    ) -> None:
        """Make a job pending that was handed out before, by a process that kept it elsewhere.

        The configuration replaces one that was proposed here for the number, if nothing is known of
        that yet.
        """
        number, level = integer("number", number, 0), integer("level", level, 0)
        config = mapping("config", config, "a configuration")
        if number not in self.candidates or not self.candidates[number].results:
            self.candidates[number] = Candidate(number, config, note)
            self._stored.pop(number, None)
        if level not in self.candidates[number].results:
            self._pending[number] = level

    def forget(self, number: int) -> None:
        """Take a pending job back: it is handed out again."""
        self._pending.pop(integer("number", number, 0), None)

    def pending(self) -> list[Job]:
        """The jobs that are being worked on: what to resume after a restore."""
        return [self._job(number, level) for number, level in self._pending.items()]

    def settled(self, number: int) -> bool:
        """Whether a configuration will never run again: its checkpoint may be thrown away."""
        candidate = self._candidate(number)
        return bool(candidate.results) and max(candidate.results) == self.top

    def _candidate(self, number: int) -> Candidate:
        known = self.candidates.get(integer("number", number, 0))
        if known is None:
            raise ValueError(
                f"'number': expected one that was handed out here, received {number!r:.80}"
            )
        return known

    # -- results -----------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to do, now or later, at this maximum resource."""

    @property
    def incumbent(self) -> Observation | None:
        """The best result at the maximum resource; results at lower rungs do not count."""
        return self.incumbents.get(self.resources[-1])

    @property
    def incumbents(self) -> dict[int | float, Observation]:
        """The best finite result at each rung's resource. Ties go to the lower number."""
        best: dict[int | float, Observation] = {}
        for level, resource in enumerate(self.resources):
            ranked = self._ranked(self._at(level), level)
            if ranked and math.isfinite(self.candidates[ranked[0]].value(level)):
                best[resource] = self.candidates[ranked[0]].results[level]
        return best

    @property
    def endless(self) -> bool:
        """Whether there is always something left to do."""
        return bool(self._extent) and getattr(self, self._extent) is None

    @property
    def done(self) -> int:
        """How many jobs have a result."""
        return sum(len(numbers) for numbers in self._known.values())

    def everything(self) -> list[Observation]:
        """All results, by number, and of each number by rung."""
        return [
            candidate.results[level]
            for _, candidate in sorted(self.candidates.items())
            for level in sorted(candidate.results)
        ]

    def results(self) -> list[Observation]:
        """Those at the highest rung that has any, by number."""
        levels = [level for level, numbers in self._known.items() if numbers]
        level = max(levels, default=0)
        return [self.candidates[n].results[level] for n in sorted(self._at(level))]

    def costs(self) -> float:
        """What all jobs have cost that reported it, in their own unit."""
        return sum(item.cost or 0.0 for item in self.everything())

    @property
    def spent(self) -> int | float:
        """Resource spent if every job trains from scratch: the accounting of the papers."""
        resources = self.resources
        return sum(resources[i] for c in self.candidates.values() for i in c.results)

    @property
    def spent_resumed(self) -> int | float:
        """Resource spent if every job resumes from the configuration's last checkpoint."""
        resources = self.resources
        return sum(resources[max(c.results)] for c in self.candidates.values() if c.results)

    def history(self) -> list[Observation]:
        """What the searcher learns from: the results of one rung, never a mixture of fidelities.

        The highest rung that has at least as many usable results as the space has encoded
        dimensions, plus two (as in BOHB); before any has, the rung with the most. A searcher that
        compares resources by itself (`Searcher.all_resources`) is shown the results of all rungs,
        and none before a configuration has reached its second rung, or the last: a model of the
        lowest rung alone would fill it with what learns fast and ends early.
        """
        if self.searcher.all_resources:
            promoted = any(len(candidate.results) > 1 for candidate in self.candidates.values())
            return self.everything() if promoted or self._at(self.top) else []
        enough = self.searcher.space.dimension + 2
        most, level = 0, 0
        for i in reversed(range(self.top + 1)):
            usable = sum(math.isfinite(self.candidates[n].value(i)) for n in self._at(i))
            if min(usable, enough) > most:
                most, level = min(usable, enough), i
            if most == enough:
                break
        return [self.candidates[n].results[level] for n in sorted(self._at(level))]

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that was decided and told, as JSON-safe data."""
        return {
            "version": _VERSION,
            "kind": type(self).__name__,
            **search_identity(self.searcher),
            "options": self._options(),
            "candidates": [self._row(candidate) for candidate in self.candidates.values()],
            "pending": [[number, level] for number, level in self._pending.items()],
            "decisions": self._decisions(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state: all of it, or nothing if that fails.

        The searcher is not part of it: construct the scheduler as before, or with more to do
        (`iterations`, `configurations`). A maximum that has grown comes with the state.

        **Raises:** `ValueError` if it is damaged, or of another kind of scheduler, other options,
        or another searcher.
        """
        with replacing(self):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        version, kind = state.get("version"), state.get("kind")
        if version not in (1, _VERSION) or kind != type(self).__name__:
            raise OtherSearchError(
                f"state: expected one of {type(self).__name__}, version {_VERSION}; "
                f"received {kind!r}, version {version!r}"
            )
        if version > 1:
            expect_search(state, self.searcher)
        options, mine = {**state["options"]}, self._options()
        high = resource_from_text(options["max_resource"])
        mine["max_resource"] = str(self._constructed_high)
        if self._grows and is_power(high / self._constructed_high, self.eta):
            options["max_resource"] = mine["max_resource"]
        if self._extent in mine and _reaches(mine[self._extent], options[self._extent]):
            # It may be given more to do than it had.
            options[self._extent] = mine[self._extent]
        expect(options, mine)
        self._high = high
        space = self.searcher.space
        self.candidates, self._known, self._stored = {}, {}, {}
        for row in state["candidates"]:
            number, point = row["number"], space.point_from_json(row["config"])
            self.candidates[number] = Candidate(number, point.config, row["note"])
            for level, result in row["results"].items():
                observation = observation_from_json(space, result, of=point.config)
                self._record(number, int(level), observation)
            self._stored[number] = {**row, "results": dict(row["results"])}
        self._pending = dict(map(self._known_job, state["pending"]))
        self._set_decisions(state["decisions"])

    def _known_job(self, stored: Sequence[int]) -> tuple[int, int]:
        number, level = stored
        if number not in self.candidates or level not in range(self.top + 1):
            raise ValueError(f"expected a job of this scheduler, received {stored!r:.40}")
        return number, level

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as JSON; kept, because results do not change once they are known."""
        space = self.searcher.space
        if candidate.number not in self._stored:
            self._stored[candidate.number] = {
                "number": candidate.number,
                "config": space.to_json(candidate.config),
                "note": dict(candidate.note),
                "results": {},
            }
        row = self._stored[candidate.number]
        for level, observation in candidate.results.items():
            if str(level) not in row["results"]:
                stored = observation_to_json(space, observation, of=candidate.config)
                row["results"][str(level)] = stored
        return {**row, "results": dict(row["results"])}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, complete at every moment; the previous one is kept."""
        write_state(path, as_json(self.state_dict()))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, or its backup if the file is damaged (with a warning).

        **Raises:** `ValueError` if neither can be read, or if they are of another scheduler;
        `FileNotFoundError` if there is neither.
        """
        restore_state(path, self.load_state_dict)

    #: Whether the maximum resource can be raised, by powers of `eta`.
    _grows: ClassVar[bool] = False

    #: The option that says how much there is to do; `None` is without end.
    _extent: ClassVar[str] = ""

    def _options(self) -> dict[str, Any]:
        return {
            "max_resource": str(self._high),
            "min_resource": str(self._low),
            "eta": self.eta,
            "integer": self.integer,
        }

    def _decisions(self) -> dict[str, Any]:
        """Decisions that depend on the order of results, where a scheduler makes such."""
        return {}

    def _set_decisions(self, decisions: Mapping[str, Any]) -> None:
        del decisions

    # -- for subclasses ----------------------------------------------------------------------

    @abc.abstractmethod
    def _promotions(self) -> Sequence[tuple[int, int]]:
        """Known configurations that may run now, each with its level, most wanted first."""

    @abc.abstractmethod
    def _place(self) -> tuple[int, int] | None:
        """The number and the first level of the next new configuration, if one is wanted."""

    def _reached(self, number: int, level: int) -> None:
        """Called when a result was recorded, for schedulers that decide on arrival."""
        del number, level

    def _record(self, number: int, level: int, observation: Observation) -> None:
        self.candidates[number].results[level] = observation
        self._known.setdefault(level, []).append(number)

    def _at(self, level: int) -> Sequence[int]:
        """Those that have a result at a level."""
        return self._known.get(level, ())

    def _ranked(self, numbers: Sequence[int] | Mapping[int, Any], level: int) -> list[int]:
        """Those with a result at a level, best first; ties by number, which is creation order.

        The feasible come before the infeasible, those by their violation.
        """
        known = [n for n in numbers if level in self.candidates[n].results]
        return sorted(known, key=lambda n: (*self.candidates[n].results[level].rank, n))

    def _job(self, number: int, level: int) -> Job:
        candidate, resources = self.candidates[number], self.resources
        done = resources[max(candidate.results)] if candidate.results else 0
        return Job(number, candidate.config, resources[level], done, level)

    def _issue(self, number: int, level: int) -> Job:
        self._pending[number] = level
        return self._job(number, level)

    def _suggestion(self, number: int) -> Suggestion:
        candidate = self.candidates[number]
        return Suggestion(number, candidate.config, candidate.note)
