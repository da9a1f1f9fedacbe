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

import asyncio
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import ray
from ray import cloudpickle, tune

from strategies.arguments import integer, positive
from strategies.population import checkpoint
from strategies.population.buckets import key_of
from strategies.population.lanes import Arrival, Lanes, Stored
from strategies.population.population import Population
from strategies.ray.reports import result
from strategies.schedulers.base import Job
from strategies.space import Config, Point

#: Trials that may wait for the actor at a time.
_WAITING = 10_000
#: Of a processor: what a process that only waits is counted for.
_SHARE = 0.001
_FILE = "member.npz"


class Holder:
    """The members of all trials, in one process; an actor of Ray.

    **Arguments:**

    - `pickled`: the `Population`.
    - `patience`: seconds without a new request after which lanes that are free stay empty.
    """

    def __init__(self, pickled: bytes, patience: float) -> None:
        self._population: Population = cloudpickle.loads(pickled)
        self._patience = patience
        self._settled: set[int] = set()
        self._lanes = {
            key: Lanes(program, self._settled.__contains__)
            for key, program in self._population.programs().items()
        }
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._new: list[tuple[Lanes, Job, Point]] = []
        self._loop: asyncio.Task[None] | None = None

    async def train(
        self, number: int, config: Config, since: int, until: int, kept: Stored | None = None
    ) -> tuple[float, Any] | None:
        """Train a member on, and evaluate it; `None` if nobody knows its state at `since`.

        **Arguments:**

        - `number`, `config`: of the member.
        - `since`, `until`: its steps before, and after.
        - `kept`: its state at `since`, in place of any that is here.
        """
        point = self._population.space.point(config)
        lanes = self._lanes[key_of(point, self._population.buckets)]
        if since and kept is None and not lanes.knows(number, since):
            return None
        if kept is not None or not since:
            lanes.replace(number, kept)
        self._settled.discard(number)
        future = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._new.append((lanes, Job(number, config, until, since, 0), point))
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._work())
        found: tuple[float, Any] = await future
        return found

    def state(self, number: int, age: int) -> Stored | None:
        """A member's state, for a checkpoint; `None` if it is not known at this age."""
        for lanes in self._lanes.values():
            if lanes.knows(number, age):
                return lanes.state(number)
        return None

    def forget(self, number: int) -> None:
        """Nobody asks for a member again without bringing its state."""
        self._settled.add(number)

    def compiled(self) -> tuple[int, int]:
        """How many programs were traced, and the process that holds them."""
        return self._population.traces, os.getpid()

    async def _work(self) -> None:
        while True:
            await self._gather()
            lanes = max(self._lanes.values(), key=lambda one: one.running + len(one.waiting))
            if not (lanes.running or lanes.waiting):
                return
            try:
                arrived = await asyncio.to_thread(self._advance, lanes)
            except Exception as error:
                lanes.clear()
                for future in self._asked.values():
                    future.set_exception(error)
                self._asked.clear()
                return
            for one in arrived:
                # A trial that was started again has asked twice.
                if one.job.number in self._asked:
                    self._asked.pop(one.job.number).set_result((one.value, one.metrics))

    async def _gather(self) -> None:
        """Wait until the lanes are full, or nobody new comes."""
        while True:
            for lanes, job, point in self._new:
                lanes.waiting.append((job, point, int(job.resource)))
            self._new.clear()
            held = sum(one.running + len(one.waiting) for one in self._lanes.values())
            if held >= self._population.size:
                return
            await asyncio.sleep(self._patience)
            if not self._new:
                return

    @staticmethod
    def _advance(lanes: Lanes) -> list[Arrival]:
        lanes.fill()
        return lanes.advance()


class MemberTrainable(tune.Trainable):
    """A trial whose steps are trained elsewhere; made by `population_trainable`."""

    holder: Any
    steps: int
    iterations: int
    metric: str
    number_key: str

    def setup(self, config: Config) -> None:
        """Called by Ray."""
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._config = {key: value for key, value in config.items() if key != self.number_key}
        given = config.get(self.number_key)
        self._number = zlib.crc32(self.trial_id.encode()) if given is None else int(given)
        self._age = 0
        #: The state at the last checkpoint, and whether the actor may have another one.
        self._kept: Stored | None = None
        self._loaded = False
        #: Whether a training from the beginning leads to where this one is.
        self._whole = True

    def step(self) -> dict[str, Any]:
        """Train for one iteration; what the actor has lost it is brought, or trained again."""
        until = self._age + self.steps
        found = None if self._loaded else self._train(self._age, until)
        if found is None and self._kept is not None:
            found = self._train(self._kept.age, until, self._kept)
        if found is None:
            if not self._whole:
                raise RuntimeError(f"the state of member {self._number} is lost with its actor")
            found = self._train(0, until)
        self._loaded, self._age = False, until
        value, metrics = found
        row = result(value, metric=self.metric, metrics={"steps": until, "metrics": metrics})
        # A member that has failed trains no more.
        return {**row, "done": not math.isfinite(value) or until >= self.iterations * self.steps}

    def _train(self, since: int, until: int, kept: Stored | None = None) -> Any:
        return ray.get(self.holder.train.remote(self._number, self._config, since, until, kept))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Called by Ray: the member's state, as it is in the actor, or as it was before."""
        if not self._loaded:
            self._kept = ray.get(self.holder.state.remote(self._number, self._age)) or self._kept
        stored = {} if self._kept is None else {"member": self._kept}
        mine = {"age": self._age, "life": self._life()}
        checkpoint.write(os.path.join(checkpoint_dir, _FILE), stored, mine)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Called by Ray: go on from a checkpoint, of this trial or of another one."""
        stored, note = checkpoint.read(os.path.join(checkpoint_dir, _FILE))
        self._kept, self._age = stored.get("member"), note.get("age", 0)
        self._whole = note.get("life", self._life()) == self._life()
        self._loaded = True

    def _life(self) -> str:
        """What a training from its beginning depends on, and what it went through."""
        return f"{self._number} {self._config}" if self._whole else "another's"

    def reset_config(self, new_config: Config) -> bool:
        """Called by Ray: this process goes on with another trial."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Called by Ray at the end of the trial."""
        self.holder.forget.remote(self._number)


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
    actor: Any = ray.remote(Holder)
    holder = actor.options(
        **({"num_cpus": 0} if resources is None else dict(resources)),
        max_restarts=most,
        max_task_retries=most,
        max_concurrency=_WAITING,
    ).remote(cloudpickle.dumps(population), wait)
    own = {
        "holder": holder,
        "steps": length,
        "iterations": count,
        "metric": metric,
        "number_key": number_key,
    }
    # A class of its own, which Ray sends to the trials as it is.
    return tune.with_resources(type("population", (MemberTrainable,), own), {"cpu": _SHARE})


__all__ = ["Holder", "MemberTrainable", "population_trainable"]
