"""Schedules of a language model's training: learned layer by layer, against tuned ones.

A byte-level model is trained on Python code by Adam. `learn_schedules` starts from the best
constant learning rate and moves, for each of three layers, learning rate, momentum and the weights
of the batches over time, by derivatives through the whole training. Against the constant, the
cosine and the trapezoid (a rise, a level, a fall), whose peak was tuned on a grid by the same
validation pieces.

What is learned is learned on one start and one order of batches. The table therefore has two
columns of held-out bits per byte: for that training, and for others (other start, other batches)
with the same schedules. The model has 29 thousand parameters. Searches on scalar knobs (TPE,
CMA-ES) are not among the rivals, nor are 300 steps of a model of millions of parameters.

Maclaurin, Duvenaud & Adams 2015; Engstrom et al. 2025, arXiv:2503.13751.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.byte_model import bits_per_byte, initial, layer_of, loss
from experiments.data.text import text_domains
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.schedule import learn_schedules

PROBLEM = BilevelProblem(loss, loss)
DOMAIN, LENGTH = "code", 32
MOMENTUM = 0.9
LEARNED = "learned, from the constant"
# Of the steps, for the trapezoid.
RISE, FALL = 0.1, 0.4


def adam(settings: dict) -> optax.GradientTransformation:
    """With a derivative also where a byte never occurs."""
    return optax.adam(settings["learning_rate"], b1=settings["momentum"], eps_root=1e-8)


def trapezoid(peak: float, steps: int) -> optax.Schedule:
    """Linear rise, level, linear fall to zero."""
    rise, fall = max(1, round(RISE * steps)), max(1, round(FALL * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / rise, peak, rise),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, fall),
        ],
        [rise, steps - fall],
    )


SHAPES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "trapezoid": trapezoid,
}


@experiment(
    paper="Maclaurin et al. 2015; Engstrom et al. 2025, arXiv:2503.13751",
    options=[
        Option("steps", 120, quick=20, help="steps of a training"),
        Option("batch", 16, quick=8, help="pieces in a mini-batch"),
        Option("iterations", 15, quick=3, help="metagradient steps"),
        Option("peaks", 8, quick=3, help="peaks on the grid, for each shape"),
        Option("others", 5, quick=2, help="other trainings with the same schedules"),
        Option("held", 512, quick=256, help="validation pieces, and as many for the test"),
    ],
    claims=[
        Claim(
            "below_constant",
            "bits per byte below the tuned constant, other trainings",
            at_least=0.0,
        ),
        Claim(
            "below_tuned",
            "bits per byte below the best tuned schedule, other trainings",
            at_least=0.0,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune on a grid, learn, compare."""
    options = context.options
    steps = options.steps
    domain = text_domains(LENGTH, seed=options.seed)[DOMAIN]
    rng = np.random.default_rng(options.seed)
    validation = jnp.asarray(domain.validation[: options.held])
    test = jnp.asarray(domain.test[: options.held])

    def order() -> jax.Array:
        rows = rng.integers(0, len(domain.train), size=(steps, options.batch))
        return jnp.asarray(domain.train[rows])

    params, batches = initial(options.seed), order()
    others = [(initial(1000 + i), order()) for i in range(options.others)]

    @jax.jit
    def train(values: dict, params: dict, batches: jax.Array) -> dict:
        """One learning rate for all layers, over the steps."""

        def step(carry: tuple, now: tuple) -> tuple[tuple, None]:
            (w, state), (rate, batch) = carry, now
            optimizer = adam({"learning_rate": rate, "momentum": MOMENTUM})
            updates, state = optimizer.update(jax.grad(loss)(w, None, batch), state, w)
            return (optax.apply_updates(w, updates), state), None

        state = adam({"learning_rate": values[0], "momentum": MOMENTUM}).init(params)
        return jax.lax.scan(step, (params, state), (values, batches))[0][0]

    def over_steps(schedule: optax.Schedule) -> jax.Array:
        return jnp.asarray([float(schedule(t)) for t in range(steps)], jnp.float32)

    peaks = np.geomspace(1e-3, 0.1, options.peaks)
    ends: dict[str, dict] = {}
    rates: dict[str, jax.Array] = {}
    tuned_peak = {}
    with context.progress(
        "trainings and metagradients", total=len(SHAPES) * options.peaks + options.iterations
    ) as bar:
        for name, shape in SHAPES.items():
            tried = {}
            for peak in peaks:
                end = train(over_steps(shape(float(peak), steps)), params, batches)
                tried[float(peak)] = (bits_per_byte(end, validation), end)
                bar.advance()
            best = min(tried, key=lambda peak: tried[peak][0])
            tuned_peak[name], ends[name] = best, tried[best][1]
            rates[name] = over_steps(shape(best, steps))
        learned = learn_schedules(
            PROBLEM,
            params,
            None,
            batches,
            validation,
            optimizer=adam,
            start={
                "learning_rate": tuned_peak["constant"],
                "momentum": MOMENTUM,
                "batch_weight": 1.0,
            },
            steps=steps,
            iterations=options.iterations,
            group_of=layer_of,
            stacked=True,
            callbacks=[lambda report: bar.advance(incumbent=report.row["value"])],
        )

    optimizer = learned.optimizer(adam, layer_of)

    @jax.jit
    def again(params: dict, batches: jax.Array) -> dict:
        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, None]:
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w, None, batch), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    ends[LEARNED] = again(params, batches)
    elsewhere = {
        name: [bits_per_byte(train(rate, *other), test) for other in others]
        for name, rate in rates.items()
    }
    elsewhere[LEARNED] = [bits_per_byte(again(*other), test) for other in others]
    mean = {name: float(np.mean(values)) for name, values in elsewhere.items()}
    context.table(
        "held-out bits per byte",
        [
            {
                "schedule": name,
                "peak": tuned_peak.get(name, float(learned.values["learning_rate"].max())),
                "tuned on this training": bits_per_byte(ends[name], test),
                "other trainings": mean[name],
                "of them the worst": max(elsewhere[name]),
            }
            for name in ends
        ],
    )
    at = np.arange(steps)
    context.plot(
        "learning rates",
        {name: Curve(at, np.asarray(rate)) for name, rate in rates.items()}
        | {
            f"learned, {group}": Curve(at, learned.values["learning_rate"][:, g])
            for g, group in enumerate(learned.groups)
        },
        x="training steps",
        y="learning rate",
        y_scale="log",
    )
    context.plot(
        "validation loss",
        {"learned": Curve(np.arange(len(learned.losses)), learned.losses)},
        x="metagradient steps",
        y="validation loss, nats per byte",
    )
    context.measure("below_constant", mean["constant"] - mean[LEARNED])
    context.measure("below_tuned", min(mean[name] for name in SHAPES) - mean[LEARNED])


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
