"""Whether a training is smooth enough in its hyperparameters for its hypergradient to be of use.

The derivative of a chaotic training is exact and says nothing of a step that one would take. Two
measures of that, each over random steps `d` (a sign for each hyperparameter, times `step`), where
`w(λ)` is the end of the training and `F(λ)` the outer loss there:

    metasmoothness  Σ_j |Δ_j + Δ'_j| sign(Δ_j) sign(Δ'_j) / Σ_j |Δ_j + Δ'_j|,
                    Δ = w(λ + d) − w(λ),   Δ' = w(λ + 2d) − w(λ + d)
    agreement       Σ ⟨dF/dλ, d⟩ (F(λ + d) − F(λ)) / √(Σ ⟨dF/dλ, d⟩² Σ (F(λ + d) − F(λ))²),
                    sums over the steps

The first is the empirical metasmoothness of Engstrom, Ilyas, Chen, Feldmann, Moses & Madry 2025
(*Optimizing ML Training with Metagradient Descent*, definition 2): each parameter counts as much as
it moved over both steps together. Moves that have nothing to do with each other therefore give
√2 − 1 = 0.41 if they are Gaussian, not 0. The second asks the metagradient itself.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from hypergrad.arguments import as_arrays, check_call
from hypergrad.estimator import Estimator, Hypergradient
from hypergrad.expected import require_count, require_seed
from hypergrad.implicit.trains import check_trains
from hypergrad.metasmooth.moves import smoothness_of
from hypergrad.metasmooth.steps import check_step, step_sizes
from hypergrad.metasmooth.steps import flat as flat_params
from hypergrad.problem import BilevelProblem


@dataclass(frozen=True)
class Metasmoothness:
    """What `metasmoothness` found; all within [-1, 1], and 1 is smooth.

    - `value`, `error`: the metasmoothness, mean over the steps, and its standard error. NaN if a
      step did not move the end of the training.
    - `agreement`, `agreement_error`: correlation of predicted and actual changes of the outer loss,
      and its standard error (jackknife over the steps). NaN if nothing is predicted, or changes.
    - `predicted`, `changes`: of the outer loss, one for each step.
    """

    value: float
    error: float
    agreement: float
    agreement_error: float
    predicted: np.ndarray
    changes: np.ndarray

    def __str__(self) -> str:
        return (
            f"metasmoothness {self.value:.3f} ± {self.error:.3f}, agreement of the metagradient "
            f"{self.agreement:.3f} ± {self.agreement_error:.3f}, over {len(self.changes)} steps"
        )


def metasmoothness(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    inner_batch: PyTree = None,
    outer_batch: PyTree = None,
    *,
    estimator: Estimator,
    step: PyTree,
    directions: int = 8,
    seed: int = 0,
    key: Array | None = None,
) -> Metasmoothness:
    """How well a training, and its hypergradient, foretell what a step in hyperparameters does.

    Costs one hypergradient and, for each direction, two trainings. With float32 and a tiny `step`
    rounding looks like chaos: give a step that you would take.

    **Arguments:**

    - `problem`, `params`, `hparams`, `inner_batch`, `outer_batch`, `key`: as for `hypergradient`.
      The same key serves all trainings.
    - `estimator`: it trains (its `init` and `fit`, or its own run), and takes the hypergradient.
    - `step`: how far a hyperparameter is moved; a positive number for all of them, or a pytree
      like `hparams` of such numbers.
    - `directions`: how many random directions, at least 2.
    - `seed`: of the directions.

    **Returns:** a `Metasmoothness`.

    **Raises:** `ValueError` for a step or a number of directions out of range, and for an estimator
    that does not train.
    """
    check_call(
        "metasmoothness",
        problem,
        key,
        params=params,
        hparams=hparams,
        inner_batch=inner_batch,
        outer_batch=outer_batch,
    )
    check_trains(estimator, "it trains at several hyperparameters")
    require_seed("metasmoothness", seed)
    require_count("metasmoothness", "directions", directions, 2)
    arguments = as_arrays((params, hparams, inner_batch, outer_batch))
    h = eqx.filter(arguments[1], eqx.is_inexact_array)
    flat = ravel_pytree(h)[0]
    check_step(step)
    sizes = step_sizes(step, h)

    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(directions, flat.size))
    moves = jnp.asarray(signs, flat.dtype) * sizes
    value, grad, end = _gradient(problem, estimator, arguments, key)
    both = jnp.concatenate([moves, 2 * moves])
    found = _shifted(problem, estimator, arguments, both, key)
    values, ends = (np.asarray(a, float) for a in found)
    changes = values[:directions] - float(value)
    predicted = np.asarray(moves, float) @ np.asarray(grad, float)
    first = ends[:directions] - np.asarray(end, float)
    second = ends[directions:] - ends[:directions]
    each = np.asarray(smoothness_of(first, second), float)
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = _correlation(predicted, changes)
        left_out = np.array(
            [
                _correlation(np.delete(predicted, i), np.delete(changes, i))
                for i in range(directions)
            ]
        )
    spread = np.sqrt((directions - 1) * np.mean((left_out - left_out.mean()) ** 2))
    return Metasmoothness(
        value=float(each.mean()),
        error=float(each.std(ddof=1) / directions**0.5),
        agreement=float(agreement),
        agreement_error=float(spread),
        predicted=predicted,
        changes=changes,
    )


@eqx.filter_jit
def _gradient(
    problem: BilevelProblem, estimator: Estimator, arguments: tuple, key: Array | None
) -> tuple[Array, Array, Array]:
    out = _trained(problem, estimator, arguments, arguments[1], key)
    return out.value, ravel_pytree(out.grad)[0], flat_params(out.state.params)


@eqx.filter_jit
def _shifted(
    problem: BilevelProblem,
    estimator: Estimator,
    arguments: tuple,
    moves: Array,
    key: Array | None,
) -> tuple[Array, Array]:
    """Outer losses and ends of the trainings, one for each move of the hyperparameters."""
    h, h_static = eqx.partition(arguments[1], eqx.is_inexact_array)
    flat, unravel = ravel_pytree(h)

    def at(move: Array) -> tuple[Array, Array]:
        hparams = eqx.combine(unravel(flat + move), h_static)
        # The derivative is not asked for, and the compiler leaves it out.
        out = _trained(problem, estimator, arguments, hparams, key)
        return out.value, flat_params(out.state.params)

    return jax.lax.map(at, moves)


def _trained(
    problem: BilevelProblem,
    estimator: Estimator,
    arguments: tuple,
    hparams: PyTree,
    key: Array | None,
) -> Hypergradient:
    params, _, inner_batch, outer_batch = arguments
    state = estimator.init(problem, params, hparams, inner_batch, key=key)
    state, _ = estimator.fit(problem, state, hparams, inner_batch, key=key)
    return estimator.hypergradient(problem, state, hparams, inner_batch, outer_batch, key=key)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
