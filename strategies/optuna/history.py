"""A finished study of Optuna as observations, from which any searcher may start."""

from dataclasses import replace

from optuna.study import Study
from optuna.trial import TrialState

from strategies.intake import Intake
from strategies.observation import Observation, Status
from strategies.optuna.names import Names
from strategies.optuna.study_view import context_of, maximised, point_of
from strategies.optuna.trials import report_of
from strategies.space import SearchSpace


def observations_of(study: Study, space: SearchSpace) -> list[Observation]:
    """The finished trials of a study, for `Ledger.warm_start`.

    **Arguments:**

    - `study`: whatever sampler it was run with.
    - `space`: where the observations are meant to be. Trials that have no configuration in it are
      left out.

    **Returns:** Observations whose values are minimised, with gradients where trials reported them,
    with the constraints that were set, and with the context that a trial was suggested for.
    """
    return [replace(item, number=None) for item in numbered_observations_of(study, space)]


def numbered_observations_of(study: Study, space: SearchSpace) -> list[Observation]:
    """The same with the trials' numbers, for those who show a study and do not go on from it."""
    names, intake = Names(space), Intake(space)
    maximise = maximised(study)
    found = []
    for trial in study.get_trials(deepcopy=False):
        if not trial.state.is_finished():
            continue
        point = point_of(trial, names)
        if point is None:
            continue
        status: Status = "pruned" if trial.state == TrialState.PRUNED else "complete"
        found.append(
            intake(
                point,
                names.translated(report_of(trial), point.flat),
                maximise=maximise,
                note=context_of(trial),
                status=status,
                number=trial.number,
            )
        )
    return found
