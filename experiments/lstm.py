"""A character LSTM whose dropout rates are tuned by Delta-STN, against fixed rates.

The text is the Constitution and the Declaration of Independence of the United States, in the public
domain, from Debian's package `miscfiles`; the quick run reads "The Zen of Python" (PEP 20, public
domain too), which Python ships as the module `this`. The last fifth of the text is the validation
set. Tuned are the rates of dropout on the embedded characters, on the recurrent input and on the
output of the cell, and the weight decay. Every sequence of a batch has its own perturbation of
them; its masks are the same at all times of the sequence.
"""

import codecs
import contextlib
import gzip
import io
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.data.files import data_folder
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Bounded,
    Hyperparameters,
    Perturbation,
    Positive,
    SelfTuning,
    SelfTuningModel,
    Tuner,
    squared_norm,
    to_self_tuning,
)

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
HYPERPARAMETERS = Hyperparameters(
    {"dropout": Bounded(0.0, 0.8, initial=0.1, shape=(3,)), "decay": Positive(1e-6)}
)


def read(name: str) -> str:
    """The text `"constitution"` or `"zen"`."""
    if name == "zen":
        with contextlib.redirect_stdout(io.StringIO()):
            import this
        return codecs.decode(this.s, "rot13")
    texts = []
    for part in ("us-constitution", "us-declaration"):
        places = [data_folder() / "miscfiles" / f"{part}.gz", Path(f"/usr/share/state/{part}.gz")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{part}.gz is not on this machine (looked at {', '.join(map(str, places))}). On "
                "Debian and Ubuntu: apt-get install miscfiles."
            )
        texts.append(gzip.decompress(path.read_bytes()).decode("ascii", "replace"))
    return "\n".join(texts)


def sequences(text: str, length: int) -> tuple[Array, Array, int]:
    """Training and validation sequences of `length + 1` characters, and the alphabet's size."""
    alphabet = sorted(set(text))
    codes = np.array([alphabet.index(character) for character in text])
    train, valid = np.split(codes, [int(0.8 * len(codes))])
    starts = np.arange(0, len(train) - length - 1, max(1, length // 4))
    pieces = np.stack([train[s : s + length + 1] for s in starts])
    held = np.stack([valid[s : s + length + 1] for s in range(0, len(valid) - length, length)])
    return jnp.asarray(pieces), jnp.asarray(held), len(alphabet)


class Language(eqx.Module):
    """Embedding, LSTM cell, and a dense layer for the next character."""

    embedding: eqx.nn.Embedding
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, alphabet: int, width: int, key: Array):
        a, b, c = jax.random.split(key, 3)
        self.embedding = eqx.nn.Embedding(alphabet, width // 2, key=a)
        self.cell = eqx.nn.LSTMCell(width // 2, width, key=b)
        self.head = eqx.nn.Linear(width, alphabet, key=c)

    def __call__(self, characters: Array, rates: Array, key: Array | None = None) -> Array:
        """Scores of the next character at each place; with `key`, dropout at `rates`."""
        width = self.cell.hidden_size
        sizes = (self.embedding.weight.shape[1], width, width)
        masks = [jnp.ones(size) for size in sizes]
        if key is not None:
            kept = 1 - jax.lax.stop_gradient(rates)
            keys = jax.random.split(key, 3)
            masks = [
                jax.random.bernoulli(k, keep, (size,)) / keep
                for k, keep, size in zip(keys, kept, sizes, strict=True)
            ]

        def step(hidden: tuple[Array, Array], character: Array) -> tuple:
            h, c = hidden
            h, c = self.cell(self.embedding(character) * masks[0], (h * masks[1], c))
            return (h, c), self.head(h * masks[2])

        start = (jnp.zeros(width), jnp.zeros(width))
        return jax.lax.scan(step, start, characters)[1]


def cross_entropy(model: PyTree, batch: Array, rates: Array, keys: Array | None = None) -> Scalar:
    """Mean cross-entropy of the next character, in nats."""
    if keys is None:
        scores = jax.vmap(lambda s: model(s[:-1], rates))(batch)
    else:
        scores = jax.vmap(lambda s, k: model(s[:-1], rates, k))(batch, keys)
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[:, 1:]).mean()


def training_loss(model: PyTree, values: dict, batch: Array, key: Array) -> Scalar:
    """Cross-entropy under dropout, and weight decay."""
    gated = model.gated if isinstance(model, SelfTuningModel) else model
    keys = jax.random.split(key, len(batch))
    decay = values["decay"] * squared_norm(gated)
    return cross_entropy(model, batch, values["dropout"], keys) + decay


class Trainer:
    """Trainings with fixed values in rounds of `steps` steps; one compiled program for all."""

    def __init__(self, network: Language, train: Array, valid: Array, steps: int, size: int):
        self.weights, rest = eqx.partition(network, eqx.is_inexact_array)

        def step(values: dict, carry: tuple, _: None) -> tuple[tuple, None]:
            weights, moments, key = carry
            batch_key, loss_key, key = jax.random.split(key, 3)
            batch = train[jax.random.randint(batch_key, (size,), 0, len(train))]
            grad = jax.grad(lambda w: training_loss(eqx.combine(w, rest), values, batch, loss_key))(
                weights
            )
            updates, moments = OPTIMIZER.update(grad, moments)
            return (optax.apply_updates(weights, updates), moments, key), None

        @jax.jit
        def advance(carry: tuple, values: dict) -> tuple[tuple, Scalar]:
            carry, _ = jax.lax.scan(partial(step, values), carry, None, length=steps)
            return carry, cross_entropy(eqx.combine(carry[0], rest), valid, jnp.zeros(3))

        self._advance = advance

    def run(self, values: dict, rounds: int, key: Array) -> list[float]:
        """The validation loss after each round."""
        carry, losses = (self.weights, OPTIMIZER.init(self.weights), key), []
        for _ in range(rounds):
            carry, value = self._advance(carry, values)
            losses.append(float(value))
        return losses


@experiment(
    paper="MacKay et al. 2019, arXiv:1903.03088, section 5.2",
    options=[
        Option("text", "constitution", quick="zen", choices=("constitution", "zen")),
        Option("width", 96, quick=24, help="hidden units"),
        Option("length", 64, quick=16, help="characters of a sequence"),
        Option("rounds", 40, quick=5, help="rounds of training"),
        Option("steps", 100, quick=40, help="training steps of a round"),
        Option("batch", 32, quick=16, help="sequences of a batch"),
    ],
    claims=[
        Claim(
            "fixed",
            "lowest validation loss of one tuned training over the best of four fixed rates",
            at_most=1.02,
        )
    ],
)
def run(context: Context) -> None:
    """Tuned once, and trained with four fixed rates."""
    options = context.options
    train, valid, alphabet = sequences(read(options.text), options.length)
    key = jax.random.key(options.seed)
    network = Language(alphabet, options.width, key)

    problem = BilevelProblem(
        lambda m, h, b, k: training_loss(m, HYPERPARAMETERS.values(h), b, k),
        lambda m, h, b, k: cross_entropy(m, b, jnp.zeros(3)),
        stochastic=True,
    )
    estimator = SelfTuning(OPTIMIZER, perturbation=Perturbation(0.5, optimizer=optax.adam(3e-3)))
    tuner = Tuner(
        problem, estimator, optimizer=optax.adam(3e-2), warmup=options.rounds * options.steps // 10
    )
    hparams = HYPERPARAMETERS.initial()
    model = to_self_tuning(network, hparams, key=key)
    rng = np.random.default_rng(options.seed)

    def batch(data: Array) -> Array:
        return data[rng.integers(0, len(data), options.batch)]

    state = tuner.init(model, hparams, batch(train), key=key)
    evaluate = eqx.filter_jit(partial(cross_entropy, rates=jnp.zeros(3)))
    tuned = []
    schedules = []
    with context.progress("Delta-STN", total=options.rounds) as progress:
        for _ in range(options.rounds):
            pairs = [(batch(train), batch(valid)) for _ in range(options.steps)]
            state, schedule = tuner.run(state, pairs, values=HYPERPARAMETERS.values)
            schedules.append(schedule.final)
            tuned.append(float(evaluate(state.estimator.params, valid)))
            progress.advance(incumbent=min(tuned))

    curves = {"Delta-STN": tuned}
    trainer = Trainer(network, train, valid, options.steps, options.batch)
    with context.progress("fixed rates", total=4) as progress:
        for rate in (0.0, 0.2, 0.4, 0.6):
            values = {"dropout": jnp.full(3, rate), "decay": jnp.asarray(1e-6)}
            curves[f"dropout {rate}"] = trainer.run(values, options.rounds, key)
            progress.advance(incumbent=min(curves[f"dropout {rate}"]))
    x = np.arange(1, options.rounds + 1) * options.steps
    bits = {name: Curve(x, np.array(loss) / np.log(2)) for name, loss in curves.items()}
    context.plot("loss", bits, x="training steps", y="validation loss in bits a character")
    rates = np.array([values["dropout"] for values in schedules])
    names = ("embedding", "recurrent", "output")
    context.plot(
        "schedule",
        {name: Curve(x, rates[:, index]) for index, name in enumerate(names)},
        x="training steps",
        y="tuned dropout rate",
    )
    fixed = min(min(losses) for name, losses in curves.items() if name != "Delta-STN")
    context.measure("fixed", min(tuned) / fixed)


if __name__ == "__main__":
    raise SystemExit(run.main())
