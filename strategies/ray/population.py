"""Many trials of Ray Tune in one program: one actor trains, and each trial asks it for its steps.

```python
from ray import tune
from strategies import RandomSearcher
from strategies.ray import HypergradSearch, population_trainable

search = HypergradSearch(
    RandomSearcher(population.space, seed=0), metric="value", mode="min", number_key="member"
)
tuner = tune.Tuner(
    population_trainable(population, steps=100, iterations=10),
    tune_config=tune.TuneConfig(
        num_samples=64, max_concurrent_trials=population.size, search_alg=search, reuse_actors=True
    ),
)
```

Ray has a process for each trial, which here holds nothing but the number of the trial and its last
checkpoint. So trials have ids, results, checkpoints, schedulers and restarts as all others have.
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray import cloudpickle, tune

from strategies.arguments import integer, positive
from strategies.population import Population
from strategies.ray.holder import Holder
from strategies.ray.member import MemberTrainable

#: Trials that may wait for the actor at a time.
_WAITING = 10_000
#: Of a processor: what a process that only waits is counted for.
_SHARE = 0.001


def population_trainable(
    population: Population,
    *,
    steps: int,
    iterations: int = 1,
    metric: str = "value",
    number_key: str = "member",
    patience: float = 0.2,
    restarts: int = 3,
    resources: Mapping[str, float] | None = None,
) -> Any:
    """A trainable whose trials are members of a population, trained by one actor.

    Call it after `ray.init()`, if you call that. A member's keys come from its number: the
    suggestion's, if `HypergradSearch(number_key=...)` is the search algorithm, and otherwise one
    made of the trial's id.

    If the actor dies it is started again, and each trial brings its last checkpoint, or is trained
    again from its beginning, with the same result.

    **Arguments:**

    - `population`: what trains; it is sent to the actor, so without `devices`.
    - `steps`: training steps of an iteration, after which a trial reports.
    - `iterations`: of a trial. Default 1.
    - `metric`: the name under which the value is reported, beside `steps` and `metrics`.
    - `number_key`: the key of a configuration that holds the member's number.
    - `patience`: seconds to wait for further trials while lanes are free. Default 0.2.
    - `restarts`: how often the actor is started again. Default 3.
    - `resources`: that the actor reserves, such as `{"num_gpus": 1}`. Default: none. Trials reserve
      a thousandth of a processor, so limit them: `max_concurrent_trials=population.size`.

    **Returns:** What `tune.Tuner` takes. The actor lives as long as this does.

    **Raises:** `ValueError` for options that do not fit.
    """
    if not isinstance(population, Population):
        raise ValueError(f"'population': expected a Population, received {population!r:.80}")
    if population.devices:
        raise ValueError(
            "'population': expected one without devices, as it is sent to another process, "
            f"received {len(population.devices)}"
        )
    length, count = integer("steps", steps, 1), integer("iterations", iterations, 1)
    population.check()
    most = integer("restarts", restarts, 0)
    wait = float(positive("patience", patience))
    if not ray.is_initialized():
        ray.init()
    stored = ray.put(cloudpickle.dumps(population))
    actor: Any = ray.remote(Holder)
    holder = actor.options(
        **({"num_cpus": 0} if resources is None else dict(resources)),
        max_restarts=most,
        max_task_retries=most,
        max_concurrency=_WAITING,
    ).remote(stored, wait)
    own = {
        "holder": holder,
        # What the actor is started again with: Ray forgets large arguments of a start that is over.
        "population": stored,
        "steps": length,
        "iterations": count,
        "metric": metric,
        "number_key": number_key,
    }
    # A class of its own, which Ray sends to the trials as it is.
    return tune.with_resources(type("population", (MemberTrainable,), own), {"cpu": _SHARE})
