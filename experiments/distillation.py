"""Distil Fashion-MNIST into one synthetic image per class.

The hyperparameters are the pixels of ten training images; the inner problem trains a classifier on
those ten alone; the outer loss is that of the classifier on real images. Each outer step trains
from scratch and differentiates the whole training, so that what is learnt is in the images and not
in the weights. At the end classifiers are trained on the ten images from initialisations that the
images have never seen, and compared with training on ten real images, one per class.

Lorraine, Vicol and Duvenaud (2020), section 5.2; the cold start of Vicol et al. (2022).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import fashion_mnist
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.outer import Alternating, run
from hypergrad.unrolled import Unrolled

SIDE, CLASSES = 28, 10
NAMES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"
)  # fmt: skip
SCALE = 8.0  # brings the curvature of the inner loss near one
STEP = 0.5


def scores(w: jax.Array, images: jax.Array) -> jax.Array:
    """Linear classifier on pixels in [0, 1], with a bias."""
    return images @ w[:-1] / SCALE + w[-1]


def initialise(key: jax.Array) -> jax.Array:
    """Small random weights, shape `(785, 10)`."""
    return 0.01 * jax.random.normal(key, (SIDE**2 + 1, CLASSES), jnp.float32)


def soft_cross_entropy(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean loss for targets that are distributions over classes."""
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(scores), axis=1))


def distillation(ridge: float) -> BilevelProblem:
    """Train on `hparams["images"]` with labels `softmax(hparams["labels"])`, test on real ones."""

    def inner(w: jax.Array, hparams: dict, batch: None) -> jax.Array:
        targets = jax.nn.softmax(hparams["labels"])
        loss = soft_cross_entropy(scores(w, hparams["images"]), targets)
        return loss + 0.5 * ridge * jnp.sum(w**2)

    def outer(w: jax.Array, hparams: dict, batch: dict) -> jax.Array:
        return soft_cross_entropy(scores(w, batch["x"]), jax.nn.one_hot(batch["y"], CLASSES))

    return BilevelProblem(inner, outer)


def real(count: int, seed: int) -> tuple[dict, dict]:
    """That many real training images, and all test images."""
    source, held = fashion_mnist()
    rows = np.random.default_rng(seed).permutation(len(source.y))[:count]

    def batch(images: np.ndarray, labels: np.ndarray) -> dict:
        x = jnp.asarray(images.reshape(len(images), -1), jnp.float32) / 255
        return {"x": x, "y": jnp.asarray(labels, jnp.int32)}

    return batch(source.x[rows], source.y[rows]), batch(held.x, held.y)


def accuracy(w: jax.Array, batch: dict) -> float:
    """Percent right."""
    return 100 * float(jnp.mean(jnp.argmax(scores(w, batch["x"]), axis=1) == batch["y"]))


def blank(seed: int) -> dict:
    """Ten grey images with some noise, labelled with the classes in turn."""
    noise = np.random.default_rng(seed).normal(size=(CLASSES, SIDE**2))
    images = jnp.asarray(0.5 + 0.1 * noise, jnp.float32)
    return {"images": images, "labels": 4 * jnp.eye(CLASSES, dtype=jnp.float32)}


def train(problem: BilevelProblem, steps: int) -> Callable:
    """`train(w, hparams)`: plain gradient descent on the synthetic images."""

    @jax.jit
    def descend(w: jax.Array, hparams: dict) -> jax.Array:
        slope = jax.grad(problem.inner)

        def step(w: jax.Array, _: None) -> tuple[jax.Array, None]:
            return w - STEP * slope(w, hparams, None), None

        return jax.lax.scan(step, w, None, length=steps)[0]

    return descend


@experiment(
    paper="Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590; Vicol et al. 2022",
    options=[
        Option("steps", 400, quick=80, help="outer steps"),
        Option("inner_steps", 100, quick=50, help="training steps, each differentiated"),
        Option("real", 5000, quick=2000, help="real images of the outer loss"),
    ],
    claims=[
        Claim(
            "retrained",
            "test accuracy of classifiers trained afresh on the ten images, %",
            at_least=70.0,
        ),
        Claim(
            "over_real",
            "points of test accuracy above training on ten real images, one per class",
            at_least=10.0,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """Distil, show, and train afresh."""
    options = context.options
    problem = distillation(0.0)
    outer_data, test = real(options.real, options.seed)
    estimator = Unrolled(optax.sgd(STEP), options.inner_steps)
    start, *fresh = jax.random.split(jax.random.key(options.seed), 6)
    with context.progress("outer steps", total=options.steps) as bar:
        result = run(
            problem,
            Alternating(estimator, optax.adam(0.02)),
            initialise(start),
            blank(options.seed),
            None,
            outer_data,
            steps=options.steps,
            callbacks=[lambda report: bar.advance(incumbent=report.row["value"])],
        )
    learn = train(problem, options.inner_steps)
    afresh = [accuracy(learn(initialise(key), result.hparams), test) for key in fresh]
    rng = np.random.default_rng(options.seed)
    baselines = []
    labels = np.asarray(outer_data["y"])
    for key in fresh:
        rows = [rng.choice(np.flatnonzero(labels == c)) for c in range(CLASSES)]
        ten = {"images": outer_data["x"][np.array(rows)], "labels": blank(0)["labels"]}
        baselines.append(accuracy(learn(initialise(key), ten), test))

    with context.figure("images", width=9, height=2.2) as figure:
        panels = figure.subplots(1, CLASSES)
        for panel, image, name in zip(panels, result.hparams["images"], NAMES, strict=True):
            panel.imshow(np.asarray(image).reshape(SIDE, SIDE), cmap="gray")
            panel.set_title(name, fontsize=8)
            panel.axis("off")
    context.plot(
        "outer_loss",
        {
            "trained on ten synthetic images": Curve(
                [row["step"] for row in result.history], [row["value"] for row in result.history]
            )
        },
        x="outer steps",
        y="loss on real images",
    )
    context.table(
        "test accuracy of a linear classifier",
        [
            {"trained on": name, "accuracy %": np.mean(runs), "spread": np.std(runs)}
            for name, runs in (
                ("ten synthetic images, as distilled", [accuracy(result.params, test)]),
                ("ten synthetic images, afresh", afresh),
                ("ten real images", baselines),
            )
        ],
    )
    context.measure("retrained", float(np.mean(afresh)))
    context.measure("over_real", float(np.mean(afresh) - np.mean(baselines)))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
