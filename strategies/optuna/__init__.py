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

try:
    import optuna  # noqa: F401
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.optuna needs Optuna: pip install "hypergrad-engine[optuna]"'
    ) from error

from strategies.lazy import attach_stub

# The population needs JAX, and most studies do not.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
