"""HOAG: inexact hypergradients against exact ones, and against grid, random and Bayesian search.

Three problems on real data: multinomial logistic regression on digits with one penalty and with one
for each of the 64 pixels, and kernel ridge regression on diabetes with its penalty and its kernel
width. HOAG solves early steps roughly and later ones better. "adaptive" is ours, with quasi-Newton
steps where there are 64 penalties; "exact" is the same algorithm with a tolerance of 1e-10
throughout; "cubic" and "exponential" are as published. The searches train from scratch at each
point and see values only.

The curves show how far the best validation loss so far is from the best that any method found,
against wall-clock time, compilation left out. A "full training" is one training from scratch to
1e-8, as the searches do it, with the best hyperparameters found: strong penalties are much cheaper
to train with, so that the mean over a grid says little.

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
    """A problem, its data and start, and how many numbers a search has to choose."""

    problem: BilevelProblem
    train: dict
    validation: dict
    params: jax.Array
    hparams: jax.Array
    spread: Callable[[np.ndarray], jax.Array]
    searched: int
    linear_solver: LinearSolver = CG()
    metric: QuasiNewton | None = None


def logistic(seed: int, many: bool) -> Task:
    """Digits, ten classes; the searches share one penalty even where the gradient has 64."""
    data = tabular("digits", seed=seed, fractions=(0.5, 0.25))
    mean, spread = data.train.x.mean(0), data.train.x.std(0)
    spread[spread == 0] = 1

    def part(x: np.ndarray, y: np.ndarray) -> dict:
        return {"x": jnp.asarray((x - mean) / spread), "y": jnp.asarray(y)}

    def loss(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        scores = jax.nn.log_softmax(batch["x"] @ w)
        return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], axis=1))

    def inner(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        penalty = 0.5 * jnp.sum(jnp.exp(hparams) * jnp.sum(w**2, axis=1))
        return loss(w, hparams, batch) + penalty

    start = jnp.zeros(64) if many else jnp.zeros(())
    return Task(
        BilevelProblem(inner, loss),
        part(*data.train),
        part(*data.validation),
        jnp.zeros((64, 10)),
        start,
        lambda point: jnp.full(start.shape, point[0]),
        1,
        # Penalties of pixels come to differ by orders of magnitude, and so does what they do.
        linear_solver=PCG(Jacobi(4)) if many else CG(),
        metric=QuasiNewton() if many else None,
    )


def kernel_ridge(seed: int) -> Task:
    """Diabetes; log-penalty and log-width of a Gaussian kernel, in the dual."""
    data = tabular("diabetes", seed=seed, fractions=(0.4, 0.2))
    mean, spread = data.train.x.mean(0), data.train.x.std(0)
    centre, unit = data.train.y.mean(), data.train.y.std()

    support = (data.train.x - mean) / spread

    def part(x: np.ndarray, y: np.ndarray) -> dict:
        # What the hyperparameters do not change is computed once: the distances to the support.
        apart = ((x - mean) / spread)[:, None] - support[None]
        squares = np.mean(apart**2, axis=2)
        return {"squares": jnp.asarray(squares), "y": jnp.asarray((y - centre) / unit)}

    train, validation = part(*data.train), part(*data.validation)

    def predict(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        return jnp.exp(-jnp.exp(-hparams[1]) * batch["squares"]) @ w

    def inner(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        smooth = 0.5 * w @ predict(w, hparams, batch) + 0.5 * jnp.exp(hparams[0]) * w @ w
        return (smooth - batch["y"] @ w) / len(w)

    def outer(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
        return 0.5 * jnp.mean((predict(w, hparams, batch) - batch["y"]) ** 2)

    problem = BilevelProblem(inner, outer)
    params = jnp.zeros(len(train["y"]))
    start = jnp.asarray([2.0, 0.0])
    return Task(problem, train, validation, params, start, jnp.asarray, 2)


TASKS: dict[str, Callable[[int], Task]] = {
    "one": lambda seed: logistic(seed, many=False),
    "many": lambda seed: logistic(seed, many=True),
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


def compiled(parts: tuple, data: tuple, steps: int) -> Callable[[], Any]:
    """A run of so many steps as one compiled program.

    The algorithm's functions are called directly: the driver's looks cost more than a small
    training.
    """
    problem, algorithm, params, hparams = parts

    @jax.jit
    def loop(params: jax.Array, hparams: jax.Array) -> jax.Array:
        batches = Batches(*data)
        state = algorithm.init(problem, params, hparams, batches)
        step = lambda state, _: (algorithm.step(problem, state, batches)[0], None)  # noqa: E731
        return jax.lax.scan(step, state, None, length=steps)[0].visited

    return lambda: loop(params, hparams)


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int = 15) -> dict[str, np.ndarray]:
    """Seconds of each, in rounds that take turns: all see the machine at the same speeds."""
    for function in functions.values():
        jax.block_until_ready(function())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(spent) for name, spent in seconds.items()}


@experiment(
    paper="Pedregosa 2016, arXiv:1602.02355",
    x64=True,
    options=[
        Option("tasks", "one,many,kernel", quick="one", help="comma-separated"),
        Option("steps", 60, quick=25, help="outer steps of HOAG"),
        Option("trials", 20, help="trainings of each search"),
        Option("schedules", "adaptive,exponential,cubic,exact", quick="adaptive,exact"),
    ],
    claims=[
        Claim(
            "trainings",
            "time until within 1e-3 of the best validation loss, in full trainings, worst problem",
            at_most=5.0,
            # Times in turns bear a busy machine, but not to a few per cent.
            quick=8.0,
        ),
        Claim(
            "grid",
            "time until within 1e-3 of the best that the searches find, relative to a 20-point "
            "grid, worst problem",
            at_most=1 / 3,
            quick=0.5,
        ),
        Claim(
            "exact",
            "time until within 1e-3 of the best, relative to exact hypergradients, worst problem",
            at_most=1.0,
        ),
        Claim(
            "level",
            "adaptive HOAG: validation loss above the best that any method found, worst problem",
            at_most=1e-3,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Race the methods on each problem."""
    options = context.options
    names, schedules = options.tasks.split(","), options.schedules.split(",")
    rows, trainings, of_grid, of_exact, above = [], [], [], [], []
    with context.progress("methods", len(names) * (len(SEARCHES) + len(schedules))) as bar:
        for name in names:
            task = TASKS[name](options.seed)
            solver = Newton(tol=1e-8, linear_solver=task.linear_solver)
            curves: dict[str, tuple[list[float], list[float]]] = {}

            @jax.jit
            def training(hparams: jax.Array, task: Task = task, solver: Newton = solver) -> Any:
                w = solver.run(task.problem, task.params, hparams, task.train).params
                return task.problem.outer(w, hparams, task.validation)

            training(task.hparams)
            on_grid: list[np.ndarray] = []
            for label, search in SEARCHES.items():
                times, values, points = [], [], []

                def score(
                    point: np.ndarray,
                    task: Task = task,
                    training: Callable = training,
                    times: list[float] = times,
                    values: list[float] = values,
                    points: list[np.ndarray] = points,
                ) -> float:
                    started = time.perf_counter()
                    value = float(training(task.spread(point)))
                    times.append(time.perf_counter() - started)
                    values.append(value)
                    points.append(point)
                    return value

                search(score, task.searched, options.trials, options.seed)
                curves[label] = (list(np.cumsum(times)), list(np.minimum.accumulate(values)))
                on_grid = points if label == "grid" else on_grid
                bar.advance(incumbent=min(values))
            searched = min(min(values) for _, values in curves.values())

            algorithms = {}
            for schedule in schedules:
                tolerance = (lambda k: 1e-10) if schedule == "exact" else schedule
                estimator = ImplicitDifferentiation(
                    Newton(linear_solver=task.linear_solver),
                    task.linear_solver,
                    error_estimate=False,
                )
                published = schedule in ("cubic", "exponential")
                metric = None if published else task.metric
                algorithm = HOAG(estimator, tolerance, metric=metric, constraint=Box(LOW, HIGH))
                parts = (task.problem, algorithm, task.params, task.hparams)
                data = (task.train, task.validation)
                run(*parts, *data, steps=1)
                visited: list[jax.Array] = []
                keep = lambda report, to=visited: to.append(report.state.visited)  # noqa: E731
                result = run(*parts, *data, steps=options.steps, callbacks=[keep])
                label = schedule if schedule == "exact" else f"HOAG, {schedule}"
                # What training there gives, whatever HOAG knew of it: a rough solution may have
                # the lower loss.
                values = np.minimum.accumulate([float(training(point)) for point in visited])
                curves[label] = ([row["seconds"] for row in result.history], list(values))
                algorithms[schedule] = (parts, data, values, result.hparams)
                bar.advance(incumbent=values[-1])

            best = min(min(values) for _, values in curves.values())
            context.plot(
                f"{name}_suboptimality",
                {
                    label: Curve(times, np.maximum(np.array(values) - best, 1e-6))
                    for label, (times, values) in curves.items()
                },
                x="seconds",
                y="validation loss above the best found",
                x_scale="log",
                y_scale="log",
                title=name,
            )
            final = min(algorithms.values(), key=lambda found: found[2][-1])[3]
            runs: dict[str, Callable[[], Any]] = {
                "training": lambda training=training, final=final: training(final),
                "grid": lambda training=training, spread=task.spread, points=on_grid: [
                    training(spread(point)) for point in points
                ],
            }
            needed = {}
            for schedule, (parts, data, values, _) in algorithms.items():
                if (values <= best + WITHIN).any():
                    needed[schedule] = int(np.argmax(values <= best + WITHIN)) + 1
                    runs[schedule] = compiled(parts, data, needed[schedule])
            parts, data, values, _ = algorithms["adaptive"]
            if (values <= searched + WITHIN).any():
                level = int(np.argmax(values <= searched + WITHIN)) + 1
                runs["level"] = compiled(parts, data, level)
            seconds = in_turns(runs)

            def relative(run: str, to: str, seconds: dict = seconds) -> float:
                """Median of the ratios; infinite for what never arrives."""
                return float(np.median(seconds[run] / seconds[to])) if run in seconds else np.inf

            for label, (_, values) in curves.items():
                schedule = label.removeprefix("HOAG, ")
                raced = schedule in algorithms
                rows.append(
                    {
                        "problem": name,
                        "method": label,
                        "best validation loss": values[-1],
                        "above the best": values[-1] - best,
                        "steps until 1e-3": needed.get(schedule, np.nan),
                        "in full trainings": relative(schedule, "training") if raced else np.nan,
                        "relative to the grid": relative(schedule, "grid") if raced else np.nan,
                    }
                )
            trainings.append(relative("adaptive", "training"))
            of_grid.append(relative("level", "grid"))
            of_exact.append(relative("adaptive", "exact") if "exact" in needed else 0.0)
            above.append(float(algorithms["adaptive"][2][-1] - best))
    context.table("validation loss, and time in full trainings", rows)
    context.measure("trainings", max(trainings))
    context.measure("grid", max(of_grid))
    context.measure("exact", max(of_exact))
    context.measure("level", max(above))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
