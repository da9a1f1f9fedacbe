"""Cox's proportional hazards model of scikit-survival; imported only for an estimator of it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar
from sksurv.linear_model import CoxPHSurvivalAnalysis

from hypergrad import CG, BilevelProblem, Dense, Newton
from strategies.sklearn.models.base import (
    Fold,
    Hyperparameters,
    Measure,
    Model,
    Response,
    Task,
    geometric_mean,
    implicit_response,
)
from strategies.sklearn.models.small_newton import small_newton

# The largest number of features for which Newton steps are solved by factorisation.
_DENSE = 128
_TOLERANCE = 1e-10
_MOST_STEPS = 100
#: The criterion's name.
PARTIAL = "partial_likelihood"


class CoxModel(Model):
    """`CoxPHSurvivalAnalysis`: negative log partial likelihood, and `alpha / 2` on the squares.

    Targets have two columns: whether there was an event, and the time.
    """

    dense_only: ClassVar[bool] = True
    survival: ClassVar[bool] = True
    hyperparameters = ("alpha",)
    per_feature = "alpha"
    stand_in = PARTIAL

    def __init__(self, estimator: CoxPHSurvivalAnalysis, task: Task):
        super().__init__(estimator)
        self.efron = estimator.ties == "efron"

    @property
    def criteria(self) -> Mapping[str, Measure]:
        """See `Model.criteria`."""
        return {PARTIAL: self._held_out}

    def prepare(
        self, x: Any, y: np.ndarray, train: np.ndarray, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The order of the times, the ends of ties, and the columns' centre and scale."""
        event, time = y.T
        order = np.argsort(-time, kind="stable")
        later = -time[order]
        first = np.searchsorted(later, later, side="left")
        last = np.searchsorted(later, later, side="right") - 1
        share = train / train.sum()
        centre = share @ x
        spread = np.sqrt(share @ (x - centre) ** 2)
        return {
            "order": order,
            "first": first,
            "last": last,
            "discount": self._discount(event[order] * (train[order] > 0), first),
            "centre": centre,
            # A constant column leaves rounding errors.
            "scale": np.where(spread > 1e-6 * np.sqrt(share @ x**2), spread, 1.0),
        }

    def _discount(self, events: np.ndarray, first: np.ndarray) -> np.ndarray:
        """The part of the tied events that Efron's likelihood takes out of each one's risk set."""
        if not self.efron:
            return np.zeros(len(events))
        before = np.cumsum(events)
        position = before - np.where(first > 0, before[first - 1], 0.0)
        number = np.bincount(first, weights=events, minlength=len(events))[first]
        return np.where(events > 0, 1.0 - position / np.maximum(number, 1.0), 0.0)

    def _risk(self, params: PyTree, fold: Fold) -> Float[Array, " n"]:
        return ((fold.x - fold.extra["centre"]) / fold.extra["scale"]) @ params

    def _inner(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        total = jnp.sum(fold.train)
        loss = _likelihood(self._risk(params, fold), fold, fold.train, fold.extra["discount"])
        squares = (params / fold.extra["scale"]) ** 2
        return (loss + 0.5 * jnp.sum(self.value(h, "alpha") * squares)) / total

    def respond(self, h: Hyperparameters, fold: Fold, measure: Measure) -> Response:
        """See `Model.respond`."""
        start = jnp.zeros(fold.x.shape[1])
        problem = BilevelProblem(self._inner, measure)
        if len(start) > _DENSE:
            linear = CG(tol=1e-8, max_steps=2000)
            newton = Newton(tol=1e-9, linear_solver=linear)
            return implicit_response(problem, newton, linear, start, h, fold)

        def solver(params: PyTree, h: Hyperparameters, fold: Fold) -> PyTree:
            return small_newton(
                lambda params: self._inner(params, h, fold),
                params,
                tol=_TOLERANCE,
                max_steps=_MOST_STEPS,
            )

        return implicit_response(problem, solver, Dense(), start, h, fold)

    def output(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Array:
        """See `Model.output`: log relative risks, up to a constant."""
        return self._risk(params, fold)[:, None]

    def _held_out(self, params: PyTree, h: Hyperparameters, fold: Fold) -> Scalar:
        """What held-out samples add to the negative log partial likelihood, per event of theirs.

        Verweij and van Houwelingen, Statistics in Medicine 12, 1993; ties as Breslow has them.
        """
        risk = self._risk(params, fold)
        added = _likelihood(risk, fold, fold.train + fold.test) - _likelihood(
            risk, fold, fold.train
        )
        return added / jnp.maximum(jnp.sum(fold.test * fold.y[:, 0]), 1.0)

    def split(self, value: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Model.split`: an L2 penalty grows with the square of a factor."""
        reference = float(geometric_mean(value, np))
        return reference, np.sqrt(value / reference)


def _likelihood(
    risk: Float[Array, " n"], fold: Fold, weights: Float[Array, " n"], discount: Any = 0.0
) -> Scalar:
    """The negative log partial likelihood, summed over events."""
    order, first, last = (fold.extra[name] for name in ("order", "first", "last"))
    top = jnp.max(risk)
    risk, weights = risk[order], weights[order]
    events = weights * fold.y[order, 0]
    hazard = weights * jnp.exp(risk - top)
    # Times fall: who is at risk has come before, up to the end of a tie.
    at_risk = jnp.cumsum(hazard)[last]
    tied = jnp.cumsum(hazard * fold.y[order, 0])
    tied = tied[last] - jnp.where(first > 0, tied[first - 1], 0.0)
    at_risk = jnp.where(events > 0, at_risk - discount * tied, 1.0)
    return -jnp.sum(events * (risk - top - jnp.log(at_risk)))


MODELS: dict[type, Any] = {CoxPHSurvivalAnalysis: CoxModel}
