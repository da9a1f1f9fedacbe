"""What a differentiable model of a scikit-learn estimator is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

from hypergrad import BilevelProblem, ImplicitDifferentiation
from hypergrad.linear.base import LinearSolver

Hyperparameters = Mapping[str, Array]


class NotDifferentiableError(Exception):
    """Says why an estimator has no differentiable model with these parameters."""


@dataclass(frozen=True)
class Task:
    """What a model must know of the search.

    - `classes`: number of classes; zero for a regression.
    - `searched`: names of the final estimator's parameters that are searched.
    """

    classes: int
    searched: frozenset[str]


class Fold(eqx.Module):
    """One split, over all samples: a sample that is not in a part has the weight zero there.

    - `x`: samples by features, dense or a `SparseMatrix`; the same for all folds unless a
      pipeline's first steps are fitted per fold.
    - `y`: targets, one column per output; classes as 0 and 1, one column for two, else one each.
    - `train`, `test`: weights of the samples.
    - `extra`: what the model's `prepare` adds.
    """

    x: Any
    y: Float[Array, "n m"]
    train: Float[Array, " n"]
    test: Float[Array, " n"]
    extra: PyTree


#: What a trained model is judged by: `(parameters, hyperparameters, fold) -> scalar`.
Measure = Callable[[PyTree, Hyperparameters, Fold], Scalar]


class Response(NamedTuple):
    """A fold's criterion, its derivative, and how far from its minimum the training ended.

    `residual` is relative to the gradient at the start; zero for a closed form. `params` are where
    the next training starts, in place of `extra["start"]`; empty for a closed form.
    """

    value: Scalar
    gradient: dict[str, Array]
    residual: Scalar
    params: PyTree = ()


class Model(ABC):
    """The best response of an estimator to its hyperparameters, as a differentiable function.

    A subclass is made of an estimator (its constructor raises `NotDifferentiableError`) and treats
    `hyperparameters`, which are named as scikit-learn names them, as arrays; whatever else the
    estimator's parameters say is structure.
    """

    #: Parameters that have a hypergradient.
    hyperparameters: tuple[str, ...]
    #: The one of which there may be one for every feature.
    per_feature: str | None = None
    #: Outputs are margins and not logits.
    margins: bool = False
    #: Deviance of a mean, per sample, where the estimator's own score is made of it.
    deviance: Callable[[Array, Array], Array] | None = None
    #: The one of the model's own criteria that stands for any scorer; its outputs are then of a
    #: kind for which the common criteria make no sense.
    stand_in: str | None = None
    #: Those of the model's own criteria that are negative log densities.
    densities: tuple[str, ...] = ()
    #: The least that a target may be, and whether it may be just that.
    least: tuple[float, bool] = (-math.inf, True)
    #: Targets are events and times.
    survival: ClassVar[bool] = False

    def __init__(self, estimator: Any):
        self.estimator = estimator

    @property
    def criteria(self) -> Mapping[str, Measure]:
        """Criteria, by name, that only this model has."""
        return {}

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a fold needs besides its data, computed on the host; `values` are natural ones."""
        return {}

    def together(self, extras: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What `prepare` made of all folds, in the same shapes."""
        return extras

    #: Whether `prepare` reads `values`, so that it must run for every configuration.
    prepares_by_value: ClassVar[bool] = False

    def respond(self, h: Hyperparameters, fold: Fold, measure: Measure) -> Response:
        """The criterion of the trained parameters on a fold, and its derivative."""

        def value(h: Hyperparameters) -> Scalar:
            return measure(self.solve(h, fold), h, fold)

        return Response(*jax.value_and_grad(value)(h), jnp.zeros(()))

    def solve(self, h: Hyperparameters, fold: Fold) -> PyTree:
        """The trained parameters in closed form, through which automatic differentiation goes."""
        raise NotImplementedError

    #: Sparse features have no model.
    dense_only: ClassVar[bool] = False
    #: A column of zeros beside the others would change the training.
    fixed_width: ClassVar[bool] = False

    @abstractmethod
    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Float[Array, "n m"]:
        """Predicted means, logits or margins of all samples."""

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """The estimator's own parameter and the columns' factors, from one value per feature."""
        raise NotImplementedError

    def value(self, h: Hyperparameters, name: str) -> Array:
        """A hyperparameter, or the estimator's own where it is not searched."""
        return h[name] if name in h else jnp.asarray(float(getattr(self.estimator, name)))


def implicit_response(
    problem: BilevelProblem,
    solver: Any,
    linear_solver: LinearSolver,
    start: PyTree,
    h: Hyperparameters,
    fold: Fold,
    *,
    convex: bool = True,
) -> Response:
    """The response of an inner problem that is solved by iteration.

    Where it is not `convex`, the system may be singular or indefinite.
    """
    estimator = ImplicitDifferentiation(solver, linear_solver, error_estimate=False)
    state = estimator.init(problem, start, h, fold)
    state, _ = estimator.fit(problem, state, h, fold)
    found = estimator.hypergradient(problem, state, h, fold, fold)
    bad = found.info.breakdown
    if convex:
        bad = bad | found.info.nonpositive_curvature
    gradient = {name: jnp.where(bad, jnp.nan, part) for name, part in found.grad.items()}
    return Response(found.value, gradient, found.info.inner_residual)


def geometric_mean(value: Any, numpy: Any = jnp) -> Any:
    """The reference of relative penalties."""
    return numpy.exp(numpy.mean(numpy.log(value)))
