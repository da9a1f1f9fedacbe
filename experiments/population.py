"""Many trials in one program, and the schedules that population-based training finds.

A network with one hidden layer on digits, small as the networks are that are tuned by the hundred.
The same trainings are run by one population, by a Python loop over one compiled step (what most
people write), by a Python loop over one compiled training, and in a process for each trial. Counted
is processor time, without compilation except for the processes, which compile for themselves; so
the ratios are those of one core. Members are compared with the same trainings alone, and the memory
that the compiler allots with what was predicted. The same on two cores, in wall time: the
population has half of its lanes on each, and Ray Tune has a process on each. And networks of
several widths in place of one, to see where a population pays.

Then learning-rate schedules, at equal total steps: population-based training with perturbation,
with PB2, and along the hypergradient; the best of as many constant rates; the best of as many
cosine decays. What each found is replayed on other seeds.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies import Constant, Float, Observation, RandomSearcher, SearchSpace
from strategies.local import Trial
from strategies.population import PB2, PBT, FollowGradient, Perturb, Population
from strategies.population.memory import tree_size

HIDDEN, BATCH, MOMENTUM = 16, 16, 0.9
#: Of the comparison by width: the narrowest network, members in one program, steps, trained alone.
NARROWEST, LANES, SHORT, SOME = 4, 64, 300, 8


class State(NamedTuple):
    """Weights, their momentum, and the number of steps."""

    weights: list[Array]
    velocity: list[Array]
    age: Array


class Task:
    """A network on digits; `steps` are those of a training, for the cosine decay."""

    def __init__(self, steps: int, seed: int, hidden: int = HIDDEN) -> None:
        data = tabular("digits", seed=seed)
        self.steps, self.hidden = steps, hidden
        self.train, self.validation, self.test = (
            (jnp.asarray(part.x / 16, jnp.float32), jnp.asarray(part.y)) for part in data
        )

    def init(self, key: Array, config: dict[str, Any]) -> State:
        """Random weights."""
        first, second = jax.random.split(key)
        weights = [
            jax.random.normal(first, (64, self.hidden)) / 8.0,
            jnp.zeros(self.hidden),
            jax.random.normal(second, (self.hidden, 10)) / self.hidden**0.5,
            jnp.zeros(10),
        ]
        return State(weights, [jnp.zeros_like(w) for w in weights], jnp.zeros((), jnp.int32))

    def batch(self, key: Array, config: dict[str, Any]) -> tuple[Array, Array]:
        """A few training images."""
        rows = jax.random.randint(key, (BATCH,), 0, len(self.train[0]))
        return self.train[0][rows], self.train[1][rows]

    def step(
        self, state: State, config: dict[str, Any], batch: tuple[Array, Array], key: Array
    ) -> tuple[State, dict[str, Array]]:
        """A step of momentum with weight decay; its rate is constant or on a cosine."""
        value, slope = jax.value_and_grad(loss)(state.weights, batch)
        wave = 0.5 * (1.0 + jnp.cos(jnp.pi * state.age / self.steps))
        rate = config["rate"] * (1.0 + config["cosine"] * (wave - 1.0))
        velocity = [
            MOMENTUM * v + g + config["decay"] * w
            for v, g, w in zip(state.velocity, slope, state.weights, strict=True)
        ]
        weights = [w - rate * v for w, v in zip(state.weights, velocity, strict=True)]
        return State(weights, velocity, state.age + 1), {"loss": value}

    def evaluate(self, state: State, config: dict[str, Any]) -> Array:
        """Validation loss."""
        return loss(state.weights, self.validation)

    def space(self, cosine: float) -> SearchSpace:
        """Rate and decay; whether the rate decays is fixed."""
        return SearchSpace(
            {
                "rate": Float(1e-3, 1.0, log=True),
                "decay": Float(1e-5, 1e-2, log=True),
                "cosine": Constant(cosine),
            }
        )

    def population(self, size: int, cosine: float = 0.0) -> Population:
        """So many members."""
        space = self.space(cosine)
        return Population(self.init, self.step, self.evaluate, size, space=space, batch=self.batch)


def scores(weights: list[Array], x: Array) -> Array:
    """Of the classes."""
    return jax.nn.relu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]


def loss(weights: list[Array], part: tuple[Array, Array]) -> Array:
    """Mean cross-entropy."""
    logs = jax.nn.log_softmax(scores(weights, part[0]))
    return -jnp.mean(jnp.take_along_axis(logs, part[1][:, None], axis=1))


# -- trials per second -----------------------------------------------------------------------


class Alone:
    """The same trainings without a population."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._init, self._evaluate = jax.jit(task.init), jax.jit(task.evaluate)
        self._step = jax.jit(self._next, donate_argnums=0)
        self._whole = jax.jit(self._trained)

    def _next(self, state: State, config: dict, member: Array, age: Array) -> State:
        draw, move = jax.random.split(jax.random.fold_in(member, age + 1))
        return self._task.step(state, config, self._task.batch(draw, config), move)[0]

    def _trained(self, config: dict, number: Array) -> Array:
        member = jax.random.fold_in(jax.random.key(0), number)
        state = self._task.init(jax.random.fold_in(member, 0), config)

        def body(age: Array, state: State) -> State:
            return self._next(state, config, member, age)

        return self._task.evaluate(jax.lax.fori_loop(0, self._task.steps, body, state), config)

    def by_steps(self, config: dict, number: int) -> float:
        """A Python loop over one compiled step."""
        member = jax.random.fold_in(jax.random.key(0), number)
        state = self._init(jax.random.fold_in(member, 0), config)
        for age in range(self._task.steps):
            state = self._step(state, config, member, age)
        return float(self._evaluate(state, config))

    def whole(self, config: dict, number: int) -> float:
        """One call of a compiled training."""
        return float(self._whole(config, number))


def on_cores(members: int, steps: int, some: int) -> None:
    """Print wall seconds of a trial on two cores; called in a process that has them as devices."""
    task = Task(steps, 0)
    alone, space = Alone(task), task.space(0.0)
    shared = Population(
        task.init, task.step, task.evaluate, members,
        space=space, batch=task.batch, devices=jax.devices(),
    )  # fmt: skip
    shared.run(RandomSearcher(space), trials=members, steps=1)
    config = space.default()
    alone.whole(config, 0)

    def together() -> None:
        # A searcher remembers what it has asked.
        shared.run(RandomSearcher(space, seed=1), trials=members, steps=steps)

    found = {
        "population": walled(together) / members,
        "training": walled(lambda: [alone.whole(config, i) for i in range(some)]) / some,
    }
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, _prepare, (steps,)) as workers:
        list(workers.map(_train, [config] * members, range(members), chunksize=8))
    found["pool"] = (time.perf_counter() - began) / members
    print(json.dumps(found))


def on_ray(trials: int, steps: int) -> None:
    """Print wall seconds of a trial of Ray Tune, in two processes that are used again."""
    import ray
    from ray import tune

    class Reused(tune.Trainable):
        def setup(self, config: dict) -> None:
            self.alone, self.given = Alone(Task(steps, 0)), config

        def reset_config(self, new_config: dict) -> bool:
            self.given = new_config
            return True

        def step(self) -> dict:
            return {"loss": self.alone.whole(self.given, 0), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    space = {"rate": tune.loguniform(1e-3, 1.0), "decay": tune.loguniform(1e-5, 1e-2), "cosine": 0}
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            Reused,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="loss", mode="min", num_samples=trials, reuse_actors=True
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.perf_counter()
        tuner.fit()
    print((time.perf_counter() - began) / trials)


def walled(call: Callable[[], Any]) -> float:
    """Wall seconds of a call, the least of some."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


_WORKER: list[Alone] = []


def _prepare(steps: int) -> None:
    """Compile in a process of the pool."""
    _WORKER.append(Alone(Task(steps, 0)))


def _train(config: dict, number: int) -> float:
    return _WORKER[0].whole(config, number)


def apart(code: str, **environment: str) -> str:
    """What a Python process of its own prints, on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", f"from experiments.population import *\n{code}"],
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().rpartition("\n")[2]


def in_process(steps: int) -> float:
    """Processor seconds of a process that imports, compiles and trains one configuration."""
    return float(
        apart(
            f"Alone(Task({steps}, 0)).whole({{'rate': 0.1, 'decay': 1e-4, 'cosine': 0.0}}, 0)\n"
            "print(time.process_time())"
        )
    )


def clocked(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, the least of some, and what it returns."""
    seconds = []
    for _ in range(5):
        started = time.process_time()
        found = call()
        seconds.append(time.process_time() - started)
    return min(seconds), found


def compare_on_cores(context: Context, steps: int, process: float) -> None:
    """Trials per second of wall time, where there are two cores for all.

    **Arguments:**

    - `process`: processor seconds of a process for one trial; half of that on two cores at best.
    """
    options = context.options
    call = f"on_cores({options.members}, {steps}, {options.alone})"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    found = json.loads(apart(call, XLA_FLAGS=flags))
    seconds = {
        "one population, half of the lanes on each core": found["population"],
        "Python loop, compiled training": found["training"],
        "two processes for all, start included": found["pool"],
        "a process each, two at a time": process / 2.0,
    }
    base = found["population"]
    context.measure("pool on cores", found["pool"] / base)
    if options.ray:
        each = float(apart(f"on_ray({options.ray}, {steps})"))
        seconds["Ray Tune, two processes used again"] = each
        context.measure("Ray on cores", each / base)
    context.table(
        "trials per second on two cores",
        [
            {
                "way": name,
                "trials per second": 1.0 / each,
                "times the population's time": each / base,
            }
            for name, each in seconds.items()
        ],
    )
    context.measure("training on cores", found["training"] / base)
    context.measure("processes on cores", process / 2.0 / base)


def compare(context: Context, task: Task, population: Population) -> None:
    """Trials per processor second of the ways to run them; whether all give the same."""
    options, alone = context.options, Alone(task)
    size, some = options.members, options.alone
    population.run(RandomSearcher(population.space), trials=population.size, steps=1)

    def together() -> list[Trial]:
        search = RandomSearcher(population.space, seed=1)
        return population.run(search, trials=size, steps=task.steps).trials

    took, trials = clocked(together)
    seconds = {"one population": took / size}
    differences = []
    for name, trained in (("compiled step", alone.by_steps), ("compiled training", alone.whole)):
        trained(trials[0].config, 0)
        took, values = clocked(
            lambda trained=trained: [trained(trial.config, trial.number) for trial in trials[:some]]
        )
        seconds[f"Python loop, {name}"] = took / some
        told = np.array([np.nan if t.value is None else t.value for t in trials[:some]])
        differences.append(np.nanmax(np.abs(np.array(values) / told - 1.0)))
    seconds["a process each"] = float(
        np.mean([in_process(task.steps) for _ in range(options.processes)])
    )
    base = seconds["one population"]
    context.table(
        "trials per processor second",
        [
            {
                "way": name,
                "trials per second": 1.0 / each,
                "times the population's cost": each / base,
            }
            for name, each in seconds.items()
        ],
    )
    context.measure("steps", seconds["Python loop, compiled step"] / base)
    context.measure("training", seconds["Python loop, compiled training"] / base)
    context.measure("processes", seconds["a process each"] / base)
    context.measure("alone", float(max(differences)))
    if options.cores:
        compare_on_cores(context, task.steps, seconds["a process each"])
    (program,) = population.programs().values()
    allotted = program.compiled.memory_analysis()
    taken = (
        allotted.temp_size_in_bytes
        + allotted.argument_size_in_bytes
        + allotted.output_size_in_bytes
        - allotted.alias_size_in_bytes
        + tree_size([*task.train, *task.validation])
    )
    context.measure("memory", taken / population.predicted_bytes)


def compare_widths(context: Context) -> None:
    """A loop over a compiled training against a population, by the width of the network."""
    rows = []
    for power in range(context.options.widths):
        task = Task(SHORT, context.options.seed, NARROWEST * 2**power)
        alone, population = Alone(task), task.population(LANES)
        config = population.space.default()

        def together(population: Population = population, steps: int = SHORT) -> Any:
            search = RandomSearcher(population.space, seed=1)
            return population.run(search, trials=LANES, steps=steps)

        def one_by_one(alone: Alone = alone, config: dict = config) -> Any:
            return [alone.whole(config, number) for number in range(SOME)]

        together(steps=1)
        alone.whole(config, 0)
        shared, single = clocked(together)[0] / LANES, clocked(one_by_one)[0] / SOME
        rows.append(
            {
                "hidden units": task.hidden,
                "microseconds of a step in a population": 1e6 * shared / SHORT,
                "in a loop over a compiled training": 1e6 * single / SHORT,
                "times the population's cost": single / shared,
            }
        )
    if rows:
        context.table("by width", rows)
        context.measure("narrow", rows[0]["times the population's cost"])


# -- schedules -------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def replay(task: Task, rates: Array, decays: Array, numbers: Array) -> tuple[Array, Array]:
    """Validation loss and test accuracy of a schedule, shape `(steps,)`, for several seeds."""

    def one(number: Array) -> tuple[Array, Array]:
        member = jax.random.fold_in(jax.random.key(1), number)
        state = task.init(jax.random.fold_in(member, 0), {})

        def move(state: State, now: tuple[Array, Array, Array]) -> tuple[State, None]:
            age, rate, decay = now
            config = {"rate": rate, "decay": decay, "cosine": 0.0}
            draw, key = jax.random.split(jax.random.fold_in(member, age + 1))
            return task.step(state, config, task.batch(draw, config), key)[0], None

        state, _ = jax.lax.scan(move, state, (jnp.arange(task.steps), rates, decays))
        hits = jnp.argmax(scores(state.weights, task.test[0]), axis=1) == task.test[1]
        return task.evaluate(state, {}), jnp.mean(hits)

    return jax.vmap(one)(numbers)


def schedules(context: Context, task: Task, population: Population, rounds: int) -> None:
    """What each search found, and how it does on other seeds."""
    interval, size = task.steps // rounds, population.size
    searcher = RandomSearcher(population.space, seed=2)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, explore in (
        ("PBT", Perturb()),
        ("PB2", PB2()),
        ("PBT along the hypergradient", FollowGradient(horizon=context.options.horizon)),
    ):
        evolved = population.run(PBT(searcher, task.steps, interval, explore=explore))
        final = min(
            (o for o in evolved.history if o.resource == task.steps and o.value is not None),
            key=lambda o: o.value or 0.0,
        )
        lineage = ancestry(evolved.history, final, size)
        found[name] = tuple(
            np.repeat([o.config[path] for o in lineage], interval) for path in ("rate", "decay")
        )  # type: ignore[assignment]
    wave = 0.5 * (1.0 + np.cos(np.pi * np.arange(task.steps) / task.steps))
    for name, cosine in (("best constant", 0.0), ("best cosine", 1.0)):
        searched = population if cosine == 0.0 else task.population(size, cosine)
        search = RandomSearcher(searched.space, seed=2)
        best = searched.run(search, trials=size, steps=task.steps).best_config
        assert best is not None
        rates = best["rate"] * (1.0 + cosine * (wave - 1.0))
        found[name] = rates, np.full(task.steps, best["decay"])
    numbers = jnp.arange(context.options.repeats)
    rows, median = [], {}
    for name, (rates, decays) in found.items():
        values, accuracies = replay(task, jnp.asarray(rates), jnp.asarray(decays), numbers)
        median[name] = float(np.median(values))
        rows.append(
            {
                "schedule": name,
                "validation loss, median": median[name],
                "from": float(np.min(values)),
                "to": float(np.max(values)),
                "test accuracy, median": float(np.median(accuracies)),
            }
        )
    context.table("schedules on other seeds", rows)
    x = np.arange(task.steps)
    context.plot(
        "schedule",
        {name: Curve(x, rates) for name, (rates, _) in found.items()},
        x="step",
        y="learning rate",
        y_scale="log",
    )
    best_pbt = min(median[name] for name in list(median)[:3])
    context.measure("constant", best_pbt / median["best constant"])
    context.measure("cosine", best_pbt / median["best cosine"])
    context.measure("meta", median["PBT along the hypergradient"] / median["PBT"])


def ancestry(history: list[Observation], last: Observation, size: int) -> list[Observation]:
    """The observations that lead to one, from the first round on."""
    known = {o.number: o for o in history}
    found = [last]
    while (parent := found[0].note["parent"]) >= 0:
        found.insert(0, known[(found[0].note["round"] - 1) * size + parent])
    return found


@experiment(
    paper="Jaderberg et al. 2017, arXiv:1711.09846; Parker-Holder et al. 2020, arXiv:2002.02518",
    options=[
        Option("members", 256, quick=64, help="configurations in one program"),
        Option("alone", 32, quick=8, help="of them, those that are trained alone too"),
        Option("processes", 3, quick=1, help="processes that train one configuration each"),
        Option("cores", False, help="compare wall time on two cores, too"),
        Option("ray", 16, help="trials of Ray Tune to compare with"),
        Option("widths", 6, quick=1, help=f"of networks: {NARROWEST} units, and so often doubled"),
        Option("steps", 1000, quick=300, help="of a training"),
        Option("rounds", 40, quick=20, help="of exploiting and exploring"),
        Option("horizon", 10, help="steps that the hypergradient looks ahead"),
        Option("repeats", 32, quick=16, help="seeds on which schedules are replayed"),
    ],
    claims=[
        Claim("steps", "cost of a Python loop over a compiled step, in populations", at_least=3.0),
        Claim(
            "training",
            "cost of a loop over a compiled training, in populations",
            at_least=3.0,
            quick=0.7,
        ),
        Claim(
            "narrow",
            f"the same for a network of {NARROWEST} hidden units",
            at_least=3.0,
            quick=0.7,
            when=lambda options: options.widths > 0,
        ),
        Claim("processes", "cost of a process for each trial, in populations", at_least=15.0),
        Claim(
            "training on cores",
            "time of a loop over a compiled training on two cores, in populations",
            at_least=3.0,
            when=lambda options: options.cores,
        ),
        Claim(
            "pool on cores",
            "time of a pool of two processes, in populations",
            at_least=1.0,
            when=lambda options: options.cores,
        ),
        Claim(
            "processes on cores",
            "time of a process for each trial on two cores, in populations",
            at_least=15.0,
            when=lambda options: options.cores,
        ),
        Claim(
            "Ray on cores",
            "time of Ray Tune with processes that are used again, in populations",
            at_least=15.0,
            when=lambda options: options.cores and options.ray > 0,
        ),
        Claim("compilations", "programs traced for all configurations and two seeds", at_most=1.0),
        Claim("alone", "largest relative difference from trainings alone (float32)", at_most=1e-4),
        Claim("memory", "memory that the compiler allots, over the predicted", at_most=1.2),
        Claim("constant", "loss of the best PBT schedule over the best constant's", at_most=1.0),
        Claim(
            "cosine", "loss of the best PBT schedule over the best cosine's", at_most=1.1, quick=1.2
        ),
        Claim(
            "meta", "loss along the hypergradient over that of perturbation", at_most=1.1, quick=1.2
        ),
    ],
)
def run(context: Context) -> None:
    """Compare the ways to run trials, then the schedules."""
    options = context.options
    task = Task(options.steps, options.seed)
    population = task.population(options.members)
    compare(context, task, population)
    population.with_seed(1).run(RandomSearcher(population.space), trials=population.size, steps=2)
    context.measure("compilations", float(population.traces))
    compare_widths(context)
    schedules(context, task, population, options.rounds)


if __name__ == "__main__":
    raise SystemExit(run.main())
