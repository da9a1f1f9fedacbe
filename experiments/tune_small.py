"""Tuned by hypergradient where training is cheap, used where it is not.

A byte-level transformer learns embedded documentation. At a small width learning rates and weight
decays of its four kinds of layers, over the time of the training, are learned by derivatives
through whole trainings (`learn_schedules`), from a warm-up and a cosine whose peak is half the best
of a grid. (From the best *constant* rate nothing was learned: it lies at the edge of stability,
where derivatives point nowhere.) muP carries them to the large width by the shapes of the arrays
alone. There they meet

- TPE that tunes at the large width itself with ten times the operations: a rate for each kind of
  layer, the decay, the warm-up and where the rate ends, under the same parametrisation;
- the best warm-up and cosine of the small width's grid, carried over;
- common defaults in the standard parametrisation: AdamW at 1e-3, warm-up, cosine, decay 0.01.

Operations are XLA's own count for one step, times the steps. An iteration of `learn_schedules`
counts as one pulled-back step and two plain ones for each step. Held-out bits per byte are those of
trainings that nothing was tuned on: other starts, other batches.

Yang et al., "Tensor Programs V" (2022); Maclaurin et al. (2015).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.byte_transformer import draw, group_of, nats
from experiments.data.text import Domain, text_domains
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.schedule import learn_schedules, scheduled
from hypergrad.transfer import Parametrization, infer
from hypergrad.transfer.rules import Kind
from strategies import Float, SearchSpace, TPESearcher
from strategies.local import minimize

GROUPS = ("embedding", "attention", "mlp", "readout")
DOMAIN, LENGTH = "documentation", 32
RATES = 2.0 ** -np.arange(4.0, 10.0)
DECAY = 0.01
#: Where a cosine ends, relative to its peak.
END = 0.01
#: Operations of TPE relative to those of tuning at the small width.
TIMES = 10.0
SPACE = SearchSpace(
    {
        **{f"rate_{group}": Float(1e-4, 0.3, log=True) for group in GROUPS},
        "decay": Float(1e-4, 1.0, log=True),
        "rise": Float(0.0, 0.3),
        "end": Float(1e-3, 1.0, log=True),
    }
)

Schedules = dict[str, jax.Array]


def adamw(settings: dict) -> optax.GradientTransformation:
    """Of the settings of one step. The decay is the one of `Adam`'s steps: times the rate."""
    return optax.adamw(
        settings["learning_rate"], b2=0.99, eps_root=1e-16, weight_decay=settings["weight_decay"]
    )


@dataclass(frozen=True)
class Model:
    """The transformer at one width, its rule, its data."""

    width: int
    base: int
    layers: int
    steps: int
    batch: int
    text: Domain
    kind: Kind = "mup"

    def drawn(self, width: int, key: jax.Array) -> dict:
        """Parameters at any width."""
        return draw(width, self.layers, LENGTH, key)

    @cached_property
    def rule(self) -> Parametrization:
        """From the shapes at two widths."""
        shape = lambda w: jax.eval_shape(partial(self.drawn, w), jax.random.key(0))  # noqa: E731
        return infer(shape(self.base), shape(2 * self.base), kind=self.kind).at(shape(self.width))

    def start(self, seed: int) -> dict:
        """Initial values."""
        key = jax.random.key(seed)
        return self.rule.init(self.drawn(self.width, key), self.drawn(self.base, key))

    def batches(self, seed: int) -> jax.Array:
        """One for each step."""
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, len(self.text.train), (self.steps, self.batch))
        return jnp.asarray(self.text.train[rows])

    def loss(self, params: dict, pieces: jax.Array) -> jax.Array:
        """Nats per byte."""
        return nats(self.rule.forward(params), pieces)

    def optimizer(self, values: Schedules) -> optax.GradientTransformation:
        """Settings over steps and groups, of the base width, at this one."""
        return self.rule.optimizer(scheduled(adamw, values, GROUPS, group_of))

    @cached_property
    def train(self) -> Callable[[Schedules, dict, jax.Array], dict]:
        """The whole training, compiled once for all settings."""

        def run(values: Schedules, params: dict, batches: jax.Array) -> dict:
            optimizer = self.optimizer(values)

            def step(carry: tuple, pieces: jax.Array) -> tuple[tuple, None]:
                w, state = carry
                updates, state = optimizer.update(jax.grad(self.loss)(w, pieces), state, w)
                return (optax.apply_updates(w, updates), state), None

            return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

        return jax.jit(run)

    @cached_property
    def measure(self) -> Callable[[dict, jax.Array], jax.Array]:
        """Bits per byte."""
        return jax.jit(lambda params, pieces: self.loss(params, pieces) / jnp.log(2.0))

    def bits(self, values: Schedules, seed: int, part: str, held: int) -> float:
        """Of one training, on held-out pieces; infinite if it blew up."""
        end = self.train(values, self.start(seed), self.batches(seed))
        found = float(self.measure(end, jnp.asarray(getattr(self.text, part)[:held])))
        return found if np.isfinite(found) else float("inf")

    def operations(self, *, derivative: bool) -> float:
        """Of a training, or of one metagradient through it, by XLA's count of a step."""
        values, params = cosine(1e-3, self.steps), self.start(0)

        def step(values: Schedules, w: dict, state: Any, pieces: jax.Array) -> tuple:
            updates, state = self.optimizer(values).update(jax.grad(self.loss)(w, pieces), state, w)
            return optax.apply_updates(w, updates), state

        given = (values, params, self.optimizer(values).init(params), self.batches(0)[0])
        once = counted(step, *given)
        if not derivative:
            return self.steps * once

        def pulled(values: Schedules, w: dict, state: Any, pieces: jax.Array) -> tuple:
            end, pull = jax.vjp(lambda v, w: step(v, w, state, pieces)[0], values, w)
            return pull(end)

        return self.steps * (counted(pulled, *given) + 2 * once)


def counted(function: Callable, *arguments: Any) -> float:
    """Floating-point operations of a program."""
    return float(jax.jit(function).lower(*arguments).cost_analysis()["flops"])


def shaped(rates: Any, decay: float, rise: float, end: float, steps: int) -> Schedules:
    """A linear rise over a share of the steps, then half a cosine to a share of the rate."""
    at = (np.arange(steps) + 1) / steps
    fall = np.clip((at - rise) / (1 - rise), 0, 1)
    line = np.minimum(at / max(rise, 1 / steps), end + (1 - end) * (1 + np.cos(np.pi * fall)) / 2)
    return {
        "learning_rate": jnp.asarray(line[:, None] * np.asarray(rates), jnp.float32),
        "weight_decay": jnp.full((steps, len(GROUPS)), decay, jnp.float32),
    }


def cosine(peak: float, steps: int) -> Schedules:
    """A warm-up over a tenth of the steps, then half a cosine."""
    return shaped([peak] * len(GROUPS), DECAY, 0.1, END, steps)


def learned_at(small: Model, iterations: int, held: int, bar: Any) -> tuple[float, Schedules, Any]:
    """The best peak of the grid, and the schedules learned from half of it."""
    tried = {
        float(r): small.bits(cosine(float(r), small.steps), 0, "validation", held) for r in RATES
    }
    rate = min(tried, key=lambda r: tried[r])
    start = cosine(rate / 2, small.steps)
    problem = BilevelProblem(
        lambda w, _, pieces: small.loss(w, pieces), lambda w, _, pieces: small.loss(w, pieces)
    )
    learned = learn_schedules(
        problem,
        small.start(0),
        None,
        small.batches(0),
        jnp.asarray(small.text.validation[:held]),
        optimizer=adamw,
        start={name: np.asarray(value) for name, value in start.items()},
        steps=small.steps,
        iterations=iterations,
        group_of=group_of,
        knots=5,
        outer_optimizer=optax.adam(0.2),
        stacked=True,
        callbacks=[lambda report: bar.advance(incumbent=report.row["value"])],
    )
    order = [learned.groups.index(group) for group in GROUPS]
    return (
        rate,
        {n: jnp.asarray(v[:, order], jnp.float32) for n, v in learned.values.items()},
        learned,
    )


def retuned_at(large: Model, trials: int, held: int, bar: Any, seed: int) -> Schedules:
    """The best settings that TPE finds."""

    def settings(config: dict) -> Schedules:
        rates = [config[f"rate_{group}"] for group in GROUPS]
        return shaped(rates, config["decay"], config["rise"], config["end"], large.steps)

    def objective(config: dict) -> float:
        bar.advance()
        return large.bits(settings(config), 0, "validation", held)

    result = minimize(objective, SPACE, trials=trials, searcher=TPESearcher(SPACE, seed=seed))
    return settings(result.best_config)


@experiment(
    paper="Yang et al. 2022, arXiv:2203.03466; Maclaurin et al. 2015",
    options=[
        Option("small", 64, quick=16, help="width that is tuned at"),
        Option("large", 512, quick=32, help="width that is wanted"),
        Option("layers", 2, quick=1, help="of the transformer"),
        Option("steps", 60, quick=16, help="of a training"),
        Option("batch", 8, quick=4, help="pieces in a mini-batch"),
        Option("iterations", 10, quick=2, help="metagradients"),
        Option("most_trials", 60, quick=4, help="of TPE, if ten times the operations allow more"),
        Option("seeds", 5, quick=1, help="trainings that nothing was tuned on"),
        Option("held", 256, quick=64, help="validation pieces, and as many for the test"),
    ],
    claims=[
        Claim("within", "bits per byte, carried over / re-tuned by TPE", at_most=1.05, quick=1.2),
        Claim("defaults", "bits per byte, carried over / defaults", at_most=1.0, quick=1.1),
        Claim("learned", "the same / the small grid's cosine", at_most=1.0, quick=1.1),
        Claim("compute", "operations of tuning small / of TPE", at_most=0.1, quick=2.0),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune small, carry over, re-tune, compare."""
    options = context.options
    text = text_domains(LENGTH + 1, seed=options.seed)[DOMAIN]
    shape = (options.small, options.layers, options.steps, options.batch, text)
    small = Model(options.small, *shape)
    large = Model(options.large, *shape)
    plain = Model(options.large, *shape, kind="standard")
    grid = len(RATES) * small.operations(derivative=False)
    tuning = grid + options.iterations * small.operations(derivative=True)
    training = large.operations(derivative=False)
    trials = int(np.ceil(TIMES * tuning / training))
    count = min(trials, options.most_trials)
    total = options.iterations + count + 4 * options.seeds
    with context.progress("metagradients and trainings", total=total) as bar:
        rate, values, learned = learned_at(small, options.iterations, options.held, bar)
        again = retuned_at(large, count, options.held, bar, options.seed)
        common = cosine(1e-3, options.steps)
        rivals: dict[str, tuple[Model, Schedules, float]] = {
            "learned small, carried over": (large, values, tuning),
            "cosine of the small grid, carried over": (large, cosine(rate, options.steps), grid),
            "TPE at the large width": (large, again, count * training),
            "defaults, standard": (plain, common, 0.0),
        }
        bits: dict[str, list[float]] = {name: [] for name in rivals}
        for seed in range(1, 1 + options.seeds):
            for name, (model, settings, _) in rivals.items():
                bits[name].append(model.bits(settings, 1000 * seed, "test", options.held))
                bar.advance()
    mean = {name: float(np.mean(found)) for name, found in bits.items()}
    context.table(
        "held-out bits per byte at the large width",
        [
            {
                "settings": name,
                "mean": mean[name],
                "best": min(bits[name]),
                "worst": max(bits[name]),
                "operations to find them, large trainings": cost / training,
            }
            for name, (*_, cost) in rivals.items()
        ],
    )
    at = np.arange(options.steps)
    for setting in ("learning_rate", "weight_decay"):
        context.plot(
            setting,
            {group: Curve(at, np.asarray(values[setting])[:, g]) for g, group in enumerate(GROUPS)},
            x="training steps",
            y=f"{setting}, of the small width".replace("_", " "),
            y_scale="log",
        )
    if count < trials:
        context.say(f"TPE had {count} trials; ten times the operations were {trials}.")
    context.say(
        f"Learned at width {options.small}: validation loss {learned.losses[0]:.3f} to "
        f"{learned.losses.min():.3f} nats per byte."
    )
    carried, retuned, fixed, defaults = (
        mean[name]
        for name in (
            "learned small, carried over",
            "TPE at the large width",
            "cosine of the small grid, carried over",
            "defaults, standard",
        )
    )
    context.measure("within", carried / retuned)
    context.measure("defaults", carried / defaults)
    context.measure("learned", carried / fixed)
    context.measure("compute", tuning / (count * training))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
