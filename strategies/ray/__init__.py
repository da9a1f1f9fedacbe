"""Ray Tune's adapter: the same searchers as `tune.TuneConfig(search_alg=...)`.

```python
from ray import tune
from strategies.ray import HypergradSearch, report


def train(config):
    loss, gradient = ...  # gradient: {"l2": d loss / d l2}, or nothing
    report(loss, gradient, metric="loss")


tuner = tune.Tuner(
    train,
    param_space={"l2": tune.loguniform(1e-6, 1e2), "scale": tune.choice(["none", "standard"])},
    tune_config=tune.TuneConfig(
        metric="loss", mode="min", num_samples=20, search_alg=HypergradSearch(seed=0)
    ),
)
results = tuner.fit()
```

Nothing here searches: spaces, reports and states are translated, and the searchers of
`strategies.searchers` decide. Ray calls all of it inside the driver's event loop, and an exception
there ends the experiment; so mistakes in the set-up are raised before the first trial, and whatever
goes wrong later is logged and tolerated.
"""

from typing import TYPE_CHECKING, Any

try:
    import ray.tune  # noqa: F401
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.ray needs Ray Tune: pip install "hypergrad-engine[ray]"'
    ) from error

from strategies.ray.recovery import can_restore, restore
from strategies.ray.reports import MAX_NUMBERS, report, result, trainable, worker_environment
from strategies.ray.scheduler import BracketProgress, HypergradScheduler, ScheduledSearch
from strategies.ray.search import HypergradSearch
from strategies.ray.spaces import space_from_ray, space_to_ray
from strategies.ray.stopper import SearchStopper

if TYPE_CHECKING:
    from strategies.ray.population import population_trainable

__all__ = [
    "MAX_NUMBERS",
    "BracketProgress",
    "HypergradScheduler",
    "HypergradSearch",
    "ScheduledSearch",
    "SearchStopper",
    "can_restore",
    "population_trainable",
    "report",
    "restore",
    "result",
    "space_from_ray",
    "space_to_ray",
    "trainable",
    "worker_environment",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: it needs JAX, which the process of a trial may do without.
    if name == "population_trainable":
        from strategies.ray.population import population_trainable

        return population_trainable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
