"""Hyper-cleaning: half of the training labels are random; one weight per example finds out which.

Fashion-MNIST, softmax regression. Each training example has a weight in (0, 1), tuned by the
hypergradient of the loss on a small clean validation set. Compared with training on everything, and
with training on the clean examples alone, which only an oracle can do. A fourth row trains on the
validation images alone: that is what the clean labels are worth without the dirty ones.

Franceschi et al., "Forward and reverse gradient-based hyperparameter optimization" (2017), section
5.1, with implicit differentiation in place of unrolling and a sigmoid in place of a budget.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import fashion_mnist
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import Alternating, StepReport, run

RIDGE = 3e-5


def features(images: np.ndarray) -> jax.Array:
    """Pixels scaled so that a unit step nearly descends, and a constant, shape `(n, 785)`."""
    x = images.reshape(len(images), -1) / np.float32(255 * 8)
    return jnp.asarray(np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1))


def losses(w: jax.Array, batch: dict) -> jax.Array:
    """Cross-entropy of each example."""
    scores = jax.nn.log_softmax(batch["x"] @ w)
    return -jnp.take_along_axis(scores, batch["y"][:, None], axis=1)[:, 0]


def weighted(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Inner loss: each example counts as much as its weight says."""
    return jnp.mean(jax.nn.sigmoid(hparams) * losses(w, batch)) + RIDGE * jnp.sum(w**2)


def clean(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Outer loss: cross-entropy on the validation set."""
    return jnp.mean(losses(w, batch))


PROBLEM = BilevelProblem(weighted, clean)


def solver(steps: int) -> OptaxSolver:
    """Accelerated gradient descent."""
    return OptaxSolver(optax.sgd(0.7, momentum=0.95, nesterov=True), steps=steps)


def rank_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive example scores above a negative one."""
    ranks = np.argsort(np.argsort(score)) + 1.0
    n = positive.sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


@experiment(
    paper="Franceschi, Donini, Frasconi and Pontil 2017, arXiv:1703.01785",
    options=[
        Option("train", 2000, quick=500, help="training examples"),
        Option("validation", 1000, quick=500, help="validation examples, clean"),
        Option("steps", 80, quick=15, help="outer steps"),
        Option("corrupted", 0.5, help="share of training labels replaced by random ones"),
    ],
    claims=[
        Claim("above_all", "points of test accuracy above training on all", at_least=5.0),
        Claim(
            "below_clean",
            "points of test accuracy below training on the clean examples only",
            at_most=1.5,
        ),
        Claim("auc", "the weights rank corrupted examples below clean ones (AUC)", at_least=0.85),
    ],
)
def run_experiment(context: Context) -> None:
    """Corrupt, tune, compare."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    source, held = fashion_mnist()
    rows = rng.permutation(len(source.y))[: options.train + options.validation]
    x, y = features(source.x[rows]), source.y[rows].astype(np.int32)
    labels = y[: options.train].copy()
    touched = rng.random(options.train) < options.corrupted
    labels[touched] = rng.integers(0, 10, touched.sum())
    wrong = labels != y[: options.train]
    train = {"x": x[: options.train], "y": jnp.asarray(labels)}
    validation = {"x": x[options.train :], "y": jnp.asarray(y[options.train :])}
    test_x = features(held.x)

    def accuracy(w: jax.Array) -> float:
        return 100 * float(np.mean(np.argmax(np.asarray(test_x @ w), axis=1) == held.y))

    zero = jnp.zeros((x.shape[1], 10), jnp.float32)
    train_fully = jax.jit(lambda h, batch: solver(3000).run(PROBLEM, zero, h, batch).params)

    algorithm = Alternating(
        ImplicitDifferentiation(solver(200), CG(tol=1e-3, max_steps=100), error_estimate=False),
        optax.adam(0.3),
    )
    tested = []
    with context.progress("outer steps", total=options.steps) as bar:

        def watch(report: StepReport) -> None:
            tested.append(accuracy(report.state.params))
            bar.advance(incumbent=report.row["value"])

        result = run(
            PROBLEM,
            algorithm,
            zero,
            jnp.zeros(options.train, jnp.float32),
            train,
            validation,
            steps=options.steps,
            callbacks=[watch],
        )

    weights = np.asarray(jax.nn.sigmoid(result.hparams))
    oracle = jnp.where(jnp.asarray(wrong), -40.0, 40.0).astype(jnp.float32)
    everything = jnp.full(options.train, 40.0, jnp.float32)
    scores = {
        "all": accuracy(train_fully(everything, train)),
        "tuned weights": accuracy(train_fully(result.hparams, train)),
        "clean only (oracle)": accuracy(train_fully(oracle, train)),
        "validation images only": accuracy(
            train_fully(jnp.full(options.validation, 40.0, jnp.float32), validation)
        ),
    }
    flagged = weights < 0.5
    precision = float(np.mean(wrong[flagged])) if flagged.any() else float("nan")
    recall = float(np.mean(flagged[wrong]))
    steps = np.arange(1, options.steps + 1)
    flat = {
        name: Curve(steps, np.full(options.steps, score))
        for name, score in scores.items()
        if name != "tuned weights"
    }
    context.plot(
        "accuracy",
        {"tuned weights": Curve(steps, tested), **flat},
        x="outer steps",
        y="test accuracy, %",
    )
    with context.figure("weights") as figure:
        axes = figure.subplots()
        bins = np.linspace(0, 1, 41)
        axes.hist(weights[~wrong], bins, alpha=0.7, label="label is right", color="#0072B2")
        axes.hist(weights[wrong], bins, alpha=0.7, label="label is wrong", color="#D55E00")
        axes.set(xlabel="weight found", ylabel="examples")
        axes.legend(frameon=False)
    context.table(
        "test accuracy",
        [{"trained on": name, "accuracy %": score} for name, score in scores.items()],
    )
    auc = rank_auc(-weights, wrong)
    context.table(
        "corruption found (weight below one half)",
        [
            {
                "wrong labels": int(wrong.sum()),
                "flagged": int(flagged.sum()),
                "precision": precision,
                "recall": recall,
                "AUC": auc,
            }
        ],
    )
    context.measure("above_all", scores["tuned weights"] - scores["all"])
    context.measure("below_clean", scores["clean only (oracle)"] - scores["tuned weights"])
    context.measure("auc", auc)


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
