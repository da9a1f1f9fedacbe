"""How much of a tuned model lives in the hyperparameters alone.

Warm-started inner parameters accumulate information from every hyperparameter visited, so that the
pair `(w, λ)` may do well on the validation data though training from scratch with the final `λ`
does not (Vicol et al., "On implicit bias in overparameterized bilevel optimization", 2022).
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.expected import require, require_count, require_function, require_seed
from hypergrad.inner import InnerSolver
from hypergrad.problem import BilevelProblem


class RetrainGap(NamedTuple):
    """Outer loss of the pair, and of fresh trainings with the same hyperparameters.

    - `joint`: outer loss at the parameters that the search ended with.
    - `retrained`: mean outer loss over the fresh trainings, and `spread` its standard deviation.
    - `gap`: `retrained − joint`.
    - `significant`: the gap exceeds two spreads and 5 % of the joint loss: the hyperparameters
      alone do not carry what was found.
    - `params`: the fresh solutions, with a leading axis over trainings.
    """

    joint: float
    retrained: float
    spread: float
    gap: float
    significant: bool
    params: PyTree


def retrain_gap(
    problem: BilevelProblem,
    solver: InnerSolver,
    initialise: Callable[[Array], PyTree],
    params: PyTree,
    hparams: PyTree,
    inner_data: PyTree,
    outer_data: PyTree,
    *,
    trainings: int = 3,
    seed: int = 0,
) -> RetrainGap:
    """Train afresh with the final hyperparameters and compare.

    **Arguments:**

    - `problem`: the two losses.
    - `solver`: trains; with a fresh state for each training.
    - `initialise`: `initialise(key) -> params`, fresh inner parameters.
    - `params`, `hparams`: what the search found.
    - `inner_data`, `outer_data`: training and validation data.
    - `trainings`: how many. Default 3.
    - `seed`: of the initialisations and the losses' noise.

    **Returns:** a `RetrainGap`.
    """
    check_call(
        "retrain_gap",
        problem,
        None,
        params=params,
        hparams=hparams,
        inner_data=inner_data,
        outer_data=outer_data,
    )
    require("retrain_gap", "solver", solver, InnerSolver, "Newton()")
    require_function("retrain_gap", "initialise", initialise)
    require_count("retrain_gap", "trainings", trainings)
    require_seed("retrain_gap", seed)
    params, hparams, inner_data, outer_data = as_arrays((params, hparams, inner_data, outer_data))

    @eqx.filter_jit
    def loss(params: PyTree, key: Array) -> Array:
        return problem.outer_loss(params, hparams, outer_data, key)[0]

    @eqx.filter_jit
    def train(key: Array) -> PyTree:
        start, noise = jax.random.split(key)
        return solver.run(problem, initialise(start), hparams, inner_data, key=noise).params

    keys = jax.random.split(jax.random.key(seed), trainings + 1)
    joint = float(loss(params, keys[0]))
    fresh = [train(key) for key in keys[1:]]
    losses = [float(loss(point, keys[0])) for point in fresh]
    retrained, spread = float(np.mean(losses)), float(np.std(losses))
    gap = retrained - joint
    stacked = jax.tree.map(
        lambda *x: np.stack(x) if eqx.is_array(x[0]) else x[0], fresh[0], *fresh[1:]
    )
    significant = gap > max(2 * spread, 0.05 * abs(joint))
    return RetrainGap(joint, retrained, spread, gap, significant, stacked)
