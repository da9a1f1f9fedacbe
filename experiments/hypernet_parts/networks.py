"""Hypernetworks of the classifier: of one penalty, of one a class, and of one a weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from experiments.hypernet_parts.classifier import CLASSES, PROBLEM, Task, score
from hypergrad.hypernetwork import Hypernetwork, Normal, Uniform
from hypergrad.self_tuning import Perturbation, Tuner

LOWEST, HIGHEST = -10.0, -2.0
START = -4.0
# Standard deviation of the log penalties when each class has its own, as in the paper.
CLASS_SPREAD = 1.5
# Standard deviation of the log penalties when each weight has its own, and the Euclidean length of
# a step: a distribution reaches only so far along any one direction.
WEIGHT_SPREAD = 0.5
WEIGHT_OPTIMIZER = optax.adam(3e-4)
# Fits of a global network, and steps of a local one for each step of the penalties.
FITS, LOCAL_STEPS = 4, 20


class Global(NamedTuple):
    """A trained hypernetwork."""

    network: Hypernetwork
    state: PyTree
    task: Task

    @classmethod
    def fit(cls, network: Hypernetwork, task: Task, at: PyTree, key: Array) -> "Global":
        """Trained four times over its steps, from the classifier at the penalties `at`."""
        state = network.init(PROBLEM, task.retrained(at), at, task.train, key=key)
        for _ in range(FITS):
            state, _ = network.fit(PROBLEM, state, at, task.train)
        return cls(network, state, task)

    def predicted(self, log_penalty: PyTree) -> float:
        """The validation loss of its answer."""
        return float(score(self.network.response(self.state, log_penalty), self.task.valid))

    def hypergradient(self, log_penalty: PyTree) -> tuple[float, PyTree]:
        """The predicted validation loss and its derivative."""
        found = self.network.hypergradient(
            PROBLEM, self.state, log_penalty, self.task.train, self.task.valid
        )
        return float(found.value), found.grad


def of_one_penalty(task: Task, steps: int, key: Array) -> tuple[Global, Array]:
    """The network over the whole range, and where descent along it ends."""
    trained = Global.fit(
        Hypernetwork(
            Uniform(LOWEST, HIGHEST),
            hidden=(50,),
            optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
            steps=steps // FITS,
        ),
        task,
        jnp.float32(START),
        key,
    )
    lam = jnp.float32(START)
    for _ in range(60):
        lam -= 3 * trained.hypergradient(lam)[1]
    return trained, lam


def of_classes(task: Task, centre: Array, steps: int, key: Array) -> tuple[Global, Array]:
    """The network over draws around `centre`, the best penalties it predicts.

    Descent goes on as far as the predicted loss falls and the network has been trained.
    """
    ten = jnp.full(CLASSES, centre, jnp.float32)
    trained = Global.fit(
        Hypernetwork(
            Normal(ten, CLASS_SPREAD),
            hidden=(50,),
            optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, steps)),
            steps=steps // FITS,
            samples=8,
        ),
        task,
        ten,
        key,
    )
    found, predicted, lam = ten, np.inf, ten
    while trained.network.inside(trained.state, lam):
        value, slope = trained.hypergradient(lam)
        if value >= predicted:
            break
        found, predicted = lam, value
        lam = lam - 0.25 * CLASS_SPREAD * slope / jnp.linalg.norm(slope)
    return trained, found


class Path(NamedTuple):
    """The way of a local hypernetwork's penalties.

    - `predicted`: validation loss of the network's answer after each round.
    - `penalties`: after each tenth of the rounds.
    - `slope`: the network's hypergradient at the end.
    """

    predicted: Float[np.ndarray, " rounds"]
    penalties: list[PyTree]
    slope: PyTree


def of_weights(task: Task, centre: Array, rounds: int, key: Array) -> Path:
    """One penalty for each weight: a network around penalties that follow its hypergradient."""
    many = jax.tree.map(lambda w: jnp.full_like(w, centre), task.zeros)
    local = Hypernetwork(
        Perturbation(WEIGHT_SPREAD),
        bottleneck=10,
        optimizer=WEIGHT_OPTIMIZER,
        steps=LOCAL_STEPS,
        samples=8,
    )
    step = optax.chain(optax.normalize_by_update_norm(), optax.scale(-WEIGHT_SPREAD))
    tuner = Tuner(PROBLEM, local, optimizer=step, train_steps=1)
    state = tuner.init(task.retrained(many), many, task.train, key=key)
    predicted, penalties = [], []
    for number in range(1, rounds + 1):
        state = tuner.train(state, task.train)
        answer = local.response(state.estimator, state.hparams)
        predicted.append(float(score(answer, task.valid)))
        if number % (rounds // 10) == 0:
            penalties.append(state.hparams)
        if number < rounds:
            state, _ = tuner.tune(state, task.train, task.valid)
    last = local.hypergradient(PROBLEM, state.estimator, state.hparams, task.train, task.valid)
    return Path(np.array(predicted), penalties, last.grad)
