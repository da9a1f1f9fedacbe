"""Half of the labels are wrong: which examples to train on, by metagradients and by rules of thumb.

Softmax regression on digits, trained by gradient descent with momentum; half of the training labels
are replaced by other classes. A clean validation set says what a training is worth. `select` looks
for the subset of half the size by exchanging examples, `weigh` for a weight for each; both take the
derivative through the whole training. Against all data, the examples with the right labels (which
only an oracle knows), the half with the lowest EL2N and GraNd scores (norm of the error, and of the
gradient, early in ten trainings from other starts), the half with the lowest loss after training,
and the validation examples alone.

Paul, Ganguli & Dziugaite 2021 for EL2N and GraNd, which keep the highest scores where labels are
right; where half are wrong the lowest ones are the better choice. Engstrom et al. 2025 for
selection by metagradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.data import WeightedExamples, select, weigh
from hypergrad.unrolled import Unrolled

CLASSES, EARLY, STARTS = 10, 20, 10
RATE, MOMENTUM, RIDGE = 0.5, 0.9, 1e-3


def losses(w: jax.Array, batch: tuple) -> jax.Array:
    """Cross-entropy of each example."""
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(x @ w, y)


def clean(w: jax.Array, hparams: None, batch: tuple) -> jax.Array:
    """Outer loss."""
    return jnp.mean(losses(w, batch))


def penalised(w: jax.Array, hparams: None, batch: tuple) -> jax.Array:
    """Inner loss."""
    return clean(w, hparams, batch) + 0.5 * RIDGE * jnp.sum(w**2)


PROBLEM = BilevelProblem(penalised, clean)


def features(x: np.ndarray) -> jax.Array:
    """Pixels in [0, 1] and a constant."""
    return jnp.asarray(np.concatenate([x / 16, np.ones((len(x), 1))], axis=1), jnp.float32)


@experiment(
    paper="Engstrom et al. 2025, arXiv:2503.13751; Paul et al. 2021",
    compiles=True,
    options=[
        Option("train", 800, quick=200, help="training examples"),
        Option("validation", 300, quick=150, help="validation examples, clean"),
        Option("inner_steps", 100, quick=25, help="steps of a training"),
        Option("steps", 40, quick=8, help="metagradient steps"),
        Option("corrupted", 0.5, help="share of the training labels that are wrong"),
    ],
    claims=[
        Claim(
            "below_oracle",
            "points of test accuracy below the oracle, the better of the two",
            at_most=0.5,
            quick=3.0,
        ),
        Claim("above_all", "points of test accuracy above training on all", at_least=1.0),
        Claim("kept_right", "share of right labels in the subset", at_least=0.8),
    ],
)
def run_experiment(context: Context) -> None:
    """Corrupt, select, weigh, compare."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    data = tabular("digits", seed=options.seed, fractions=(0.2, 0.3))
    x, truth = features(data.train.x[: options.train]), data.train.y[: options.train]
    count = len(truth)
    wrong = np.zeros(count, bool)
    wrong[rng.permutation(count)[: round(options.corrupted * count)]] = True
    labels = np.where(wrong, (truth + rng.integers(1, CLASSES, count)) % CLASSES, truth)
    examples = (x, jnp.asarray(labels, jnp.int32))
    valid = slice(0, options.validation)
    queries = (
        features(data.validation.x[valid]),
        jnp.asarray(data.validation.y[valid], jnp.int32),
    )
    test_x = features(data.test.x)
    start = jnp.zeros((x.shape[1], CLASSES), jnp.float32)
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    estimator = Unrolled(optimizer, options.inner_steps)

    def trainer(steps: int, examples: tuple) -> Callable:
        weighted = WeightedExamples(PROBLEM, None, examples)
        everyone = jnp.arange(weighted.size)

        @jax.jit
        def train(weights: jax.Array, w: jax.Array) -> jax.Array:
            def step(carry: tuple, _: None) -> tuple[tuple, None]:
                w, state = carry
                gradient = jax.grad(lambda w: weighted(w, weights, everyone))(w)
                updates, state = optimizer.update(gradient, state, w)
                return (optax.apply_updates(w, updates), state), None

            return jax.lax.scan(step, (w, optimizer.init(w)), length=steps)[0][0]

        return train

    train = trainer(options.inner_steps, examples)
    early = trainer(min(EARLY, options.inner_steps // 2), examples)
    k = int((~wrong).sum())

    def half(scores: np.ndarray) -> jax.Array:
        """The `k` examples with the lowest scores."""
        weights = np.zeros(count, np.float32)
        weights[np.argsort(scores, kind="stable")[:k]] = 1
        return jnp.asarray(weights)

    ones = jnp.ones(count)
    starts = [jnp.asarray(0.1 * rng.normal(size=start.shape), jnp.float32) for _ in range(STARTS)]
    errors = [
        np.asarray(jax.nn.softmax(x @ w) - jax.nn.one_hot(examples[1], CLASSES))
        for w in (early(ones, w) for w in starts)
    ]
    el2n = np.mean([np.linalg.norm(e, axis=1) for e in errors], axis=0)
    # The gradient of softmax regression is the product of input and error.
    grand = el2n * np.linalg.norm(np.asarray(x), axis=1)

    with context.progress("metagradient steps", total=2 * options.steps) as bar:
        chosen = select(
            PROBLEM, start, None, examples, queries, k, estimator=estimator, steps=options.steps
        )
        bar.advance(options.steps, incumbent=chosen.value)
        weighed = weigh(
            PROBLEM,
            start,
            None,
            examples,
            queries,
            estimator=estimator,
            steps=options.steps,
            callbacks=[lambda report: bar.advance(incumbent=report.row["value"])],
        )

    weights = {
        "all": ones,
        "right labels (oracle)": jnp.asarray(~wrong, jnp.float32),
        "select": jnp.zeros(count).at[jnp.asarray(chosen.chosen)].set(1.0),
        "weigh": jnp.asarray(weighed.weights),
        "lowest EL2N": half(el2n),
        "lowest GraNd": half(grand),
        "lowest loss": half(np.asarray(losses(train(ones, start), examples))),
    }
    points = {name: train(p, start) for name, p in weights.items()}
    alone = trainer(options.inner_steps, queries)
    points["validation examples only"] = alone(jnp.ones(len(queries[1])), start)
    accuracy, rows = {}, []
    for name, w in points.items():
        right = np.argmax(np.asarray(test_x @ w), axis=1) == data.test.y
        accuracy[name] = 100 * float(np.mean(right))
        p = np.asarray(weights.get(name, np.zeros(count)))
        share = float(p[~wrong].sum() / p.sum()) if p.sum() else float("nan")
        rows.append(
            {
                "trained on": name,
                "test accuracy %": accuracy[name],
                "validation loss": float(clean(w, None, queries)),
                "weight on right labels": share,
            }
        )
    context.table("test accuracy", rows)
    context.plot(
        "validation loss",
        {
            "select": Curve(np.arange(len(chosen.losses)), chosen.losses),
            "weigh": Curve(np.arange(len(weighed.losses)), weighed.losses),
        },
        x="metagradient steps",
        y="validation loss",
    )
    ours = max(accuracy["select"], accuracy["weigh"])
    context.measure("below_oracle", accuracy["right labels (oracle)"] - ours)
    context.measure("above_all", ours - accuracy["all"])
    context.measure("kept_right", float(np.mean(~wrong[chosen.chosen])))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
