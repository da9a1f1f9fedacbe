"""Architectures outside, gradients inside: a mixed search of small networks, at equal cost.

The space is conditional: the depth opens a width for each layer and a weight decay for each array
of weights, the optimizer opens its own parameters, and there is an activation. The mixed search
proposes all of it with the Bayesian searcher; while a network is trained, the decays of its layers
follow the hypergradient (implicit, by five products), and the trial reports the decays that it
ended with, from which the searcher learns. Against it TPE, which tries plain trainings of the same
length; the same Bayesian searcher without gradients; and pure gradient, which follows the
hypergradient through the whole training in decays, rate and momentum, of the architecture in the
middle of the space.

Cost is processor time relative to a plain training, measured beforehand for each kind of trial, so
that every search may spend the same. All see the validation loss after each tenth of a training and
take the smallest. At the end the configuration that a search chose is trained again from scratch,
without tuning, which is what all of them are judged by.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.harness.optuna_search import optuna_search
from hypergrad import (
    CG,
    BilevelProblem,
    ImplicitDifferentiation,
    InnerSolution,
    InnerSolver,
    Unrolled,
    hypergradient,
)
from hypergrad.outer import Alternating
from hypergrad.unrolled import InnerStep
from strategies import (
    BayesSearcher,
    Categorical,
    Choice,
    Constant,
    Float,
    HypergradientSearcher,
    Int,
    Report,
    SearchSpace,
    report,
)
from strategies.lamarckian import LamarckianTrial, Training
from strategies.local import minimize

WIDEST, CLASSES, PIXELS = 48, 10, 64
ACTIVATIONS = ("relu", "tanh", "gelu")
LOOKS = 10
Config = dict[str, Any]


def search_space(depth: int) -> SearchSpace:
    """Networks of up to `depth` hidden layers."""
    nets = {
        f"{layers}": {
            **{f"width{i}": Int(4, WIDEST, log=True) for i in range(layers)},
            "decay": Float(1e-5, 1.0, log=True, shape=(layers + 1,)),
        }
        for layers in range(1, depth + 1)
    }
    return SearchSpace(
        {
            "layers": Choice(nets),
            "activation": Categorical(list(ACTIVATIONS)),
            "optimizer": Choice(
                {
                    "momentum": {
                        "rate": Float(1e-3, 1.0, log=True),
                        "momentum": Float(0.0, 0.98),
                    },
                    "adam": {
                        "rate": Float(1e-4, 1e-1, log=True),
                        "memory": Float(10.0, 1000.0, log=True),
                    },
                }
            ),
        }
    )


# -- the training ----------------------------------------------------------------------------
# Widths are masks, activations and optimizers weights, so that a depth is one program.


def scores(params: list, batch: dict) -> Array:
    """Log probabilities of the classes."""
    h = batch["x"]
    for (w, b), mask in zip(params[:-1], batch["masks"], strict=True):
        z = h @ w + b
        each = jnp.stack([jax.nn.relu(z), jnp.tanh(z), jax.nn.gelu(z)], axis=-1)
        h = (each @ batch["activation"]) * mask
    w, b = params[-1]
    return jax.nn.log_softmax(h @ w + b)


def loss(params: list, hparams: dict, batch: dict) -> Array:
    """Mean cross-entropy."""
    return -jnp.mean(jnp.take_along_axis(scores(params, batch), batch["y"][:, None], axis=1))


def decays(hparams: dict) -> Array:
    """The decays of the layers that the network has."""
    return next(net["decay"] for net in hparams["layers"].values())


def penalised(params: list, hparams: dict, batch: dict) -> Array:
    """With a weight decay for each layer."""
    squares = jnp.stack([jnp.sum(w**2) for w, _ in params])
    return loss(params, hparams, batch) + 0.5 * jnp.sum(decays(hparams) * squares)


PROBLEM = BilevelProblem(penalised, loss)


class Optimizer(InnerStep):
    """A step of momentum or Adam, its parameters a part of the batch, or of `hparams`."""

    def init(self, params: PyTree, hparams: PyTree) -> PyTree:
        """Two running means and the number of steps."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.zeros(())

    def step(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PyTree]:
        """See `InnerStep.step`."""
        own = dict(batch["optimizer"])
        # Where the optimizer is tuned by gradient, its parameters come from `hparams`.
        for tuned in hparams.get("optimizer", {}).values():
            own.update(tuned)
        gradient = jax.grad(lambda p: problem.inner_loss(p, hparams, batch, key)[0])(params)
        mean, square, count = state
        slow = 1 - 1 / own["memory"]
        mean = jax.tree.map(lambda m, g: own["momentum"] * m + g, mean, gradient)
        square = jax.tree.map(lambda s, g: slow * s + (1 - slow) * g**2, square, gradient)
        # Adam divides the mean of the gradients by the root of the mean of their squares.
        first = (1 - own["momentum"] ** (count + 1)) / (1 - own["momentum"])
        second = 1 - slow ** (count + 1)

        def move(p: Array, m: Array, s: Array) -> Array:
            # The small number under the root keeps its derivative finite for dead weights.
            scaled = m / first / (jnp.sqrt(s / second + 1e-12) + 1e-6)
            return p - own["rate"] * (own["adam"] * scaled + (1 - own["adam"]) * m)

        return jax.tree.map(move, params, mean, square), (mean, square, count + 1)


class Descent(InnerSolver):
    """So many steps of `Optimizer`, its running means kept from one run to the next."""

    steps: int = eqx.field(static=True)

    def init(self, problem: BilevelProblem, params: PyTree) -> PyTree:
        """The optimizer's initial state."""
        return Optimizer().init(params, {})

    def run(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        batch: PyTree,
        *,
        state: PyTree | None = None,
        key: Array | None = None,
    ) -> InnerSolution:
        """See `InnerSolver.run`."""
        state = self.init(problem, params) if state is None else state

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            return Optimizer().step(problem, *carry, hparams, batch, key), None

        (params, state), _ = jax.lax.scan(step, (params, state), None, length=self.steps)
        # Nobody asks this training how stationary it is, and the answer costs a gradient.
        unknown = jnp.full((), jnp.nan)
        return InnerSolution(params, state, jnp.asarray(self.steps), unknown)


class Data(NamedTuple):
    """Training, validation and test part."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def digits(seed: int) -> Data:
    """A few digits to train with, many to judge."""
    parts = tabular("digits", seed=seed, fractions=(0.4, 0.45))
    return Data(*((part.x / 16, part.y) for part in parts))


@cache
def algorithm(every: int) -> Alternating:
    """Tuning inside: so many steps, then one of Adam in the decays; five products a gradient."""
    estimator = ImplicitDifferentiation(
        Descent(every), CG(tol=0.0, max_steps=5), damping=1e-2, error_estimate=False
    )
    return Alternating(estimator, optax.adam(0.1))


class Task:
    """The trials of one split of the data."""

    def __init__(self, seed: int, space: SearchSpace, steps: int) -> None:
        self.seed, self.space, self.data = seed, space, digits(seed)
        self.every, self.whole = steps // LOOKS, Unrolled(Optimizer(), steps)
        decays = [path for path in space.domains if path.endswith("decay")]
        self.tuned = LamarckianTrial(
            space, self.build, algorithm(self.every), steps=LOOKS, tune=decays
        )

    def batch(self, config: Config, part: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        """A part of the data with what is discrete in the network."""
        net = config["layers"][config["layers"]["kind"]]
        widths = [net[f"width{i}"] for i in range(int(config["layers"]["kind"]))]
        optimizer = config["optimizer"]
        return {
            "x": jnp.asarray(part[0]),
            "y": jnp.asarray(part[1]),
            "masks": [jnp.asarray(np.arange(WIDEST) < width, float) for width in widths],
            "activation": jnp.asarray([float(config["activation"] == a) for a in ACTIVATIONS]),
            "optimizer": {
                name: jnp.asarray(value)
                for name, value in {
                    "adam": float(optimizer["kind"] == "adam"),
                    "momentum": 0.9,
                    "memory": 1000.0,
                    **optimizer[optimizer["kind"]],
                }.items()
            },
        }

    def build(self, config: Config) -> Training:
        """What a trial trains, from the same initial weights each time."""
        rng = np.random.default_rng(self.seed)
        net = config["layers"][config["layers"]["kind"]]
        widths = [net[f"width{i}"] for i in range(int(config["layers"]["kind"]))]
        params, held, used = [], PIXELS, PIXELS
        for width in widths:
            weights = rng.standard_normal((held, WIDEST)) / np.sqrt(used)
            params.append((jnp.asarray(weights), jnp.zeros(WIDEST)))
            held, used = WIDEST, width
        params.append(
            (jnp.asarray(rng.standard_normal((held, CLASSES)) / np.sqrt(used)), jnp.zeros(CLASSES))
        )
        train, validation = (self.batch(config, part) for part in self.data[:2])
        return Training(PROBLEM, params, train, validation)

    def plain(self, config: Config) -> tuple[float, float]:
        """Smallest validation loss of the looks of a training, and the test loss there."""
        training = self.build(config)
        net = config["layers"]["kind"]
        hparams = {"layers": {net: {"decay": jnp.asarray(config["layers"][net]["decay"])}}}
        test = self.batch(config, self.data.test)
        seen = np.asarray(looks(training.params, hparams, *training[2:], test, self.every))
        seen = np.where(np.isfinite(seen), seen, np.inf)
        best = int(np.argmin(seen[:, 0]))
        return float(seen[best, 0]), float(seen[best, 1])

    def graded(self, config: Config) -> Report:
        """A plain training, and the derivative of its last loss through all of its steps."""
        training = self.build(config)
        hparams = {}
        for name in ("layers", "optimizer"):
            kind = config[name]["kind"]
            continuous = {
                key: jnp.asarray(value)
                for key, value in config[name][kind].items()
                if not key.startswith("width")
            }
            hparams[name] = {kind: continuous}
        found = hypergradient(*training[:2], hparams, *training[2:], estimator=self.whole)
        return report(found)


@partial(jax.jit, static_argnums=5)
def looks(
    params: list, hparams: dict, train: dict, validation: dict, test: dict, every: int
) -> Array:
    """Validation and test loss after each tenth of a training, `(LOOKS, 2)`."""
    optimizer = Optimizer()

    def part(carry: tuple, _: None) -> tuple[tuple, Array]:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            return optimizer.step(PROBLEM, *carry, hparams, train, None), None

        carry, _ = jax.lax.scan(step, carry, None, length=every)
        return carry, jnp.stack([loss(carry[0], hparams, p) for p in (validation, test)])

    start = (params, optimizer.init(params, hparams))
    return jax.lax.scan(part, start, None, length=LOOKS)[1]


# -- the searches ----------------------------------------------------------------------------


def middle(depth: int) -> tuple[Config, SearchSpace]:
    """A network of the middle of the space, and the space of its continuous hyperparameters."""
    space = search_space(depth)
    layers = str((depth + 1) // 2)
    config = space.complete({"layers/kind": layers, "optimizer/kind": "adam"})
    free = {
        group: {path.rpartition("/")[2]: space.domains[path] for path in space.domains
                if path.startswith(f"{group}/{config[group]['kind']}/")}
        for group in ("layers", "optimizer")
    }  # fmt: skip
    nested = {
        group: {
            "kind": Constant(config[group]["kind"]),
            config[group]["kind"]: {
                name: replace(domain, when={}) if isinstance(domain, Float) else
                Constant(config[group][config[group]["kind"]][name])
                for name, domain in domains.items()
            },
        }
        for group, domains in free.items()
    }  # fmt: skip
    return config, SearchSpace({**nested, "activation": Constant(config["activation"])})


class Found(NamedTuple):
    """A search: its best value after each trial, the cost of a trial, what it chose."""

    best: np.ndarray
    cost: float
    config: Config


def minimised(objective: Callable[[Config], Any], searcher: Any, trials: int, cost: float) -> Found:
    """A search with one of our searchers."""
    result = minimize(objective, searcher.space, trials=trials, searcher=searcher)
    assert result.best_config is not None
    return Found(np.nan_to_num(result.best_so_far(), nan=np.inf), cost, result.best_config)


def with_tpe(task: Task, trials: int, seed: int) -> Found:
    """Plain trainings proposed by Optuna's TPE."""
    seen: list[tuple[float, Config]] = []

    def train(config: Config) -> float:
        seen.append((task.plain(config)[0], config))
        return seen[-1][0]

    optuna_search("TPE", task.space, train, trials, seed=seed)
    best = np.minimum.accumulate([value for value, _ in seen])
    return Found(best, 1.0, min(seen, key=lambda trial: trial[0])[1])


def costs(task: Task, depth: int, pure: bool) -> dict[str, float]:
    """Processor time of a tuned and of a graded trial, in plain trainings."""
    config, _ = middle(depth)

    def clocked(trial: Callable[[Config], Any]) -> float:
        trial(config)
        times = []
        for _ in range(5):
            started = time.process_time()
            trial(config)
            times.append(time.process_time() - started)
        return min(times)

    plain = clocked(task.plain)
    trials = {"tuned": task.tuned, **({"graded": task.graded} if pure else {})}
    return {name: clocked(trial) / plain for name, trial in trials.items()}


MIXED, TPE, BAYES, GRADIENT = "mixed", "TPE (Optuna)", "bayes, no gradient", "pure gradient"


@experiment(
    paper="ours; space in the spirit of Negrinho & Gordon 2017, arXiv:1704.08792",
    x64=True,
    options=[
        Option("budget", 60, quick=12, help="cost of a search, in plain trainings"),
        Option("steps", 300, quick=100, help="steps of a training"),
        Option("depth", 3, quick=1, help="hidden layers at most"),
        Option("seeds", 5, quick=1, help="splits of the data"),
        Option("pure", True, help="race pure gradient too"),
        Option("pairs", 10, quick=4, help="configurations trained with and without tuning"),
    ],
    claims=[
        Claim(
            "tpe",
            "validation loss of the mixed search's choice over that of TPE's, at equal cost",
            at_most=1.0,
            quick=6.0,
        ),
        Claim(
            "gradient",
            "the same over that of pure gradient's on a fixed architecture",
            at_most=1.0,
            quick=6.0,
            when=lambda options: options.pure,
        ),
        Claim(
            "inside",
            "loss of a trial that tunes itself over that of a plain one from the same "
            "configuration (median)",
            at_most=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """Race the searches at equal cost, then train their choices again."""
    options = context.options
    space = search_space(options.depth)
    _, fixed = middle(options.depth)
    names = [MIXED, TPE, BAYES, *([GRADIENT] if options.pure else [])]
    found: dict[str, list[Found]] = {name: [] for name in names}
    again: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    gains: list[float] = []
    cost = costs(Task(options.seed, space, options.steps), options.depth, options.pure)
    trials = {kind: max(round(options.budget / ratio), 3) for kind, ratio in cost.items()}
    with context.progress("searches", total=options.seeds * len(found)) as bar:
        for seed in range(options.seed, options.seed + options.seeds):
            task = Task(seed, space, options.steps)
            outside = BayesSearcher(space, seed=seed, gradients=False)
            searches: dict[str, Callable[[], Found]] = {
                MIXED: lambda: minimised(task.tuned, outside, trials["tuned"], cost["tuned"]),  # noqa: B023
                TPE: lambda: with_tpe(task, options.budget, seed),  # noqa: B023
                BAYES: lambda: minimised(
                    lambda config: task.plain(config)[0],  # noqa: B023
                    BayesSearcher(space, seed=seed),  # noqa: B023
                    options.budget,
                    1.0,
                ),
                GRADIENT: lambda: minimised(
                    task.graded,  # noqa: B023
                    HypergradientSearcher(fixed, seed=seed),  # noqa: B023
                    trials["graded"],
                    cost["graded"],
                ),
            }
            for name in names:
                found[name].append(searches[name]())
                again[name].append(task.plain(found[name][-1].config))
                bar.advance(incumbent=again[name][-1][0])
            rng = np.random.default_rng(seed)
            for _ in range(options.pairs):
                config = space.sample(rng)
                value, plain = task.tuned(config).value, task.plain(config)[0]
                if value is not None and np.isfinite([value, plain]).all():
                    gains.append(value / plain)

    grid = np.linspace(1, options.budget, 60)
    curves = {}
    for name, runs in found.items():
        # The best value known when so much was spent; nothing before the first trial is done.
        at = [[r.best[max(int(c / r.cost) - 1, 0)] for c in grid] for r in runs]
        curves[name] = Curve.of_runs(np.log10(at), grid)
    context.plot(
        "searches", curves, x="cost, in plain trainings", y="best validation loss seen, log10"
    )
    validation = {n: float(np.median([v for v, _ in pairs])) for n, pairs in again.items()}
    context.table(
        "choices",
        [
            {
                "search": name,
                "trials": len(runs[0].best),
                "cost of a trial": runs[0].cost,
                "best seen": float(np.median([r.best[-1] for r in runs])),
                "trained again": validation[name],
                "test": float(np.median([t for _, t in again[name]])),
                "layers": ", ".join(r.config["layers"]["kind"] for r in runs),
                "optimizer": ", ".join(r.config["optimizer"]["kind"] for r in runs),
            }
            for name, runs in found.items()
        ],
    )
    context.measure("inside", float(np.median(gains)))
    context.measure("tpe", validation[MIXED] / validation[TPE])
    if options.pure:
        context.measure("gradient", validation[MIXED] / validation[GRADIENT])


if __name__ == "__main__":
    raise SystemExit(run.main())
