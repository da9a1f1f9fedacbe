"""A small image classifier tuned while it is trained, against searches that train it many times.

Nine hyperparameters are tuned: dropout after each of two layers, weight decay, label smoothing,
input noise, and the strengths of the augmentation: shift, brightness, side and number of the
squares that are cut out (whole numbers). STN and Delta-STN move them during one training; random
search, tree-structured Parzen estimators and Hyperband train anew for each choice, with the same
optimizer, batches and number of steps, and each with the budget of all random trainings together.

The images are halved to 14 x 14 pixels. Nothing is known in advance: tuning starts in the middle of
each domain. The horizontal axis is time in units of one plain training, measured on the machine
that the experiment runs on (compilation left out, for all alike); the table has the training steps
as well. Every method is judged by the lowest validation loss after any round of any of its
trainings, and by the test accuracy of the weights that had it.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
from jaxtyping import Array, PyTree, Scalar

from experiments.data import fashion_mnist, tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Bounded,
    Discrete,
    Hyperparameters,
    Perturbation,
    Positive,
    Schedule,
    SelfTuning,
    SelfTuningModel,
    Tuner,
    squared_norm,
    to_self_tuning,
)
from hypergrad.self_tuning import regularisers as reg
from strategies import Float, Int, RandomSearcher, SearchSpace
from strategies.local import minimize
from strategies.schedulers.hyperband import Hyperband
from strategies.schedulers.local import run as run_jobs

BATCH = 64
MOST_HOLES = 2
OPTIMIZER = optax.adam(5e-3)
Values = dict[str, Any]
Report = Callable[[float], None]


class Task(NamedTuple):
    """Training, validation and test data: images `(n, 1, side, side)` and labels."""

    train: tuple[Array, Array]
    valid: tuple[Array, Array]
    test: tuple[Array, Array]

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.train[0].shape[-1]


def load(name: str, examples: int, seed: int) -> Task:
    """Images with pixels in [0, 1]; the training set has `examples` of them."""
    if name == "digits":
        arrays = [
            (part.x.reshape(-1, 1, 8, 8) / 16, part.y) for part in tabular("digits", seed=seed)
        ]
    else:
        train, test = fashion_mnist()
        order = np.random.default_rng(seed).permutation(len(train.y))[:12_000]
        images, labels = halved(train.x[order]), train.y[order]
        arrays = [
            (images[:10_000], labels[:10_000]),
            (images[10_000:], labels[10_000:]),
            (halved(test.x), test.y),
        ]
    arrays[0] = tuple(a[:examples] for a in arrays[0])
    return Task(*((jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)) for x, y in arrays))


def halved(images: np.ndarray) -> np.ndarray:
    """Images of 28 x 28 as means over 2 x 2 pixels, in [0, 1]: a quarter of the work."""
    return images.reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)) / 255


class Network(eqx.Module):
    """Two convolutions of stride 2 and two dense layers, or (`"mlp"`) three dense layers."""

    layers: list[Any]

    def __init__(self, kind: str, side: int, key: Array):
        a, b, c, d = jax.random.split(key, 4)
        if kind == "cnn":
            self.layers = [
                eqx.nn.Conv2d(1, 8, 5, stride=2, padding=2, key=a),
                eqx.nn.Conv2d(8, 16, 3, stride=2, padding=1, key=b),
                eqx.nn.Linear(16 * (-(-side // 4)) ** 2, 64, key=c),
                eqx.nn.Linear(64, 10, key=d),
            ]
        else:
            sizes = (side * side, 64, 64, 10)
            pairs = zip(sizes, sizes[1:], (a, b, c), strict=False)
            self.layers = [eqx.nn.Linear(m, n, key=k) for m, n, k in pairs]

    def __call__(self, x: Array, rates: Array | None = None, key: Array | None = None) -> Array:
        """Scores of one image; with `key`, dropout before each of the last two layers."""
        *features, first, last = self.layers
        for layer in features:
            x = jax.nn.relu(layer(x if layer.weight.ndim == 4 else x.ravel()))
        x = x.ravel()
        keys = (None, None) if key is None else jax.random.split(key)
        x = x if key is None else reg.dropout(x, rates[0], keys[0])
        x = jax.nn.relu(first(x))
        x = x if key is None else reg.dropout(x, rates[1], keys[1])
        return last(x)


def hyperparameters(side: int) -> Hyperparameters:
    """What is tuned, from the middle of each domain."""
    return Hyperparameters(
        {
            "dropout": Bounded(0.0, 0.8, initial=0.4, shape=(2,)),
            "decay": Positive(3e-5),
            "smoothing": Bounded(0.0, 0.5, initial=0.25),
            "noise": Bounded(0.0, 0.5, initial=0.25),
            "shift": Bounded(0.0, side / 7, initial=side / 14),
            "brightness": Bounded(0.0, 0.8, initial=0.4),
            "cutout": Discrete(0, side // 2, initial=side // 4),
            "holes": Discrete(0, MOST_HOLES, initial=MOST_HOLES // 2),
        }
    )


def search_space(side: int) -> SearchSpace:
    """The same domains for the searches."""
    return SearchSpace(
        {
            "dropout": Float(0.0, 0.8, shape=(2,)),
            "decay": Float(1e-7, 1e-2, log=True),
            "smoothing": Float(0.0, 0.5),
            "noise": Float(0.0, 0.5),
            "shift": Float(0.0, side / 7),
            "brightness": Float(0.0, 0.8),
            "cutout": Int(0, side // 2),
            "holes": Int(0, MOST_HOLES),
        }
    )


def training_loss(model: PyTree, values: Values, batch: PyTree, key: Array) -> Scalar:
    """Cross-entropy with augmentation, dropout, smoothed labels and weight decay."""
    images, labels = batch

    def one(image: Array, label: Array, key: Array) -> Scalar:
        keys = jax.random.split(key, 5)
        image = reg.shift(image, values["shift"], keys[0])
        image = reg.brightness(image, values["brightness"], keys[1])
        image = reg.cutout(image, values["cutout"], values["holes"], keys[2], most=MOST_HOLES)
        image = reg.input_noise(image, values["noise"], keys[3])
        scores = model(image, values["dropout"], keys[4])
        return optax.softmax_cross_entropy(
            scores, reg.smooth_labels(label, 10, values["smoothing"])
        )

    loss = jnp.mean(jax.vmap(one)(images, labels, jax.random.split(key, len(labels))))
    gated = model.gated if isinstance(model, SelfTuningModel) else model
    return loss + values["decay"] * squared_norm(gated)


def loss(model: PyTree, batch: PyTree) -> Scalar:
    """Cross-entropy without regularisers."""
    scores = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


@eqx.filter_jit
def accuracy(model: PyTree, batch: PyTree) -> Scalar:
    """Share of labels that are right."""
    return jnp.mean(jnp.argmax(jax.vmap(model)(batch[0]), axis=1) == batch[1])


def draw(data: tuple[Array, Array], key: Array) -> tuple[Array, Array]:
    """A random batch."""
    rows = jax.random.randint(key, (BATCH,), 0, len(data[1]))
    return data[0][rows], data[1][rows]


class Round(NamedTuple):
    """What a round of training leaves: validation loss, the weights that have it, and seconds."""

    loss: float
    model: PyTree
    seconds: float


class Training(NamedTuple):
    """A training with given values of the hyperparameters, as far as it has come."""

    weights: PyTree
    moments: PyTree
    key: Array


class Trainer:
    """Trainings of one network in rounds of `steps` steps; one compiled program for all values."""

    def __init__(self, task: Task, kind: str, steps: int, seed: int):
        self.task, self.kind, self.steps = task, kind, steps
        self.reseed(seed)
        self._advance = jax.jit(self._round)

    def reseed(self, seed: int) -> None:
        """Other initial weights and batches for the trainings that follow."""
        # Every example draws a lot: threefry would be half of a step, and of its compilation.
        self.key = jax.random.key(seed, impl="unsafe_rbg")
        self.network = Network(self.kind, self.task.side, self.key)
        self.weights, self.rest = eqx.partition(self.network, eqx.is_inexact_array)

    def start(self) -> Training:
        """The untrained network. Every training starts from the same weights."""
        return Training(self.weights, OPTIMIZER.init(self.weights), self.key)

    def advance(self, state: Training, values: Values) -> tuple[Training, Round]:
        """One round with these values."""
        begin = time.perf_counter()
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
        state, valid = self._advance(state, arrays)
        valid = float(valid)
        model = eqx.combine(state.weights, self.rest)
        return state, Round(valid, model, time.perf_counter() - begin)

    def _round(self, state: Training, values: Values) -> tuple[Training, Scalar]:
        def step(state: Training, _: None) -> tuple[Training, None]:
            batch_key, loss_key, key = jax.random.split(state.key, 3)
            batch = draw(self.task.train, batch_key)
            grad = jax.grad(
                lambda w: training_loss(eqx.combine(w, self.rest), values, batch, loss_key)
            )(state.weights)
            updates, moments = OPTIMIZER.update(grad, state.moments)
            return Training(optax.apply_updates(state.weights, updates), moments, key), None

        state, _ = jax.lax.scan(step, state, None, length=self.steps)
        return state, loss(eqx.combine(state.weights, self.rest), self.task.valid)


class Trace:
    """The rounds of all trainings of a method."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.model: PyTree = None

    def add(self, round_: Round) -> None:
        """One more round; a loss that is not finite counts as infinite."""
        value = round_.loss if np.isfinite(round_.loss) else np.inf
        if value < self.best:
            self.model = round_.model
        self.losses.append(value)
        self.seconds.append(round_.seconds)

    @property
    def best(self) -> float:
        """Lowest validation loss so far."""
        return min(self.losses, default=np.inf)

    def times(self) -> np.ndarray:
        """Seconds until the end of each round, every one counted at the median of their times.

        The median, because the first round compiles and others use the machine too.
        """
        return np.arange(1, len(self.losses) + 1) * float(np.median(self.seconds))

    def curve(self, unit: float) -> Curve:
        """Lowest validation loss over time."""
        return Curve(self.times() / unit, np.minimum.accumulate(self.losses))


def self_tuned(
    trainer: Trainer, rounds: int, *, centred: bool = True, report: Report
) -> tuple[Trace, Schedule]:
    """One training by Delta-STN (`centred`) or STN; its hyperparameters after every round.

    The first round is the warm-up: the response is trained, and nothing tuned yet.
    """
    task, tuned = trainer.task, hyperparameters(trainer.task.side)
    tuner = Tuner(
        BilevelProblem(
            lambda m, h, b, k: training_loss(m, tuned.values(h), b, k),
            lambda m, h, b, k: loss(m, b),
            stochastic=True,
        ),
        SelfTuning(
            OPTIMIZER,
            perturbation=Perturbation(0.5, optimizer=optax.adam(3e-3), entropy=1e-3),
            centred=centred,
        ),
        optimizer=optax.adam(0.1),
    )
    hparams = tuned.initial()
    model = to_self_tuning(trainer.network, hparams, key=trainer.key)
    state = tuner.init(model, hparams, draw(task.train, trainer.key), key=trainer.key)
    leaves, rest = eqx.partition((state, trainer.key), eqx.is_array)

    def train_step(leaves: PyTree, key: Array) -> tuple[PyTree, None]:
        state, _ = eqx.combine(leaves, rest)
        state = tuner.train(state, draw(task.train, key))
        return eqx.filter((state, key), eqx.is_array), None

    def tune_step(leaves: PyTree, key: Array) -> PyTree:
        state, _ = eqx.combine(leaves, rest)
        state, _ = tuner.tune(state, draw(task.train, key), draw(task.valid, key))
        return eqx.filter((state, key), eqx.is_array)

    @jax.jit
    def advance(leaves: PyTree, tune: Array) -> tuple[PyTree, Scalar]:
        def step(leaves: PyTree, _: None) -> tuple[PyTree, None]:
            key = eqx.combine(leaves, rest)[1]
            keys = jax.random.split(key, tuner.train_steps + 1)
            leaves, _ = jax.lax.scan(train_step, leaves, keys[:-1])
            return jax.lax.cond(tune, tune_step, lambda s, _: s, leaves, keys[-1]), None

        leaves, _ = jax.lax.scan(step, leaves, None, length=trainer.steps // tuner.train_steps)
        return leaves, loss(eqx.combine(leaves, rest)[0].estimator.params, task.valid)

    trace = Trace(trainer.steps)
    rows = [tuned.values(hparams)]
    for index in range(rounds):
        begin = time.perf_counter()
        leaves, valid = advance(leaves, jnp.asarray(index > 0))
        valid = float(valid)
        seconds = time.perf_counter() - begin
        state, _ = eqx.combine(leaves, rest)
        trace.add(Round(valid, state.estimator.params, seconds))
        rows.append(tuned.values(state.hparams))
        report(trace.best)
    steps = np.arange(rounds + 1) * trainer.steps
    return trace, Schedule(steps, {n: [np.asarray(row[n]) for row in rows] for n in rows[0]})


def train(trainer: Trainer, values: Iterable[Values], trace: Trace, report: Report) -> float:
    """A whole training with the given values in each round; its lowest validation loss."""
    state, losses = trainer.start(), []
    for row in values:
        state, done = trainer.advance(state, row)
        trace.add(done)
        losses.append(done.loss)
        report(trace.best)
    return float(np.nanmin(losses))


def random_search(
    trainer: Trainer, rounds: int, trials: int, seed: int, report: Report
) -> tuple[Trace, list[tuple[float, Values]]]:
    """Random search; the losses and configurations of its trials."""
    trace, results = Trace(trainer.steps), []
    space = search_space(trainer.task.side)

    def objective(config: Values) -> float:
        value = train(trainer, [config] * rounds, trace, report)
        results.append((value, config))
        return value

    minimize(objective, space, trials=trials, searcher=RandomSearcher(space, seed=seed))
    return trace, results


def parzen(trainer: Trainer, rounds: int, trials: int, seed: int, report: Report) -> Trace:
    """Tree-structured Parzen estimators."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trace, side = Trace(trainer.steps), trainer.task.side

    def objective(trial: optuna.Trial) -> float:
        values = {
            "dropout": [trial.suggest_float(f"dropout {i}", 0.0, 0.8) for i in range(2)],
            "decay": trial.suggest_float("decay", 1e-7, 1e-2, log=True),
            "smoothing": trial.suggest_float("smoothing", 0.0, 0.5),
            "noise": trial.suggest_float("noise", 0.0, 0.5),
            "shift": trial.suggest_float("shift", 0.0, side / 7),
            "brightness": trial.suggest_float("brightness", 0.0, 0.8),
            "cutout": trial.suggest_int("cutout", 0, side // 2),
            "holes": trial.suggest_int("holes", 0, MOST_HOLES),
        }
        return train(trainer, [values] * rounds, trace, report)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
    return trace


def hyperband(trainer: Trainer, rounds: int, trials: int, seed: int, report: Report) -> Trace:
    """Hyperband over rounds, with the budget of `trials` whole trainings."""
    trace, kept = Trace(trainer.steps), {}
    searcher = RandomSearcher(search_space(trainer.task.side), seed=seed)

    def objective(job: Any) -> float:
        state, best = kept.get(job.number, (trainer.start(), np.inf))
        for _ in range(int(job.resource - job.resume_from)):
            state, done = trainer.advance(state, job.config)
            trace.add(done)
            best = min(best, done.loss)
            report(trace.best)
        kept[job.number] = (state, best)
        return best

    scheduler = Hyperband(searcher, rounds, iterations=None)
    run_jobs(objective, scheduler, budget=trials * rounds)
    return trace


OPTIONS = [
    Option("data", "fashion_mnist", quick="digits", choices=("fashion_mnist", "digits")),
    Option("model", "cnn", quick="mlp", choices=("cnn", "mlp")),
    Option("examples", 250, quick=200, help="training examples"),
    Option("rounds", 9, quick=9, help="rounds of a training"),
    Option("steps", 50, quick=40, help="training steps of a round"),
    Option("trials", 30, quick=4, help="trainings of each search"),
]


@experiment(
    paper="MacKay et al. 2019, arXiv:1903.03088; Bae and Grosse 2020, arXiv:2010.13514",
    options=OPTIONS,
    claims=[
        Claim(
            "three",
            "lowest loss of Delta-STN in the time of three trainings over the best of all random "
            "ones (30)",
            at_most=1.0,
            quick=1.25,
        ),
        Claim(
            "median",
            "lowest loss of Delta-STN over the median of random trainings",
            at_most=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """All methods, one after the other."""
    options = context.options
    task = load(options.data, options.examples, options.seed)
    trainer = Trainer(task, options.model, options.steps, options.seed)
    rounds, trials = options.rounds, options.trials
    traces: dict[str, Trace] = {}
    schedules = {}
    # Each takes longer to compile than the quick run has.
    forms = {"Delta-STN": True} if options.quick else {"STN": False, "Delta-STN": True}
    for name, centred in forms.items():
        with context.progress(name, total=rounds) as progress:
            traces[name], schedules[name] = self_tuned(
                trainer,
                rounds,
                centred=centred,
                report=partial(report_to, progress),
            )
    with context.progress("random search", total=rounds * trials) as progress:
        traces["random search"], results = random_search(
            trainer, rounds, trials, options.seed, partial(report_to, progress)
        )
    for name, method in (("TPE", parzen), ("Hyperband", hyperband)):
        with context.progress(name, total=rounds * trials) as progress:
            traces[name] = method(
                trainer, rounds, trials, options.seed, partial(report_to, progress)
            )

    unit = rounds * float(np.median(traces["random search"].seconds))
    curves = {name: trace.curve(unit) for name, trace in traces.items()}
    context.plot(
        "loss",
        curves,
        x="time in plain trainings",
        y="lowest validation loss",
        x_scale="log",
    )
    target = min(value for value, _ in results)
    reached = {}
    for name, curve in curves.items():
        there = np.asarray(curve.x)[np.asarray(curve.y) <= target]
        reached[name] = float(there[0]) if len(there) else np.inf
    context.table(
        "results",
        [
            {
                "method": name,
                "validation loss": trace.best,
                "test accuracy": float(accuracy(trace.model, task.test)),
                "training steps": len(trace.losses) * trace.steps,
                "seconds": float(trace.times()[-1]),
                "time in trainings": float(trace.times()[-1]) / unit,
                "until the best of random": reached[name],
            }
            for name, trace in traces.items()
        ],
    )
    draw_schedules(context, schedules["Delta-STN"])
    context.measure("median", traces["Delta-STN"].best / np.median([v for v, _ in results]))
    tuned = curves["Delta-STN"]
    in_three = np.asarray(tuned.y)[np.asarray(tuned.x) <= 3]
    context.measure("three", np.min(in_three, initial=np.inf) / target)


def draw_schedules(context: Context, schedule: Schedule) -> None:
    """The path of each hyperparameter: one panel each, and as data."""
    path: Path = context.options.out / "schedule.png"
    schedule.plot(path)
    context.figures.append(path)
    rows = zip(*(v.reshape(len(v), -1) for v in schedule.values.values()), strict=True)
    names = [
        name if value.ndim == 1 else f"{name} {index}"
        for name, value in schedule.values.items()
        for index in range(value.reshape(len(value), -1).shape[1])
    ]
    context.table(
        "schedule",
        [
            {
                "step": int(step),
                **dict(zip(names, np.concatenate(row).tolist(), strict=True)),
            }
            for step, row in zip(schedule.steps, rows, strict=True)
        ],
    )


def report_to(progress: Any, best: float) -> None:
    """A `Report` that moves a progress bar."""
    progress.advance(incumbent=best)


if __name__ == "__main__":
    raise SystemExit(run.main())
