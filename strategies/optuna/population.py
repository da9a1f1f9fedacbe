"""Many trials of a study in one program: a population that asks and tells a study."""

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from strategies.arguments import integer
from strategies.intake import Intake
from strategies.ledger import Ledger
from strategies.local.results import Trial as Told
from strategies.observation import Observation, Report
from strategies.optuna.jobs import FAILED, StudyJobs
from strategies.optuna.names import Names
from strategies.optuna.patience import patiently
from strategies.optuna.study import NUMBER, trial_of
from strategies.optuna.study_view import point_of
from strategies.optuna.trials import keep_report, report_of, suggest
from strategies.population import PBT, Population, PopulationResult, Progress, checkpoint
from strategies.population.work import Rungs, Trials
from strategies.schedulers import Job, Scheduler
from strategies.searchers.random import RandomSearcher
from strategies.state import exclusive_lock

#: The user attribute of a trial of population-based training: its round, member and parent.
NOTE = "hypergrad:note"
#: The user attribute of a trial that a population trains: for how many steps.
STEPS = "hypergrad:steps"


def run_population(
    study: Any,
    population: Population,
    *,
    trials: int | None = None,
    steps: int | None = None,
    search: Scheduler | PBT | None = None,
    members_path: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    callbacks: Iterable[Callable[[Told], bool | None]] = (),
    progress: Callable[[Progress], None] | None = None,
) -> PopulationResult:
    """Train the trials of a study as members of a population, until there are enough.

    The study's sampler is asked for as many trials as lanes are free, and told as they arrive. With
    a `search` its searcher proposes instead: each rung of a configuration is a trial, as in
    `run_schedule`, or each member in each round of a `PBT`. Results are in the study's storage
    before anybody is told of them. The same call continues: trials that were running are trained on
    under their numbers, from `members_path`, or else from their beginning with the same result.

    **Arguments:**

    - `study`: of one objective that is minimised. No other process may work on it.
    - `population`: what trains.
    - `trials`: how many in all, those that the study has of this kind included. With a scheduler
      the most jobs of this call; needed if it has no end. A `PBT` knows by itself.
    - `steps`: of a trial; with a scheduler, steps of one unit of its resource (default 1). A `PBT`
      has its own.
    - `search`: a scheduler on the population's space, new or one that has worked on this study; or
      a `PBT`. Default: the study's sampler proposes trials of one length.
    - `members_path`: file for the members' states. Default: none.
    - `checkpoint_seconds`, `callbacks`, `progress`: as for `Population.run`.

    **Returns:** A `PopulationResult`, for a `PBT` an `Evolution`. A member's number, from which its
    keys come, is that of its trial, or what it would be in `Population.run` with the same `search`.

    **Raises:** `ValueError` for options that do not fit, and see `Population.run`.
    """
    if not isinstance(study, optuna.Study):
        raise ValueError(f"'study': expected a study of Optuna, received {study!r:.80}")
    if not isinstance(population, Population):
        raise ValueError(f"'population': expected a Population, received {population!r:.80}")
    if study._is_multi_objective() or study.direction != StudyDirection.MINIMIZE:
        raise ValueError(
            f"'study': expected one objective that is minimised, received {study.directions}"
        )
    with exclusive_lock(members_path):
        work: StudyTrials | StudyRungs | PBT
        ledger = None
        if search is None:
            count, length = integer("trials", trials, 1), integer("steps", steps, 1)
            work = StudyTrials(study, population, count, length)
            begun = work.begun
        elif isinstance(search, Scheduler):
            work = StudyRungs(study, search, trials, steps)
            begun = work.begun
        elif isinstance(search, PBT):
            if trials is not None or steps is not None:
                raise ValueError("'trials', 'steps': expected none, as a PBT has its own steps")
            work, ledger = search, StudyLedger(study, search)
            begun = bool(ledger.history)
        else:
            raise ValueError(f"'search': expected a scheduler or a PBT, received {search!r:.80}")
        if members_path is not None and not begun:
            checkpoint.discard(os.fspath(members_path))
        return population.run_on(
            work,
            ledger=ledger,
            members_path=members_path,
            checkpoint_seconds=checkpoint_seconds,
            callbacks=callbacks,
            progress=progress,
        )


class StudyTrials(Trials):
    """Trials of one length, that a study hands out and keeps: the `Work` of a population."""

    def __init__(self, study: Any, population: Population, trials: int, steps: int) -> None:
        space = population.space
        super().__init__(Ledger(RandomSearcher(space)), trials, steps)
        self._study, self._space, self._intake = study, space, Intake(space)
        self._given: dict[int, Trial] = {}
        self._interrupted: list[FrozenTrial] = []
        names = Names(space)
        for trial in study.get_trials(deepcopy=False):
            if STEPS not in trial.user_attrs:
                # A kill between asking and marking leaves an empty one, whose number counts.
                if trial.state == TrialState.RUNNING and not (trial.params or trial.user_attrs):
                    Trial(study, trial._trial_id).set_user_attr(STEPS, steps)
                    self._interrupted.append(trial)
                continue
            if trial.user_attrs[STEPS] != steps:
                raise ValueError(
                    f"'steps': expected {trial.user_attrs[STEPS]}, those of the study's trials, "
                    f"received {steps}"
                )
            if trial.state == TrialState.RUNNING:
                self._interrupted.append(trial)
            elif trial.state.is_finished() and (point := point_of(trial, names)) is not None:
                made = names.translated(report_of(trial), point.flat)
                self.ledger.record(self._intake(point, made, number=trial.number))
        self.begun = bool(self._interrupted or self.ledger.trials)

    def _job_of(self, trial: Trial) -> Job:
        self._given[trial.number] = trial
        return self._job(trial.number, suggest(trial, self._space))

    def again(self) -> list[Job]:
        """What a killed run was training."""
        return [self._job_of(Trial(self._study, trial._trial_id)) for trial in self._interrupted]

    def ask(self, running: int) -> Job | None:
        """The next trial of the study, whose sampler proposes."""
        if self.ledger.trials + running >= self._trials:
            return None
        trial = self._study.ask()
        trial.set_user_attr(STEPS, self._steps)
        return self._job_of(trial)

    def tell(self, job: Job, report: Report) -> Observation:
        """End a trial; a value that is not finite is a failure."""
        told = self._intake(job.config, report, number=job.number)
        trial = self._given.pop(job.number)
        self._open.discard(job.number)
        keep_report(trial, report)
        if told.status == "complete" and (value := told.value) is not None:
            patiently(lambda: trial.report(value, self._steps))
            patiently(lambda: self._study.tell(trial, value))
        else:
            patiently(lambda: trial.set_user_attr(FAILED, "the value is not a finite number"))
            patiently(lambda: self._study.tell(trial, state=TrialState.FAIL))
        return self.ledger.record(told)


class StudyRungs(Rungs):
    """The jobs of a scheduler, each a trial of a study."""

    def __init__(
        self, study: Any, schedule: Scheduler, trials: int | None, steps: int | None
    ) -> None:
        super().__init__(schedule, trials, steps)
        self._study_jobs = StudyJobs(study, schedule, alone=True)
        self._study_jobs.synchronise()
        self.begun = bool(schedule.candidates)
        self._given = 0
        self._open: dict[int, tuple[optuna.Trial, Job]] = {}
        self._take_over()

    def again(self) -> list[Job]:
        """Nothing: jobs that were interrupted are the first that the study hands out."""
        return []

    def ask(self, running: int) -> Job | None:
        """The next job, and a trial for it."""
        if self._jobs is not None and self._given >= self._jobs:
            return None
        found = self._study_jobs.ask()
        if found is None:
            return None
        self._given += 1
        self._open[found[1].number] = found
        return self._in_steps(found[1])

    def tell(self, job: Job, report: Report) -> Observation:
        """End the trial of a job."""
        trial, asked = self._open.pop(job.number)
        keep_report(trial, report)
        told = super().tell(asked, report)
        self._study_jobs.tell(trial, asked, told.value, "the value is not a finite number")
        return told


class StudyLedger(Ledger):
    """What a `PBT` has told, each observation a trial of a study."""

    def __init__(self, study: Any, search: PBT) -> None:
        super().__init__(search.searcher)
        self._study, self._steps = study, float(search.steps)
        self._names = Names(search.searcher.space)
        for trial in study.get_trials(deepcopy=False):
            point = point_of(trial, self._names) if NOTE in trial.user_attrs else None
            if point is not None:
                made = self._names.translated(report_of(trial), point.flat)
                note, number = trial.user_attrs[NOTE], trial.user_attrs[NUMBER]
                super().record(self.intake(point, made, number=number, note=note))

    def record(self, observation: Observation) -> Observation:
        """See `Ledger`; what is new becomes a trial. A round that is trained again is not new."""
        known = observation.number in {o.number for o in self.history}
        told = super().record(observation)
        if not known:
            trial = trial_of(self._names, [told], self._steps, datetime.now())
            trial.user_attrs[NOTE] = dict(told.note)
            self._study.add_trial(trial)
        return told
