"""Optuna's adapter: the same searchers as `optuna.create_study(sampler=...)`.

```python
import optuna
from strategies.optuna import HypergradSampler, report, suggest
from strategies.space import Categorical, Float, SearchSpace

space = SearchSpace(
    {"l2": Float(1e-6, 1e2, log=True, shape=(64,)), "scale": Categorical(["none", "standard"])}
)


def objective(trial):
    config = suggest(trial, space)
    loss, gradient = ...  # gradient: {"l2": d loss / d l2}, or nothing
    return report(trial, loss, gradient)


study = optuna.create_study(sampler=HypergradSampler(space=space, seed=0))
study.optimize(objective, n_trials=20)
```

An objective that calls `trial.suggest_float` and friends by itself, as every Optuna script does,
works as well: without `space` the sampler searches what the trials so far have asked for,
parameters under an `if` with the condition that explains them.

The sampler holds no state. It rebuilds the searcher's history from the study's trials, derives all
randomness from the seed and the trial's number, and keeps the searcher's remarks as attributes of
the trials. So a study that is loaded again, from whatever storage and by whatever process,
continues as if it had not been interrupted.
"""

from typing import TYPE_CHECKING, Any

try:
    import optuna  # noqa: F401
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.optuna needs Optuna: pip install "hypergrad-engine[optuna]"'
    ) from error

from strategies.optuna.history import observations_of
from strategies.optuna.journal import JournalFile
from strategies.optuna.sampler import HypergradSampler
from strategies.optuna.schedule import RungPruner, run_schedule
from strategies.optuna.spaces import space_from_optuna, space_from_trials, space_to_optuna
from strategies.optuna.stopping import StopStudy
from strategies.optuna.study import study_of
from strategies.optuna.trials import objective, report, report_of, suggest

if TYPE_CHECKING:
    from strategies.optuna.population import run_population

__all__ = [
    "HypergradSampler",
    "JournalFile",
    "RungPruner",
    "StopStudy",
    "objective",
    "observations_of",
    "report",
    "report_of",
    "run_population",
    "run_schedule",
    "space_from_optuna",
    "space_from_trials",
    "space_to_optuna",
    "study_of",
    "suggest",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: it needs JAX, and most studies do not.
    if name == "run_population":
        from strategies.optuna.population import run_population

        return run_population
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
