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

try:
    import ray.tune  # noqa: F401
except ImportError as error:  # pragma: no cover -- the extra is installed where this is tested
    raise ImportError(
        'strategies.ray needs Ray Tune: pip install "hypergrad-engine[ray]"'
    ) from error

from strategies.lazy import attach_stub

# The population needs JAX, which the process of a trial may do without.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
