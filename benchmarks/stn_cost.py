"""What a self-tuning training step costs over the plain training step of the same model.

`python -m benchmarks.stn_cost [--quick] [--cpu-time] [--out DIR]` trains a dense and a
convolutional classifier with dropout in two layers, input noise and weight decay, on batches of
random images of 28 x 28 pixels, by SGD with momentum. The plain step has the same regularisers at
fixed strengths.
Columns:

- `time`: median of the time ratios to the plain step, round by round, taken in turn; at most 2.2
  is wanted;
- `flops`: ratio of floating-point operations as XLA counts them, which other work on the machine
  cannot disturb;
- `parameters`: ratio of the numbers of trained weights; at most 2.5 is wanted.

`delta` is Delta-STN as it comes, with the response trained on half of each batch, `delta whole`
the same with the whole batch. `outer` is one step's gradient of the hyperparameters (with a learned
scale), of which there is one for every two training steps or fewer.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from benchmarks.measure import interleaved, options, ratio, report
from hypergrad.problem import BilevelProblem
from hypergrad.self_tuning import (
    Bounded,
    Hyperparameters,
    Perturbation,
    Positive,
    SelfTuning,
    SelfTuningModel,
    squared_norm,
    to_self_tuning,
)
from hypergrad.self_tuning.regularisers import dropout, input_noise

BOUNDS = {"time": 2.2, "parameters": 2.5}
OPTIMIZER = optax.sgd(0.01, momentum=0.9)


class Dense(eqx.Module):
    """784 - 512 - 512 - 10."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key: Array):
        sizes = (784, 512, 512, 10)
        keys = jax.random.split(key, 3)
        pairs = zip(sizes, sizes[1:], keys, strict=False)
        self.layers = [eqx.nn.Linear(a, b, key=k) for a, b, k in pairs]

    def __call__(self, x: Array, rates: Array, key: Array) -> Array:
        """Scores of one image."""
        x = x.ravel()
        for layer, rate, k in zip(self.layers, rates, jax.random.split(key, 2), strict=False):
            x = dropout(jax.nn.relu(layer(x)), rate, k)
        return self.layers[-1](x)


class Convolutional(eqx.Module):
    """Two convolutions of 5 x 5 with pooling, and two dense layers."""

    convolutions: list[eqx.nn.Conv2d]
    layers: list[eqx.nn.Linear]

    def __init__(self, key: Array):
        a, b, c, d = jax.random.split(key, 4)
        self.convolutions = [
            eqx.nn.Conv2d(1, 16, 5, padding=2, key=a),
            eqx.nn.Conv2d(16, 32, 5, padding=2, key=b),
        ]
        self.layers = [eqx.nn.Linear(32 * 49, 128, key=c), eqx.nn.Linear(128, 10, key=d)]

    def __call__(self, x: Array, rates: Array, key: Array) -> Array:
        """Scores of one image."""
        keys = jax.random.split(key, 2)
        for layer in self.convolutions:
            x = jax.nn.relu(layer(x))
            x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
        x = dropout(x.ravel(), rates[0], keys[0])
        x = dropout(jax.nn.relu(self.layers[0](x)), rates[1], keys[1])
        return self.layers[1](x)


HYPERPARAMETERS = Hyperparameters(
    {
        "dropout": Bounded(0.0, 0.9, initial=0.2, shape=(2,)),
        "noise": Bounded(0.0, 0.5, initial=0.1),
        "decay": Positive(1e-4),
    }
)


def inner(model: PyTree, hparams: PyTree, batch: PyTree, key: Array) -> Scalar:
    """Cross-entropy under noise and dropout, and weight decay."""
    images, labels = batch
    values = HYPERPARAMETERS.values(hparams)

    def scores(image: Array, key: Array) -> Array:
        noise_key, dropout_key = jax.random.split(key)
        noisy = input_noise(image, values["noise"], noise_key)
        return model(noisy, values["dropout"], dropout_key)

    logits = jax.vmap(scores)(images, jax.random.split(key, len(labels)))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    gated = model.gated if isinstance(model, SelfTuningModel) else model
    return loss + values["decay"] * squared_norm(gated)


def outer(model: PyTree, hparams: PyTree, batch: PyTree, key: Array) -> Scalar:
    """Cross-entropy."""
    images, labels = batch
    logits = jax.vmap(lambda image: model(image, jnp.zeros(2), key))(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


PROBLEM = BilevelProblem(inner, outer, stochastic=True)


def count(model: PyTree) -> int:
    """Number of weights."""
    return sum(a.size for a in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def run(
    name: str, model: PyTree, batch_size: int, repeats: int, clock: Callable[[], float]
) -> list[dict]:
    """The rows of one model."""
    key = jax.random.key(0)
    batch = (jax.random.normal(key, (batch_size, 1, 28, 28)), jnp.arange(batch_size) % 10)
    hparams = HYPERPARAMETERS.initial()
    weights, constant = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def plain(weights: PyTree, moments: PyTree, key: Array) -> tuple[PyTree, PyTree, Scalar]:
        value, grad = jax.value_and_grad(
            lambda w: inner(eqx.combine(w, constant), hparams, batch, key)
        )(weights)
        updates, moments = OPTIMIZER.update(grad, moments)
        return optax.apply_updates(weights, updates), moments, value

    converted = to_self_tuning(model, hparams, key=key)
    learned = Perturbation(0.5, optimizer=optax.rmsprop(1e-2))
    estimators = {
        "stn": SelfTuning(OPTIMIZER, perturbation=learned, centred=False),
        "delta": SelfTuning(OPTIMIZER, perturbation=learned),
        "delta whole": SelfTuning(OPTIMIZER, perturbation=learned, response_part=1.0),
    }
    moments = OPTIMIZER.init(weights)
    arguments: dict[str, tuple] = {"plain": (weights, moments, key)}
    programs = {"plain": plain.lower(*arguments["plain"]).compile()}
    for label, estimator in estimators.items():
        if label != "delta whole":
            state = estimator.init(PROBLEM, converted, hparams, batch, key=key)
        leaves, rest = eqx.partition(state, eqx.is_array)
        programs[label] = _lower(estimator, leaves, rest, hparams, batch).compile()
        arguments[label] = (leaves,)

    @jax.jit
    def tune(leaves: PyTree) -> PyTree:
        state = eqx.combine(leaves, rest)
        result = estimators["delta"].hypergradient(PROBLEM, state, hparams, batch, batch)
        return result.grad, eqx.filter(result.state.perturbation, eqx.is_array)

    programs["outer"], arguments["outer"] = tune.lower(leaves).compile(), (leaves,)
    functions = {label: partial(program, *arguments[label]) for label, program in programs.items()}
    seconds = interleaved(functions, repeats=repeats, clock=clock)
    flops = {label: program.cost_analysis()["flops"] for label, program in programs.items()}
    return [
        {
            "model": name,
            "step": label,
            "ms": 1e3 * median(seconds[label]),
            "time": ratio(seconds, label, "plain"),
            "flops": flops[label] / flops["plain"],
            "parameters": count(converted if label != "plain" else model) / count(model),
        }
        for label in functions
    ]


def _lower(
    estimator: SelfTuning, leaves: PyTree, rest: PyTree, hparams: PyTree, batch: PyTree
) -> jax.stages.Lowered:
    """One training step from the arrays of a state to those of the next."""

    @jax.jit
    def step(leaves: PyTree) -> PyTree:
        fitted, _ = estimator.fit(PROBLEM, eqx.combine(leaves, rest), hparams, batch)
        return eqx.filter(fitted, eqx.is_array)

    return step.lower(leaves)


def main() -> None:
    """Run both models and print the table."""
    arguments = options(__doc__.splitlines()[0]).parse_args()
    repeats = 5 if arguments.quick else 40
    key = jax.random.key(0)
    rows = run("dense", Dense(key), 128, repeats, arguments.clock)
    rows += run("convolutional", Convolutional(key), 64, repeats, arguments.clock)
    report("stn_cost", {"cost": rows}, BOUNDS, arguments)


if __name__ == "__main__":
    main()
