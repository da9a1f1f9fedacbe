"""A finished study of Optuna as observations, from which any searcher may start."""

from dataclasses import replace

from optuna.study import Study

from strategies.arguments import instance
from strategies.intake import Intake
from strategies.observation import Observation
from strategies.optuna.names import Names, names_found
from strategies.optuna.shared import SharedParameters
from strategies.optuna.study_view import StudyView
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
    instance("study", study, Study)
    if not isinstance(space, SearchSpace):
        space = SearchSpace(space)
    return [
        replace(item, number=None, note={k: v for k, v in item.note.items() if k == "context"})
        for item in seen_in(study, Names(space))
    ]


def seen_in(study: Study, names: Names) -> list[Observation]:
    """The same with numbers and notes, for those who look at a study and do not go on from it."""
    view = StudyView(names, Intake(names.space))
    return view.look(study, study.get_trials(deepcopy=False))[0]


def names_of(study: Study) -> Names | None:
    """The parameters of a study, with the conditions that explain them.

    **Returns:** `None` while no trial has any.
    """
    asked = SharedParameters().of(study.get_trials(deepcopy=False))
    return names_found(asked) if asked.distributions else None
