"""A hypernetwork of a linear classifier: the whole validation curve from one training.

A global hypernetwork is trained once over all log penalties of a softmax classifier. Its validation
curve is compared with that of trained classifiers, one for each point of a grid, and a descent
along it with the best point of the grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.data import fashion_mnist, tabular
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad.hypernetwork import Hypernetwork, Uniform
from hypergrad.problem import BilevelProblem

CLASSES = 10
LOWEST, HIGHEST = -10.0, -2.0
START = -4.0


def cross_entropy(params: PyTree, batch: PyTree) -> Scalar:
    """Mean cross-entropy of a linear classifier."""
    scores = batch[0] @ params["weights"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


def penalty(params: PyTree, log_penalty: Array) -> Scalar:
    """`exp(λ) Σ w²`."""
    return jnp.exp(log_penalty) * sum(jnp.sum(w**2) for w in jax.tree.leaves(params))


PROBLEM = BilevelProblem(
    inner=lambda w, lam, batch: cross_entropy(w, batch) + penalty(w, lam),
    outer=lambda w, lam, batch: cross_entropy(w, batch),
)


@jax.jit
def retrain(log_penalty: Array, start: PyTree, batch: PyTree) -> PyTree:
    """The classifier trained from scratch, by L-BFGS."""
    solver = optax.lbfgs()

    def objective(w: PyTree) -> Scalar:
        return PROBLEM.inner(w, log_penalty, batch)

    def step(carry: tuple, _: None) -> tuple:
        w, state = carry
        value, grad = optax.value_and_grad_from_state(objective)(w, state=state)
        updates, state = solver.update(grad, state, w, value=value, grad=grad, value_fn=objective)
        return (optax.apply_updates(w, updates), state), None

    (w, _), _ = jax.lax.scan(step, (start, solver.init(start)), None, length=150)
    return w


def load(name: str, examples: int, seed: int) -> tuple[PyTree, PyTree]:
    """Training and validation batch, pixels in [0, 1]."""
    if name == "digits":
        parts = tabular("digits", seed=seed)
        arrays = [(part.x / 16, part.y) for part in parts[:2]]
    else:
        images, _ = fashion_mnist()
        order = np.random.default_rng(seed).permutation(len(images.y))[:11_000]
        x = images.x[order].reshape(len(order), -1) / 255
        arrays = [
            (x[:1000], images.y[order[:1000]]),
            (x[1000:], images.y[order[1000:]]),
        ]
    (x, y), held = arrays
    pairs = ((x[:examples], y[:examples]), held)
    train, valid = ((jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)) for x, y in pairs)
    return train, valid


@experiment(
    paper="Lorraine and Duvenaud 2018, arXiv:1802.09419",
    options=[
        Option("data", "fashion_mnist", quick="digits", choices=("fashion_mnist", "digits")),
        Option("examples", 1000, quick=60, help="training examples"),
        Option("global_steps", 6000, quick=2000, help="steps of the global hypernetwork"),
    ],
    claims=[
        Claim("curve", "predicted validation curve within 0.05 of the true one", at_most=0.05),
        Claim("optimum", "descent ends within 1.0 of the best of the grid", at_most=1.0),
    ],
)
def run(context: Context) -> None:
    """Train the hypernetwork, and a classifier at each point."""
    options = context.options
    train, valid = load(options.data, options.examples, options.seed)
    key = jax.random.key(options.seed)
    pixels = train[0].shape[1]
    start = {"weights": jnp.zeros((pixels, CLASSES)), "bias": jnp.zeros(CLASSES)}
    score = jax.jit(cross_entropy)

    grid = np.arange(LOWEST + 1, HIGHEST)
    true = np.array([score(retrain(jnp.float32(g), start, train), valid) for g in grid])
    steps = options.global_steps // 4
    hypernetwork = Hypernetwork(
        Uniform(LOWEST, HIGHEST),
        hidden=(50,),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 4 * steps)),
        steps=steps,
    )
    lam = jnp.float32(START)
    state = hypernetwork.init(PROBLEM, start, lam, train, key=key)
    with context.progress("global hypernetwork", total=4) as progress:
        for _ in range(4):
            state, _ = hypernetwork.fit(PROBLEM, state, lam, train)
            progress.advance()
    predicted = np.array([score(hypernetwork.response(state, jnp.float32(g)), valid) for g in grid])
    context.plot(
        "curve",
        {"trained at each point": Curve(grid, true), "hypernetwork": Curve(grid, predicted)},
        x="log penalty",
        y="validation loss",
    )
    context.measure("curve", np.max(np.abs(true - predicted)))
    for _ in range(60):
        lam -= 3 * hypernetwork.hypergradient(PROBLEM, state, lam, train, valid).grad
    context.measure("optimum", abs(float(lam) - grid[np.argmin(true)]))


if __name__ == "__main__":
    raise SystemExit(run.main())
