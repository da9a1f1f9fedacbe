"""A linear classifier with one penalty, one for each class, or one for each weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree, Scalar

from experiments.data import fashion_mnist, tabular
from hypergrad.problem import BilevelProblem

CLASSES = 10


def cross_entropy(params: PyTree, batch: PyTree) -> Scalar:
    """Mean cross-entropy of a linear classifier."""
    scores = batch[0] @ params["weights"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]).mean()


def for_each_tensor(params: PyTree, log_penalty: PyTree) -> dict[str, Array]:
    """One `λ` for all weights, or one for each class, handed to every tensor."""
    return log_penalty if isinstance(log_penalty, dict) else dict.fromkeys(params, log_penalty)


def penalty(params: PyTree, log_penalty: PyTree) -> Scalar:
    """`Σ exp(λ) w²`, with one `λ` for all weights, one for each class, or one for each weight."""
    log_penalty = for_each_tensor(params, log_penalty)
    return sum(jnp.sum(jnp.exp(log_penalty[name]) * params[name] ** 2) for name in params)


PROBLEM = BilevelProblem(
    inner=lambda w, lam, batch: cross_entropy(w, batch) + penalty(w, lam),
    outer=lambda w, lam, batch: cross_entropy(w, batch),
)


@jax.jit
def _retrain(log_penalty: PyTree, start: PyTree, batch: PyTree) -> PyTree:
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


score = jax.jit(cross_entropy)


class Task(NamedTuple):
    """Training, validation and test batch: pixels in [0, 1], and labels."""

    train: tuple[Array, Array]
    valid: tuple[Array, Array]
    test: tuple[Array, Array]

    @property
    def zeros(self) -> PyTree:
        """The classifier before training."""
        return {
            "weights": jnp.zeros((self.train[0].shape[1], CLASSES)),
            "bias": jnp.zeros(CLASSES),
        }

    def retrained(self, log_penalty: PyTree) -> PyTree:
        """The classifier trained from scratch, by L-BFGS."""
        # One program for all numbers of penalties: compiling it takes longer than running it.
        each = jax.tree.map(
            lambda lam, w: jnp.broadcast_to(jnp.asarray(lam, w.dtype), w.shape),
            for_each_tensor(self.zeros, log_penalty),
            self.zeros,
        )
        return _retrain(each, self.zeros, self.train)

    def validated(self, log_penalty: PyTree) -> float:
        """The validation loss of the classifier trained from scratch."""
        return float(score(self.retrained(log_penalty), self.valid))


def load(name: str, examples: int, seed: int) -> Task:
    """The `"digits"` or `"fashion_mnist"`; the training set has `examples` of them."""
    if name == "digits":
        arrays = [(part.x / 16, part.y) for part in tabular("digits", seed=seed)]
    else:
        train, test = fashion_mnist()
        order = np.random.default_rng(seed).permutation(len(train.y))[:11_000]
        x = train.x[order].reshape(len(order), -1) / 255
        arrays = [
            (x[:1000], train.y[order[:1000]]),
            (x[1000:], train.y[order[1000:]]),
            (test.x.reshape(len(test.y), -1) / 255, test.y),
        ]
    (x, y), *rest = arrays
    arrays = [(x[:examples], y[:examples]), *rest]
    return Task(
        *((jnp.asarray(x, jnp.float32), jnp.asarray(y.astype(np.int32))) for x, y in arrays)
    )
