"""Learn how to augment a small training set, by the hypergradient of the validation loss.

500 images of Fashion-MNIST to train on. A small network looks at the image and at noise and answers
with a shift, a zoom in each direction, a brightness and a graininess, each within bounds; it begins
close to doing nothing. Its weights are the hyperparameters: they act inside the training loss only,
and are tuned by a Neumann series while a convolutional classifier trains. The best network seen is
kept. Then classifiers are trained from scratch with it, and without, for the same number of steps.

A classifier of few images is far too sure of itself, and any augmentation that makes it doubt
lowers the validation loss, beyond what helps it to be right. So the temperature of the validation
loss is one more hyperparameter, with a direct derivative only.

The validation images have labels, too. What they are worth as training images, without any
augmentation, is the last row of the table.

Lorraine, Vicol and Duvenaud, "Optimizing millions of hyperparameters by implicit differentiation"
(2020), section 5.3.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.data import fashion_mnist
from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.millions import convolutional, convolutional_scores
from hypergrad import BilevelProblem, ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear.neumann import Neumann
from hypergrad.outer import Alternating, Minibatches, StepReport, run

SIDE = 28
RATE = 2e-3
WARPS = ("shift down", "shift across", "zoom down", "zoom across", "brightness", "graininess")
LARGEST = (3.0, 3.0, 0.3, 0.3, 0.3, 0.2)  # pixels, logarithms, and a share of full brightness
FIRST = 0.1  # share of the largest
RIDGE = 3e-3
POOLED, UNITS = 49, 16


# -- the augmentation network ----------------------------------------------------------------


def nothing(key: Array) -> dict:
    """Weights of an augmentation close to doing nothing, a thousand of them.

    `direct` takes noise to warps; the hidden layer, whose answer is zero at first, adds what the
    image has to say.
    """
    inputs = POOLED + len(WARPS)
    return {
        "direct": FIRST * jnp.eye(len(WARPS), dtype=jnp.float32),
        "hidden": jax.random.normal(key, (inputs, UNITS), jnp.float32) / np.sqrt(inputs),
        "bias": jnp.zeros(UNITS, jnp.float32),
        "out": jnp.zeros((UNITS, len(WARPS)), jnp.float32),
    }


def warps(network: dict, images: jax.Array, key: Array) -> jax.Array:
    """What to do to each image, `(n, 6)`."""
    noise = jax.random.normal(key, (len(images), len(WARPS)), images.dtype)
    pooled = images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, POOLED)
    inputs = jnp.concatenate([pooled, noise], axis=1)
    hidden = jnp.tanh(inputs @ network["hidden"] + network["bias"])
    wanted = noise @ network["direct"] + hidden @ network["out"]
    return jnp.asarray(LARGEST, images.dtype) * jnp.tanh(wanted)


def resampling(shift: jax.Array, zoom: jax.Array) -> jax.Array:
    """Matrices `(n, 28, 28)` that interpolate columns of pixels linearly, black outside."""
    middle = (SIDE - 1) / 2
    wanted = jnp.exp(zoom)[:, None] * (jnp.arange(SIDE) - middle) + shift[:, None] + middle
    return jax.nn.relu(1 - jnp.abs(wanted[:, :, None] - jnp.arange(SIDE)))


def augment(network: dict, images: jax.Array, key: Array) -> jax.Array:
    """Each image `(28, 28)` changed by a draw of its own."""
    draw, grain = jax.random.split(key)
    z = warps(network, images, draw)
    down, across = resampling(z[:, 0], z[:, 2]), resampling(z[:, 1], z[:, 3])
    moved = down @ images @ across.transpose(0, 2, 1) * jnp.exp(z[:, 4])[:, None, None]
    return moved + z[:, 5, None, None] * jax.random.normal(grain, images.shape, images.dtype)


# -- the classifier --------------------------------------------------------------------------


def scores(params: list, images: jax.Array) -> jax.Array:
    """Scores of the classes."""
    return convolutional_scores(params, images.reshape(len(images), -1))


def cross_entropy(
    params: list, images: jax.Array, labels: jax.Array, log_temperature: jax.Array | float = 0.0
) -> jax.Array:
    """Mean loss of the classifier at a temperature."""
    logs = jax.nn.log_softmax(scores(params, images) * jnp.exp(-log_temperature))
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))


def training_loss(params: list, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The same, at temperature one and with an L2 penalty."""
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return cross_entropy(params, images, labels) + 0.5 * RIDGE * squares


PROBLEM = BilevelProblem(
    lambda p, h, b, key: training_loss(p, augment(h["network"], b["x"], key), b["y"]),
    lambda p, h, b, key: cross_entropy(p, b["x"], b["y"], h["log_temperature"]),
    stochastic=True,
)


def train(network: dict | None, data: dict, steps: int, key: Array) -> list:
    """A classifier from scratch, with the augmentation or (`None`) without; batches of 100."""
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    start, run_key = jax.random.split(key)
    params = convolutional(start)

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        params, state = carry
        rows, noise = jax.random.split(key)
        chosen = jax.random.randint(rows, (100,), 0, len(data["y"]))
        x, y = data["x"][chosen], data["y"][chosen]
        x = x if network is None else augment(network, x, noise)
        update, state = optimizer.update(jax.grad(training_loss)(params, x, y), state)
        return (optax.apply_updates(params, update), state), None

    first = (params, optimizer.init(params))
    return jax.lax.scan(step, first, jax.random.split(run_key, steps))[0][0]


# -- the experiment --------------------------------------------------------------------------


@experiment(
    paper="Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590",
    options=[
        Option("train", 500, help="training images"),
        Option("validation", 1000, help="validation images"),
        Option("steps", 600, quick=40, help="outer steps, five training steps each"),
        Option("training", 4000, quick=200, help="steps of a training from scratch"),
        Option("seeds", 3, quick=1, help="trainings from scratch"),
    ],
    claims=[
        Claim(
            "gain",
            "points of test accuracy gained by the augmentation",
            at_least=0.5,
            quick=-6.0,
        ),
        Claim(
            "shift",
            "the shift learnt is larger than the first, times",
            at_least=1.5,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune the augmentation, then train with it and without."""
    options = context.options
    source, held = fashion_mnist()
    rows = np.random.default_rng(options.seed).permutation(len(source.y))

    def batch(images: np.ndarray, labels: np.ndarray) -> dict:
        x = jnp.asarray(images, jnp.float32) / 255
        return {"x": x, "y": jnp.asarray(labels, jnp.int32)}

    cut = options.train + options.validation
    data = batch(source.x[rows[: options.train]], source.y[rows[: options.train]])
    validation = batch(source.x[rows[options.train : cut]], source.y[rows[options.train : cut]])
    together = batch(source.x[rows[:cut]], source.y[rows[:cut]])
    test = batch(held.x, held.y)
    start, begin, draws, *keys = jax.random.split(jax.random.key(options.seed), options.seeds + 3)
    first = nothing(begin)
    estimator = ImplicitDifferentiation(
        OptaxSolver(optax.adam(RATE), steps=1),
        Neumann(products=10, step=0.02),
        error_estimate=False,
    )
    every = max(options.steps // 25, 1)
    shifts: list[float] = []

    @jax.jit
    def spread(network: dict) -> jax.Array:
        """Standard deviation of each warp, over images and draws."""
        ten = jax.vmap(lambda key: warps(network, data["x"], key))(jax.random.split(draws, 10))
        return jnp.std(ten.reshape(-1, len(WARPS)), axis=0)

    with context.progress("outer steps", total=options.steps) as bar:

        def watch(report: StepReport) -> None:
            shifts.append(float(jnp.mean(spread(report.state.hparams["network"])[:2])))
            bar.advance(every, incumbent=report.row["validation"])

        result = run(
            PROBLEM,
            Alternating(estimator, optax.adam(0.01), fits=5),
            convolutional(start),
            {"network": first, "log_temperature": jnp.zeros((), jnp.float32)},
            data,
            validation,
            steps=options.steps,
            every=every,
            seed=options.seed,
            sampler=Minibatches(100, 500, policy="fresh", fits=5),
            callbacks=[watch],
        )
    network = result.best.hparams["network"]

    def accuracies(network: dict | None, data: dict) -> list[float]:
        learn = jax.jit(lambda key: train(network, data, options.training, key))
        guesses = [jnp.argmax(scores(learn(key), test["x"]), axis=1) for key in keys]
        return [100 * float(jnp.mean(guess == test["y"])) for guess in guesses]

    found = {
        "none": accuracies(None, data),
        "learnt": accuracies(network, data),
        "none, validation images trained on, too": accuracies(None, together),
    }
    context.table(
        "test accuracy after training from scratch",
        [
            {"augmentation": name, "accuracy %": np.mean(runs), "spread": np.std(runs)}
            for name, runs in found.items()
        ],
    )
    before, after = spread(first), spread(network)
    context.table(
        "augmentation learnt (standard deviations over images and draws)",
        [
            {"warp": name, "at first": float(a), "learnt": float(b)}
            for name, a, b in zip(WARPS, before, after, strict=True)
        ],
    )
    context.plot(
        "shift",
        {"mean over both directions": Curve(every * np.arange(1, len(shifts) + 1), shifts)},
        x="outer steps",
        y="standard deviation of the shift, pixels",
    )
    with context.figure("augmented", width=8, height=3) as figure:
        panels = figure.subplots(3, 10)
        pictures = [data["x"][:10]]
        pictures += [augment(network, data["x"][:10], jax.random.key(i)) for i in range(2)]
        for row, images in zip(panels, pictures, strict=True):
            for panel, image in zip(row, images, strict=True):
                panel.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1)
                panel.axis("off")
    context.measure("gain", float(np.mean(found["learnt"]) - np.mean(found["none"])))
    context.measure("shift", float(jnp.mean(after[:2]) / jnp.mean(before[:2])))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
