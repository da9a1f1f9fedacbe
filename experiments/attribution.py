"""What each training example does: predicted in several ways, and measured by training again.

A network of one smooth hidden layer is trained on digits by gradient descent with momentum, in a
fixed order of mini-batches. Then it is trained again on many random subsets of its examples. The
linear-datamodelling score (LDS) of an attribution is the rank correlation, over the subsets, of the
losses of a query with the sum of the scores of the subset's examples; the mean over the queries.

Ours are the derivative through the whole training and the one at its end by implicit
differentiation, with the Hessian or the Gauss-Newton matrix, which is influence functions with
conjugate gradients. Beside them TracIn (products
of gradients along the training), the same product at the end, the distance of the inputs among
those of the query's class, and chance. For twenty examples the loss without each is measured, too.

Park et al. 2023 (*TRAK*) for the score; Ilyas & Engstrom 2025 (*MAGIC*) for the derivative through
the training; Pruthi et al. 2020 for TracIn. TRAK and EK-FAC are not among the rivals.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import spearmanr

from experiments.data import tabular
from experiments.harness import COLOURS, Claim, Context, Option, experiment
from hypergrad import CG, BilevelProblem, GaussNewton, ImplicitDifferentiation
from hypergrad.data import WeightedExamples, attribute
from hypergrad.unrolled import Unrolled

HIDDEN, CLASSES, BATCH, LEFT_OUT = 24, 10, 50, 20
RATE, MOMENTUM, RIDGE = 0.05, 0.9, 1e-3
OURS = "through the training"


def initial(seed: int) -> dict:
    """Two layers."""
    rng = np.random.default_rng(seed)
    return {
        "in": jnp.asarray(rng.normal(size=(64, HIDDEN)) / 8),
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


def gradients(params: dict, loss: Callable, batch: tuple) -> jax.Array:
    """The gradient of each example's loss, in a row."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        grad = jax.grad(loss)(params, None, (x[None], y[None]))
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(grad)])

    return jax.vmap(one)(*batch)


@experiment(
    paper="Ilyas & Engstrom 2025 (MAGIC); Park et al. 2023 (TRAK)",
    x64=True,
    options=[
        Option("train", 400, quick=120, help="training examples"),
        Option("queries", 30, quick=10, help="queries"),
        Option("epochs", 20, quick=6, help="epochs of a training"),
        Option("subsets", 100, quick=30, help="subsets trained on"),
        Option("kept", 0.9, help="share of the examples in a subset"),
    ],
    claims=[
        Claim("lds", "the linear-datamodelling score through the training", at_least=0.9),
        Claim("lead", "above the best rival by", at_least=0.0),
        Claim("left_out", "correlation with leaving out each of twenty examples", at_least=0.95),
    ],
)
def run_experiment(context: Context) -> None:
    """Attribute, train again, compare."""
    options = context.options
    rng = np.random.default_rng(options.seed)
    data = tabular("digits", seed=options.seed)
    x, y = jnp.asarray(data.train.x / 16), jnp.asarray(data.train.y)
    examples = (x[: options.train], y[: options.train])
    queries = (
        jnp.asarray(data.test.x[: options.queries] / 16),
        jnp.asarray(data.test.y[: options.queries]),
    )
    start = initial(options.seed)
    rounds = [
        rng.permutation(options.train)[: options.train // BATCH * BATCH].reshape(-1, BATCH)
        for _ in range(options.epochs)
    ]
    order = jnp.asarray(np.concatenate(rounds))
    steps = len(order)
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    estimator = Unrolled(optimizer, steps, stacked=True)
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

    ones = jnp.ones(options.train)
    end, before = path(ones)

    @jax.jit
    def retrained(weights: jax.Array) -> jax.Array:
        return jax.lax.map(lambda p: losses_of(path(p)[0], queries), weights)

    with context.progress("ways", total=4) as bar:
        through = attribute(
            PROBLEM,
            start,
            None,
            examples,
            queries,
            estimator=estimator,
            order=order,
            chunk=options.queries,
        )
        bar.advance()
        implicit = attribute(
            PROBLEM,
            end,
            None,
            examples,
            queries,
            estimator=ImplicitDifferentiation(
                linear_solver=CG(tol=1e-4, max_steps=200), damping=0.01, error_estimate=False
            ),
        )
        bar.advance()
        gauss_newton = attribute(
            PROBLEM,
            end,
            None,
            examples,
            queries,
            estimator=ImplicitDifferentiation(
                linear_solver=CG(tol=1e-4, max_steps=200),
                curvature=weighted_curvature(*examples),
                damping=0.01,
                error_estimate=False,
            ),
        )
        bar.advance()
        asked, trained = jax.jit(gradients, static_argnums=1), penalised
        kept = np.linspace(0, steps - 1, 10).astype(int)
        at = [jax.tree.map(lambda leaf, t=t: leaf[t], before) for t in kept]
        tracin = -sum(asked(w, cross_entropy, queries) @ asked(w, trained, examples).T for w in at)
        last = -asked(end, cross_entropy, queries) @ asked(end, trained, examples).T
        bar.advance()
    same = queries[1][:, None] == examples[1][None]
    distances = jnp.linalg.norm(queries[0][:, None] - examples[0][None], axis=-1)
    near = jnp.where(same, -1.0, 1.0) * jnp.exp(-(distances**2))
    ways = {
        OURS: through.scores,
        "implicit, Hessian (influence by CG)": implicit.scores,
        "implicit, Gauss-Newton": gauss_newton.scores,
        "TracIn, ten checkpoints": tracin,
        "product of gradients at the end": last,
        "nearness of the inputs": near,
        "chance": rng.normal(size=through.scores.shape),
    }

    size = round(options.kept * options.train)
    inside = np.zeros((options.subsets, options.train))
    for row in inside:
        row[rng.permutation(options.train)[:size]] = 1
    truth = np.asarray(retrained(jnp.asarray(inside)))
    chosen = rng.permutation(options.train)[:LEFT_OUT]
    without = np.ones((LEFT_OUT, options.train))
    without[np.arange(LEFT_OUT), chosen] = 0
    changes = np.asarray(retrained(jnp.asarray(without)) - through.losses)

    rows, scored = [], {}
    for name, scores in ways.items():
        found = np.asarray(scores)
        predicted = inside @ found.T
        each = [spearmanr(predicted[:, q], truth[:, q])[0] for q in range(options.queries)]
        left = np.corrcoef(-found[:, chosen].T.ravel(), changes.ravel())[0, 1]
        scored[name] = float(np.mean(each))
        rows.append(
            {
                "way": name,
                "LDS": scored[name],
                "worst query": float(np.min(each)),
                "correlation with leaving one out": float(left),
            }
        )
        if name == OURS:
            context.measure("left_out", float(left))
    context.table("scores", rows)
    with context.figure("left out", width=7, height=3.2) as figure:
        for axes, (name, scores) in zip(figure.subplots(1, 2), list(ways.items())[:2], strict=True):
            predicted = -np.asarray(scores)[:, chosen].T
            axes.plot(changes.ravel(), predicted.ravel(), ".", color=COLOURS[0], alpha=0.5)
            ends = [changes.min(), changes.max()]
            axes.plot(ends, ends, color="grey", lw=0.8)
            axes.set(
                title=name.partition(" (")[0],
                xlabel="change without the example",
                ylabel="predicted",
            )
    context.say(
        f"{size} of {options.train} examples in a subset; the network classifies "
        f"{100 * np.mean(np.argmax(logits(end, data.test.x / 16), 1) == data.test.y):.1f} % of the "
        "test digits rightly."
    )
    context.measure("lds", scored[OURS])
    context.measure("lead", scored[OURS] - max(v for k, v in scored.items() if k != OURS))


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
