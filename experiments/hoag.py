"""HOAG: inexact hypergradients against exact ones, and against grid, random and Bayesian search.

Three problems on real data: multinomial logistic regression on digits with one penalty and with one
for each of the 64 pixels, and kernel ridge regression on diabetes with its penalty and its kernel
width. HOAG solves early steps roughly and later ones better. "adaptive" is ours, with quasi-Newton
steps where there are 64 penalties; "exact" is the same algorithm with a tolerance of 1e-10
throughout; "cubic" and "exponential" are as published. The searches train from scratch at each
point and see values only.

Five splits of the data into training and validation; what is claimed are medians over them. The
curves show, for the first split, how far the best validation loss so far is from the best that any
method found, against time, compilation left out. A "full training" is one training from scratch to
1e-8, as the searches do it, with the best hyperparameters found: strong penalties are much cheaper
to train with, so that the mean over a grid says little. Times are processor seconds, taken in
turns.

A search over 64 penalties is out of reach of grids: there the searches share one penalty, and end
far above what hypergradients reach. So what is compared with the time of the whole grid is the time
until HOAG is level with the searches, not until it has found what no grid has.

The loss of a method is that of a training to 1e-8 at the hyperparameters it has come to, off the
clock: its own rough solution may have a lower one by accident.

Pedregosa, "Hyperparameter optimization with approximate gradient" (2016), figures 1 and 2.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optuna

from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, Newton
from hypergrad.linear import PCG, Jacobi, LinearSolver
from hypergrad.outer import HOAG, Batches, Box, QuasiNewton, run

LOW, HIGH = -9.0, 3.0
WITHIN = 1e-3


class Task(NamedTuple):
    """A problem, its data by seed, its start, and how many numbers a search has to choose."""

    problem: BilevelProblem
    split: Callable[[int], tuple[dict, dict]]
    params: jax.Array
    hparams: jax.Array
    spread: Callable[[np.ndarray], jax.Array]
    searched: int
    linear_solver: LinearSolver = CG()
    metric: QuasiNewton | None = None


def logistic(many: bool) -> Task:
    """Digits, ten classes; the searches share one penalty even where the gradient has 64."""

    def split(seed: int) -> tuple[dict, dict]:
        data = tabular("digits", seed=seed, fractions=(0.5, 0.25))
        mean, spread = data.train.x.mean(0), data.train.x.std(0)
        spread[spread == 0] = 1

        def part(x: np.ndarray, y: np.ndarray) -> dict:
            return {"x": jnp.asarray((x - mean) / spread), "y": jnp.asarray(y)}

        return part(*data.train), part(*data.validation)

    def loss(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        scores = jax.nn.log_softmax(batch["x"] @ w)
        return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], axis=1))

    def inner(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        penalty = 0.5 * jnp.sum(jnp.exp(hparams) * jnp.sum(w**2, axis=1))
        return loss(w, hparams, batch) + penalty

    start = jnp.zeros(64) if many else jnp.zeros(())
    return Task(
        BilevelProblem(inner, loss),
        split,
        jnp.zeros((64, 10)),
        start,
        lambda point: jnp.full(start.shape, point[0]),
        1,
        # Penalties of pixels come to differ by orders of magnitude, and so does what they do.
        linear_solver=PCG(Jacobi(4)) if many else CG(),
        metric=QuasiNewton() if many else None,
    )


def kernel_ridge() -> Task:
    """Diabetes; log-penalty and log-width of a Gaussian kernel, in the dual."""

    def split(seed: int) -> tuple[dict, dict]:
        data = tabular("diabetes", seed=seed, fractions=(0.4, 0.2))
        mean, spread = data.train.x.mean(0), data.train.x.std(0)
        centre, unit = data.train.y.mean(), data.train.y.std()
        support = (data.train.x - mean) / spread

        def part(x: np.ndarray, y: np.ndarray) -> dict:
            # What the hyperparameters do not change is computed once: the distances to the support.
            apart = ((x - mean) / spread)[:, None] - support[None]
            squares = np.mean(apart**2, axis=2)
            return {"squares": jnp.asarray(squares), "y": jnp.asarray((y - centre) / unit)}

        return part(*data.train), part(*data.validation)

    def predict(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        return jnp.exp(-jnp.exp(-hparams[1]) * batch["squares"]) @ w

    def inner(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        smooth = 0.5 * w @ predict(w, hparams, batch) + 0.5 * jnp.exp(hparams[0]) * w @ w
        return (smooth - batch["y"] @ w) / len(w)

    def outer(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        return 0.5 * jnp.mean((predict(w, hparams, batch) - batch["y"]) ** 2)

    problem = BilevelProblem(inner, outer)
    params = jnp.zeros(len(split(0)[0]["y"]))
    start = jnp.asarray([2.0, 0.0])
    return Task(problem, split, params, start, jnp.asarray, 2)


TASKS: dict[str, Callable[[], Task]] = {
    "one": lambda: logistic(many=False),
    "many": lambda: logistic(many=True),
    "kernel": kernel_ridge,
}


# -- the searches ----------------------------------------------------------------------------

Search = Callable[[Callable[[np.ndarray], float], int, int, int], None]


def grid(score: Callable, dimensions: int, trials: int, seed: int) -> None:
    """Equal spacing in each dimension, the finest that the number of trials allows."""
    sides = [trials] if dimensions == 1 else [5, trials // 5]
    axes = [np.linspace(LOW, HIGH, side) for side in sides]
    for point in np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, dimensions):
        score(point)


def random(score: Callable, dimensions: int, trials: int, seed: int) -> None:
    """Uniform draws."""
    for point in np.random.default_rng(seed).uniform(LOW, HIGH, (trials, dimensions)):
        score(point)


def bayes(score: Callable, dimensions: int, trials: int, seed: int) -> None:
    """The tree-structured Parzen estimator of Optuna, with its defaults."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    names = [f"log_penalty{i}" for i in range(dimensions)]
    study.optimize(
        lambda trial: score(np.array([trial.suggest_float(name, LOW, HIGH) for name in names])),
        trials,
    )


SEARCHES: dict[str, Search] = {"grid": grid, "random": random, "TPE": bayes}


# -- the experiment --------------------------------------------------------------------------


class Found(NamedTuple):
    """What a method found on a split: at which times which best losses so far, and where it ended.

    - `seconds`, `values`: one each for every evaluation.
    - `hparams`: the last ones.
    """

    seconds: np.ndarray
    values: np.ndarray
    hparams: jax.Array

    def steps(self, target: float) -> int | None:
        """Evaluations until the loss was at or below that."""
        inside = np.flatnonzero(self.values <= target)
        return int(inside[0]) + 1 if inside.size else None


class Race:
    """The methods on one problem, each compiled once for all splits.

    **Arguments:**

    - `task`: the problem.
    - `schedules`: of HOAG.
    """

    def __init__(self, task: Task, schedules: list[str]) -> None:
        self.task = task
        solver = Newton(tol=1e-8, linear_solver=task.linear_solver)

        @jax.jit
        def training(hparams: jax.Array, train: dict, validation: dict) -> jax.Array:
            w = solver.run(task.problem, task.params, hparams, train).params
            return task.problem.outer(w, hparams, validation)

        self.training = training
        self.algorithms = {schedule: self._algorithm(schedule) for schedule in schedules}
        self.loops = {name: self._loop(algorithm) for name, algorithm in self.algorithms.items()}

    def _algorithm(self, schedule: str) -> HOAG:
        estimator = ImplicitDifferentiation(
            Newton(linear_solver=self.task.linear_solver),
            self.task.linear_solver,
            error_estimate=False,
        )
        metric = None if schedule in ("cubic", "exponential") else self.task.metric
        tolerance = (lambda k: 1e-10) if schedule == "exact" else schedule
        return HOAG(estimator, tolerance, metric=metric, constraint=Box(LOW, HIGH))

    def _loop(self, algorithm: HOAG) -> Callable:
        """So many steps as one compiled program: the driver's looks cost more than a training."""
        task = self.task

        @jax.jit
        def loop(train: dict, validation: dict, steps: int) -> jax.Array:
            batches = Batches(train, validation)
            state = algorithm.init(task.problem, task.params, task.hparams, batches)
            step = lambda _, state: algorithm.step(task.problem, state, batches)[0]  # noqa: E731
            return jax.lax.fori_loop(0, steps, step, state).visited

        return loop

    def searched(self, name: str, data: tuple, trials: int, seed: int) -> tuple[Found, list]:
        """A search, and the points that it tried."""
        seconds, values, points = [], [], []

        def score(point: np.ndarray) -> float:
            started = time.process_time()
            value = float(self.training(self.task.spread(point), *data))
            seconds.append(time.process_time() - started)
            values.append(value)
            points.append(point)
            return value

        SEARCHES[name](score, self.task.searched, trials, seed)
        best = np.minimum.accumulate(values)
        return Found(np.cumsum(seconds), best, self.task.spread(points[-1])), points

    def descended(self, schedule: str, data: tuple, steps: int) -> Found:
        """A run of HOAG; its losses are those of trainings at the points visited."""
        task, visited = self.task, []
        parts = (task.problem, self.algorithms[schedule], task.params, task.hparams)
        keep = lambda report: visited.append(report.state.visited)  # noqa: E731
        result = run(*parts, *data, steps=steps, callbacks=[keep])
        values = [float(self.training(point, *data)) for point in visited]
        seconds = np.array([row["seconds"] for row in result.history])
        return Found(seconds, np.minimum.accumulate(values), result.hparams)

    def seconds(
        self, data: tuple, steps: dict[str, tuple[str, int]], points: list, final: jax.Array
    ) -> dict[str, np.ndarray]:
        """Times, in rounds that take turns.

        **Arguments:**

        - `steps`: what to time, a schedule and a number of steps each.
        - `points`: of the grid.
        - `final`: where to time a full training.
        """
        runs: dict[str, Callable[[], Any]] = {
            "training": lambda: self.training(final, *data),
            "grid": lambda: [self.training(self.task.spread(point), *data) for point in points],
        }
        for name, (schedule, count) in steps.items():
            runs[name] = lambda loop=self.loops[schedule], count=count: loop(*data, count)
        return in_turns(runs)


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int = 7) -> dict[str, np.ndarray]:
    """Seconds of each, in rounds that take turns: all see the machine at the same speeds.

    Of the processor, so that other programs on the machine do not count.
    """
    for function in functions.values():
        jax.block_until_ready(function())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.process_time()
            jax.block_until_ready(function())
            seconds[name].append(time.process_time() - started)
    return {name: np.array(spent) for name, spent in seconds.items()}


@experiment(
    paper="Pedregosa 2016, arXiv:1602.02355",
    x64=True,
    options=[
        Option("tasks", "one,many,kernel", quick="one", help="comma-separated"),
        Option("splits", 5, quick=1, help="of the data, each with a seed of its own"),
        Option("steps", 60, quick=25, help="outer steps of HOAG"),
        Option("trials", 20, help="trainings of each search"),
        Option("schedules", "adaptive,exponential,cubic,exact", quick="adaptive,exact"),
    ],
    claims=[
        Claim(
            "trainings",
            "time until within 1e-3 of the best validation loss, in full trainings, median over "
            "the splits, worst problem",
            at_most=5.0,
            # Times in turns bear a busy machine, but not to a few per cent.
            quick=8.0,
        ),
        Claim(
            "grid",
            "time until within 1e-3 of the best that the searches find, relative to a 20-point "
            "grid, median over the splits, worst problem",
            at_most=1 / 3,
            quick=0.5,
        ),
        Claim(
            "exact",
            "time until within 1e-3 of the best, relative to exact hypergradients, median over the "
            "splits, worst problem",
            at_most=1.0,
        ),
        Claim(
            "level",
            "adaptive HOAG: validation loss above the best that any method found, worst problem "
            "and split",
            at_most=1e-3,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Race the methods on each problem and split."""
    options = context.options
    names, schedules = options.tasks.split(","), options.schedules.split(",")
    seeds = range(options.seed, options.seed + options.splits)
    rows, by_split, above = [], [], []
    claimed: dict[str, list[float]] = {"trainings": [], "grid": [], "exact": []}
    total = len(names) * len(seeds) * (len(SEARCHES) + len(schedules))
    with context.progress("methods", total) as bar:
        for name in names:
            race = Race(TASKS[name](), schedules)
            ratios: dict[tuple[str, str], list[float]] = {}
            ends: dict[str, list[float]] = {}
            for seed in seeds:
                data = race.task.split(seed)
                found: dict[str, Found] = {}
                for label in SEARCHES:
                    found[label], points = race.searched(label, data, options.trials, seed)
                    if label == "grid":
                        on_grid = points
                    bar.advance(incumbent=found[label].values[-1])
                searched = min(each.values[-1] for each in found.values())
                for schedule in schedules:
                    found[schedule] = race.descended(schedule, data, options.steps)
                    bar.advance(incumbent=found[schedule].values[-1])
                best = min(each.values[-1] for each in found.values())
                final = min((found[each] for each in schedules), key=lambda f: f.values[-1])

                reached = {each: found[each].steps(best + WITHIN) for each in schedules}
                timed = {each: (each, count) for each, count in reached.items() if count}
                if level := found["adaptive"].steps(searched + WITHIN):
                    timed["level"] = ("adaptive", level)
                seconds = race.seconds(data, timed, on_grid, final.hparams)

                def relative(run: str, to: str, seconds: dict = seconds) -> float:
                    """Median of the ratios; infinite for what never arrives."""
                    return (
                        float(np.median(seconds[run] / seconds[to])) if run in seconds else np.inf
                    )

                for each in (*schedules, "level"):
                    for to in ("training", "grid", "exact"):
                        value = relative(each, to) if to in seconds else 0.0
                        ratios.setdefault((each, to), []).append(value)
                for label, each in found.items():
                    ends.setdefault(label, []).append(float(each.values[-1] - best))
                by_split.append(
                    {
                        "problem": name,
                        "seed": seed,
                        "steps": reached["adaptive"] or np.nan,
                        "in full trainings": ratios["adaptive", "training"][-1],
                        "best validation loss": best,
                    }
                )
                if seed == seeds[0]:
                    context.plot(
                        f"{name}_suboptimality",
                        {
                            _label(label): Curve(
                                list(each.seconds), np.maximum(each.values - best, 1e-6)
                            )
                            for label, each in found.items()
                        },
                        x="seconds",
                        y="validation loss above the best found",
                        x_scale="log",
                        y_scale="log",
                        title=name,
                    )
            medians = {key: float(np.median(values)) for key, values in ratios.items()}
            rows += [
                {
                    "problem": name,
                    "method": _label(label),
                    "above the best": float(np.median(values)),
                    "in full trainings": medians.get((label, "training"), np.nan),
                    "relative to the grid": medians.get((label, "grid"), np.nan),
                }
                for label, values in ends.items()
            ]
            claimed["trainings"].append(medians["adaptive", "training"])
            claimed["grid"].append(medians["level", "grid"])
            claimed["exact"].append(medians["adaptive", "exact"])
            above.append(max(ends["adaptive"]))
    context.table("validation loss, and time in full trainings, medians over the splits", rows)
    context.table("adaptive HOAG by split", by_split)
    for key, values in claimed.items():
        context.measure(key, max(values))
    context.measure("level", max(above))


def _label(method: str) -> str:
    """As in tables and plots."""
    return method if method in (*SEARCHES, "exact") else f"HOAG, {method}"


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
