"""As many hyperparameters as weights: they fit a small validation set completely.

Fashion-MNIST with 50 training and 50 validation images. Each weight has an L2 penalty of its own,
tuned by five training steps and one outer step in turn, with 20 products for the inverse Hessian,
of MINRES or of the paper's own Neumann series. So many hyperparameters are a second model that is
trained on the validation set: its loss goes to zero while the test loss does not follow, and the
guard against over-tuning says so. One global penalty, tuned the same way, can do nothing of the
kind.

What that costs beside training alone is what XLA's analysis of the compiled programs says, of a
network with 1.8 million weights and as many penalties, at the published ratio of nine training
steps and three products to an outer step, and at that of the runs here. Its count of a loop is that
of one pass; so operations are added up from those of a training step, a product, an outer gradient
and a mixed product. Memory is that of the whole programs: what goes in, what comes out, and what
lies between.

Lorraine, Vicol and Duvenaud, "Optimizing millions of hyperparameters by implicit differentiation"
(2020), section 5.1.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import fashion_mnist
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem, ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear import LinearSolver
from hypergrad.linear.minres import MINRES
from hypergrad.linear.neumann import Neumann
from hypergrad.outer import Alternating, Batches, Box, OverTuningWarning, Result, StepReport, run

SIDE, CLASSES = 28, 10
# Training steps to an outer step, and products for it: of the published code for images, and here.
PUBLISHED, HERE = (9, 3), (5, 20)
# The network whose costs are analysed.
WIDTH, BATCH = 1000, 100


# -- models: a function from a key to weights, and one from weights and images to scores ---------


def dense(key: jax.Array, inputs: int, outputs: int) -> dict:
    """Weights drawn as usual, and a bias."""
    weight = jax.random.normal(key, (inputs, outputs), jnp.float32) / np.sqrt(inputs)
    return {"w": weight, "b": jnp.zeros(outputs, jnp.float32)}


def linear(key: jax.Array) -> list:
    """Softmax regression."""
    return [dense(key, SIDE**2, CLASSES)]


def mlp(key: jax.Array) -> list:
    """One hidden layer of 100 units."""
    one, two = jax.random.split(key)
    return [dense(one, SIDE**2, 100), dense(two, 100, CLASSES)]


def mlp_scores(params: list, x: jax.Array) -> jax.Array:
    """Scores of the classes; linear if there is one layer."""
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def convolutional(key: jax.Array) -> list:
    """Two strided convolutions of 3 by 3 pixels, and a linear layer."""
    one, two, three = jax.random.split(key, 3)
    return [dense(one, 9, 8), dense(two, 9 * 8, 16), dense(three, 7 * 7 * 16, CLASSES)]


def patches(x: jax.Array) -> jax.Array:
    """Each second pixel with its neighbours as channels: a convolution is a product with these.

    XLA's own is many times slower on CPUs, where the derivatives of strided ones are plain loops.
    """
    side = x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    shifted = [x[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def convolutional_scores(params: list, x: jax.Array) -> jax.Array:
    """Scores of the classes."""
    x = x.reshape(-1, SIDE, SIDE, 1)
    *kernels, last = params
    for layer in kernels:
        x = jax.nn.relu(patches(x) @ layer["w"] + layer["b"])
    return x.reshape(len(x), -1) @ last["w"] + last["b"]


MODELS: dict[str, tuple[Callable, Callable]] = {
    "linear": (linear, mlp_scores),
    "mlp": (mlp, mlp_scores),
    "convolutional": (convolutional, convolutional_scores),
}


# -- the problem and the algorithm -------------------------------------------------------------


def problem(scores: Callable) -> BilevelProblem:
    """Cross-entropy; the inner loss has the penalties, one per weight or one for all."""

    def cross_entropy(params: Any, hparams: Any, batch: dict) -> jax.Array:
        logs = jax.nn.log_softmax(scores(params, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(logs, batch["y"][:, None], axis=1))

    def penalised(params: Any, hparams: Any, batch: dict) -> jax.Array:
        if isinstance(hparams, list):
            terms = jax.tree.map(lambda h, p: jnp.sum(jnp.exp(h) * p**2), hparams, params)
        else:
            terms = jax.tree.map(lambda p: jnp.exp(hparams) * jnp.sum(p**2), params)
        return cross_entropy(params, hparams, batch) + 0.5 * sum(jax.tree.leaves(terms))

    return BilevelProblem(penalised, cross_entropy)


def accuracy(scores: Callable, params: Any, batch: dict) -> float:
    """Percent right."""
    guesses = jnp.argmax(scores(params, batch["x"]), axis=1)
    return 100 * float(jnp.mean(guesses == batch["y"]))


def tuning(inverse: LinearSolver, training: int, steps: int) -> Alternating:
    """So many training steps and one outer step in turn."""
    return Alternating(
        ImplicitDifferentiation(
            OptaxSolver(optax.adam(1e-2), steps=training), inverse, error_estimate=False
        ),
        optax.rmsprop(optax.cosine_decay_schedule(0.1, steps)),
        constraint=Box(-10.0, 4.0),
    )


# -- what it costs ---------------------------------------------------------------------------


def wide(key: jax.Array) -> list:
    """Two hidden layers, 1.8 million weights."""
    one, two, three = jax.random.split(key, 3)
    return [dense(one, SIDE**2, WIDTH), dense(two, WIDTH, WIDTH), dense(three, WIDTH, CLASSES)]


def analysed(function: Callable, *shapes: Any) -> tuple[float, int]:
    """Floating-point operations, and bytes, of the compiled function; nothing is run."""
    compiled = jax.jit(function).lower(*shapes).compile()
    held: Any = compiled.memory_analysis()
    size = held.argument_size_in_bytes + held.output_size_in_bytes + held.temp_size_in_bytes
    return compiled.cost_analysis()["flops"], size


def costs(training: int, products: int) -> tuple[float, float]:
    """Operations and memory of tuning, relative to those of training alone."""
    whole = problem(mlp_scores)
    optimizer = optax.adam(1e-2)
    weights = jax.eval_shape(wide, jax.random.key(0))
    slots = jax.eval_shape(optimizer.init, weights)
    batch = {
        "x": jax.ShapeDtypeStruct((BATCH, SIDE**2), jnp.float32),
        "y": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }

    def train(w: Any, slots: Any, h: Any, batch: dict) -> tuple:
        updates, slots = optimizer.update(jax.grad(whole.inner)(w, h, batch), slots)
        return optax.apply_updates(w, updates), slots

    def product(w: Any, h: Any, batch: dict, v: Any) -> Any:
        return jax.jvp(lambda w: jax.grad(whole.inner)(w, h, batch), (w,), (v,))[1]

    def mixed(w: Any, h: Any, batch: dict, q: Any) -> Any:
        return jax.jvp(lambda w: jax.grad(whole.inner, argnums=1)(w, h, batch), (w,), (q,))[1]

    step, alone = analysed(train, weights, slots, weights, batch)
    more = (
        products * analysed(product, weights, weights, batch, weights)[0]
        + analysed(jax.grad(whole.outer), weights, weights, batch)[0]
        + analysed(mixed, weights, weights, batch, weights)[0]
    )

    algorithm = tuning(Neumann(products=products), training, 1)
    state = jax.eval_shape(
        lambda w, batch: algorithm.init(whole, w, w, Batches(batch, batch)), weights, batch
    )
    arrays, rest = eqx.partition(state, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def tune(arrays: Any, train: dict, validation: dict) -> Any:
        state = eqx.combine(arrays, rest)
        return eqx.filter(algorithm.step(whole, state, Batches(train, validation))[0], eqx.is_array)

    _, together = analysed(tune, arrays, batch, batch)
    return 1 + more / (training * step), together / alone


# -- the experiment --------------------------------------------------------------------------


@experiment(
    paper="Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590",
    options=[
        Option("models", "linear,mlp,convolutional", quick="linear", help="comma-separated"),
        Option("steps", 2000, quick=500, help="outer steps"),
        Option("images", 50, help="training images, and as many for validation"),
    ],
    claims=[
        Claim(
            "validation",
            "validation accuracy with a penalty per weight, worst model, %",
            at_least=100.0,
        ),
        Claim("loss", "validation loss with a penalty per weight, worst model", at_most=0.25),
        Claim(
            "neumann",
            "validation accuracy with the paper's Neumann series, worst model, %",
            at_least=100.0,
        ),
        Claim(
            "neumann_loss",
            "validation loss with the paper's Neumann series, worst model",
            at_most=0.25,
        ),
        Claim(
            "global",
            "validation accuracy with one penalty for all, best model, %",
            at_most=95.0,
        ),
        Claim(
            "test",
            "test loss does not follow: its change from the tenth of the run on, smallest",
            at_least=0.0,
        ),
        Claim(
            "compute",
            "operations of tuning 1.8 million penalties as published, relative to training alone",
            at_most=4.0,
        ),
        Claim("memory", "memory of it, relative to training alone", at_most=4.0),
    ],
)
def run_experiment(context: Context) -> None:
    """Tune both kinds of penalty for each model."""
    options = context.options
    source, held = fashion_mnist()
    rng = np.random.default_rng(options.seed)
    rows = rng.permutation(len(source.y))[: 2 * options.images]

    def batch(images: np.ndarray, labels: np.ndarray) -> dict:
        x = jnp.asarray(images.reshape(len(images), -1), jnp.float32) / 255
        return {"x": x, "y": jnp.asarray(labels, jnp.int32)}

    train = batch(source.x[rows[::2]], source.y[rows[::2]])
    validation = batch(source.x[rows[1::2]], source.y[rows[1::2]])
    test = batch(held.x, held.y)
    training, products = HERE
    minres = tuning(MINRES(max_steps=products, tol=1e-3), training, options.steps)
    neumann = tuning(Neumann(products=products), training, options.steps)
    # Of whom, and how many penalties.
    kinds = {
        "one per weight": (minres, True),
        "one per weight, Neumann": (neumann, True),
        "one for all": (minres, False),
    }
    names = options.models.split(",")
    every = max(options.steps // 20, 1)
    found: dict[tuple[str, str], Result] = {}
    rows_out = []
    with context.progress("outer steps", total=len(kinds) * len(names) * options.steps) as bar:

        def watch(report: StepReport) -> None:
            bar.advance(every, incumbent=report.row["validation"])

        for name in names:
            initialise, scores = MODELS[name]
            start = initialise(jax.random.key(options.seed))
            for kind, (algorithm, each) in kinds.items():
                hparams = jnp.asarray(-4.0, jnp.float32)
                if each:
                    hparams = jax.tree.map(lambda p: jnp.full_like(p, -4.0), start)
                with warnings.catch_warnings():
                    # That it over-tunes is the point.
                    warnings.simplefilter("ignore", OverTuningWarning)
                    result = run(
                        problem(scores),
                        algorithm,
                        start,
                        hparams,
                        train,
                        validation,
                        steps=options.steps,
                        every=every,
                        holdout_data=test,
                        callbacks=[watch],
                    )
                found[name, kind] = result
                rows_out.append(
                    {
                        "model": name,
                        "penalties": kind,
                        "hyperparameters": sum(p.size for p in jax.tree.leaves(hparams)),
                        "validation loss": result.value,
                        "validation acc. %": accuracy(scores, result.params, validation),
                        "test loss": result.history[-1]["holdout"],
                        "test acc. %": accuracy(scores, result.params, test),
                        "guard": "warns" if result.history[-1]["overtuned"] else "silent",
                    }
                )

    for label, key in (("validation", "validation"), ("test", "holdout")):
        context.plot(
            f"{label}_loss",
            {
                f"{name}, {kind}": Curve(
                    [row["step"] for row in result.history if row["holdout"] == row["holdout"]],
                    [row[key] for row in result.history if row["holdout"] == row["holdout"]],
                )
                for (name, kind), result in found.items()
            },
            x="outer steps",
            y=f"{label} loss",
            y_scale="log" if label == "validation" else "linear",
        )
    context.table("after tuning", rows_out)
    of = {kind: [row for row in rows_out if row["penalties"] == kind] for kind in kinds}
    changes = []
    for (_, kind), result in found.items():
        if kinds[kind][1]:
            looks = [row["holdout"] for row in result.history if row["holdout"] == row["holdout"]]
            changes.append(looks[-1] - looks[max(len(looks) // 10 - 1, 0)])
    for kind, accurate, low in (
        ("one per weight", "validation", "loss"),
        ("one per weight, Neumann", "neumann", "neumann_loss"),
    ):
        context.measure(accurate, min(row["validation acc. %"] for row in of[kind]))
        context.measure(low, max(row["validation loss"] for row in of[kind]))
    context.measure("global", max(row["validation acc. %"] for row in of["one for all"]))
    context.measure("test", min(changes))
    pairs = (PUBLISHED,) if options.quick else (PUBLISHED, HERE)
    spent = {pair: costs(*pair) for pair in pairs}
    context.table(
        "cost beside training alone, 1.8 million weights and penalties",
        [
            {"training steps": a, "products": b, "operations": compute, "memory": memory}
            for (a, b), (compute, memory) in spent.items()
        ],
    )
    context.measure("compute", spent[PUBLISHED][0])
    context.measure("memory", spent[PUBLISHED][1])


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
