"""What each training example does: predicted in several ways, and measured by training again.

A network of one smooth hidden layer is trained on digits by gradient descent with momentum, in a
fixed order of mini-batches. Then it is trained again on many random subsets of its examples. The
linear-datamodelling score (LDS) of an attribution is the rank correlation, over the subsets, of the
losses of a query with the sum of the scores of the subset's examples; the mean over the queries.

Ours are the derivative through the whole training and the one at its end by implicit
differentiation, with the Hessian or the Gauss-Newton matrix, which is influence functions with
conjugate gradients. Beside them TracIn (products
of gradients along the training), the same product at the end, the distance of the inputs among
those of the query's class, and chance; and, where the library dattri and PyTorch are installed,
its TRAK, EK-FAC, and influence functions by conjugate gradients, LiSSA and Arnoldi. For twenty
examples the loss without each is measured, too. All of it on digits and on Fashion-MNIST.

Park et al. 2023 (*TRAK*) for the score; Ilyas & Engstrom 2025 (*MAGIC*) for the derivative through
the training; Pruthi et al. 2020 for TracIn; Grosse et al. 2023 for EK-FAC; Schioppa et al. 2022 for
Arnoldi; Deng et al. 2024 for dattri.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import spearmanr

from experiments.data import tabular
from experiments.data.dattri_peers import available, dattri_scores
from experiments.data.fashion_mnist import fashion_mnist
from experiments.harness import COLOURS, Claim, Context, Option, experiment
from hypergrad import CG, BilevelProblem, GaussNewton, ImplicitDifferentiation
from hypergrad.data import WeightedExamples, attribute
from hypergrad.unrolled import Unrolled

HIDDEN, CLASSES, BATCH, LEFT_OUT = 24, 10, 50, 20
RATE, MOMENTUM, RIDGE = 0.05, 0.9, 1e-3
OURS = "through the training"
SETS = ("digits", "fashion-mnist")
# Of an input.
SQUARE = 10.0


def initial(seed: int, inputs: int) -> dict:
    """Two layers."""
    rng = np.random.default_rng(seed)
    return {
        "in": jnp.asarray(rng.normal(size=(inputs, HIDDEN)) / inputs**0.5),
        "out": jnp.asarray(rng.normal(size=(HIDDEN, CLASSES)) / HIDDEN**0.5),
    }


def logits(params: dict, x: jax.Array) -> jax.Array:
    """Scores of the classes."""
    return jnp.tanh(x @ params["in"]) @ params["out"]


def cross_entropy(params: dict, hparams: None, batch: tuple) -> jax.Array:
    """Mean over the batch."""
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def penalised(params: dict, hparams: None, batch: tuple) -> jax.Array:
    """The training loss."""
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return cross_entropy(params, hparams, batch) + 0.5 * RIDGE * squares


PROBLEM = BilevelProblem(penalised, cross_entropy)


def weighted_curvature(x: jax.Array, y: jax.Array) -> GaussNewton:
    """Positive definite also where the training was stopped before a minimum."""

    def loss(scores: jax.Array, p: jax.Array, chosen: jax.Array) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(scores, y[chosen])
        return jnp.sum(p[chosen] * each) / jnp.sum(p[chosen])

    def penalty(params: dict, p: jax.Array) -> jax.Array:
        return 0.5 * RIDGE * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    return GaussNewton(lambda params, p, chosen: logits(params, x[chosen]), loss, penalty)


def losses_of(params: dict, queries: tuple) -> jax.Array:
    """One for each query."""
    x, y = queries
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)


def data_of(name: str, train: int, queries: int, seed: int) -> tuple[tuple, tuple]:
    """Training examples and queries of a set: inputs, and classes.

    The pixels of Fashion-MNIST are centred, and scaled to the mean square of `SQUARE`: as they are,
    inputs are so long that the training is beyond the edge of stability, and not metasmooth.
    """
    if name == "digits":
        data = tabular("digits", seed=seed)
        parts = (data.train.x / 16, data.train.y), (data.test.x / 16, data.test.y)
    else:
        parts = tuple((p.x.reshape(-1, 784) / 255, p.y.astype(int)) for p in fashion_mnist())
        rng = np.random.default_rng(seed)
        wanted = zip(parts, (train, queries), strict=True)
        rows = [rng.permutation(len(y))[:many] for (_, y), many in wanted]
        parts = tuple((x[r], y[r]) for (x, y), r in zip(parts, rows, strict=True))
        mean = parts[0][0].mean(axis=0)
        scale = (SQUARE / np.mean(np.sum((parts[0][0] - mean) ** 2, axis=1))) ** 0.5
        parts = tuple((scale * (x - mean), y) for x, y in parts)
    cut = zip(parts, (train, queries), strict=True)
    one, two = ((jnp.asarray(x[:many], float), jnp.asarray(y[:many])) for (x, y), many in cut)
    return one, two


def gradients(params: dict, loss: Callable, batch: tuple) -> jax.Array:
    """The gradient of each example's loss, in a row."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        grad = jax.grad(loss)(params, None, (x[None], y[None]))
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(grad)])

    return jax.vmap(one)(*batch)


@experiment(
    paper="Ilyas & Engstrom 2025 (MAGIC); Park et al. 2023 (TRAK)",
    x64=True,
    compiles=True,
    options=[
        Option("sets", 2, quick=1, help="sets of data: digits, and Fashion-MNIST"),
        Option("train", 400, quick=100, help="training examples"),
        Option("queries", 30, quick=10, help="queries"),
        Option("epochs", 20, quick=6, help="epochs of a training"),
        Option("subsets", 100, quick=30, help="subsets trained on"),
        Option("kept", 0.9, help="share of the examples in a subset"),
        Option("implicit", 2, quick=0, help="ways of implicit differentiation"),
    ],
    claims=[
        Claim("lds", "the least linear-datamodelling score through the training", at_least=0.9),
        Claim("lead", "above the best rival by, at the least", at_least=0.0),
        Claim("left_out", "correlation with leaving out each of twenty examples", at_least=0.95),
    ],
)
def run_experiment(context: Context) -> None:
    """Attribute, train again, compare; on each set."""
    results = [on_set(context, name) for name in SETS[: context.options.sets]]
    for measure in ("lds", "lead", "left_out"):
        context.measure(measure, min(result[measure] for result in results))


def on_set(context: Context, name: str) -> dict[str, float]:
    """One set: its table, its picture, and what the claims are about."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    examples, queries = data_of(name, options.train, options.queries, options.seed)
    start = initial(options.seed, examples[0].shape[1])
    rounds = [
        rng.permutation(options.train)[: options.train // BATCH * BATCH].reshape(-1, BATCH)
        for _ in range(options.epochs)
    ]
    order = jnp.asarray(np.concatenate(rounds))
    steps = len(order)
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    weighted = WeightedExamples(PROBLEM, None, examples)

    @jax.jit
    def path(weights: jax.Array) -> tuple[dict, dict]:
        """The end of the training with these weights, and all that came before each step."""

        def step(carry: tuple, numbers: jax.Array) -> tuple[tuple, dict]:
            w, state = carry
            gradient = jax.grad(lambda w: weighted(w, weights, numbers))(w)
            updates, state = optimizer.update(gradient, state, w)
            return (optax.apply_updates(w, updates), state), w

        (end, _), before = jax.lax.scan(step, (start, optimizer.init(start)), order)
        return end, before

    end, before = path(jnp.ones(options.train))

    @jax.jit
    def retrained(weights: jax.Array) -> jax.Array:
        return jax.lax.map(lambda p: losses_of(path(p)[0], queries), weights)

    through = attribute(
        PROBLEM,
        start,
        None,
        examples,
        queries,
        estimator=Unrolled(optimizer, steps, stacked=True),
        order=order,
        chunk=options.queries,
    )
    ways = {OURS: through.scores}
    curvatures = {
        "implicit, Hessian (influence by CG)": {},
        "implicit, Gauss-Newton": {"curvature": weighted_curvature(*examples)},
    }
    for way, curvature in list(curvatures.items())[: options.implicit]:
        estimator = ImplicitDifferentiation(
            linear_solver=CG(tol=1e-4, max_steps=200),
            damping=0.01,
            error_estimate=False,
            **curvature,
        )
        ways[way] = attribute(PROBLEM, end, None, examples, queries, estimator=estimator).scores
    asked = jax.jit(gradients, static_argnums=1)
    kept = np.linspace(0, steps - 1, 10).astype(int)
    at = [jax.tree.map(lambda leaf, t=t: leaf[t], before) for t in kept]
    ways["TracIn, ten checkpoints"] = -sum(
        asked(w, cross_entropy, queries) @ asked(w, penalised, examples).T for w in at
    )
    ways["product of gradients at the end"] = (
        -asked(end, cross_entropy, queries) @ asked(end, penalised, examples).T
    )
    if available() and not options.quick:
        ways |= dattri_scores(end, examples, queries, RIDGE, seed=options.seed)
    same = queries[1][:, None] == examples[1][None]
    distances = jnp.linalg.norm(queries[0][:, None] - examples[0][None], axis=-1)
    ways["nearness of the inputs"] = jnp.where(same, -1.0, 1.0) * jnp.exp(-(distances**2))
    ways["chance"] = rng.normal(size=through.scores.shape)

    size = round(options.kept * options.train)
    inside = np.zeros((options.subsets, options.train))
    for row in inside:
        row[rng.permutation(options.train)[:size]] = 1
    chosen = rng.permutation(options.train)[:LEFT_OUT]
    without = np.ones((LEFT_OUT, options.train))
    without[np.arange(LEFT_OUT), chosen] = 0
    truth = np.asarray(retrained(jnp.asarray(np.concatenate([inside, without]))))
    changes = truth[options.subsets :] - np.asarray(through.losses)
    truth = truth[: options.subsets]

    rows: list[dict[str, Any]] = []
    scored: dict[str, float] = {}
    for way, scores in ways.items():
        found = np.asarray(scores)
        predicted = inside @ found.T
        each = [spearmanr(predicted[:, q], truth[:, q])[0] for q in range(options.queries)]
        left = np.corrcoef(-found[:, chosen].T.ravel(), changes.ravel())[0, 1]
        # A way that diverged has said nothing.
        scored[way] = float(np.mean(each)) if np.all(np.isfinite(found)) else 0.0
        rows.append(
            {
                "way": way,
                "LDS": scored[way],
                "worst query": float(np.min(each)),
                "correlation with leaving one out": float(left),
            }
        )
    context.table(f"scores, {name}", rows)
    draw(
        context, name, changes, {way: np.asarray(ways[way])[:, chosen].T for way in list(ways)[:2]}
    )
    right = np.mean(np.argmax(logits(end, queries[0]), 1) == queries[1])
    context.say(
        f"{name}: {size} of {options.train} examples in a subset; the network classifies "
        f"{100 * right:.0f} % of the queries rightly."
    )
    return {
        "lds": scored[OURS],
        "lead": scored[OURS] - max(v for k, v in scored.items() if k != OURS),
        "left_out": rows[0]["correlation with leaving one out"],
    }


def draw(context: Context, name: str, changes: np.ndarray, scores: dict[str, np.ndarray]) -> None:
    """Predicted changes of the losses over those without an example."""
    with context.figure(f"left out, {name}", width=7, height=3.2) as figure:
        for axes, (way, found) in zip(figure.subplots(1, 2), scores.items(), strict=True):
            axes.plot(changes.ravel(), -found.ravel(), ".", color=COLOURS[0], alpha=0.5)
            ends = [changes.min(), changes.max()]
            axes.plot(ends, ends, color="grey", lw=0.8)
            axes.set(
                title=way.partition(" (")[0],
                xlabel="change without the example",
                ylabel="predicted",
            )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
