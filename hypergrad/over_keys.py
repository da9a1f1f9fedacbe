"""A stochastic problem over several keys: the mean gradient, and its spread in the error."""

from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
from scipy.special import stdtrit

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.expected import require
from hypergrad.linear import vector
from hypergrad.outcome import Outcome, worse, worst
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator, begun, differentiated, fitted

# Errors above this are told even of one key: what is known to be large is a lower bound.
_LARGE = 0.1
# A standard error from few keys is itself uncertain: Student's quantile takes care of that.
_CONFIDENCE = 0.95


def of_expectation(
    problem: BilevelProblem, estimator: Estimator, info: HypergradientInfo
) -> HypergradientInfo:
    """The account of a gradient as one of its expectation.

    Of one draw the error is NaN, unless it is large for another reason, and `outcome` says why.
    """
    if not estimator.of_one_draw(problem):
        return info
    error = jnp.where(info.error <= _LARGE, jnp.nan, info.error)
    # Of an unsolved problem without an estimate there is worse to tell.
    told = ~jnp.isnan(info.error) | info.solved
    outcome = Outcome.where(told, worse(info.outcome, Outcome.one_draw), info.outcome)
    return eqx.tree_at(lambda i: (i.error, i.outcome), info, (error, outcome))


class OverKeysState(eqx.Module):
    """The state of the estimator at the point from which every key starts, and how it is solved.

    - `one`: the state of the first key.
    - `all`: those of all keys, stacked; made by `fit`, `None` before.
    """

    one: Any
    all: Any

    @property
    def params(self) -> PyTree:
        """The inner point of the first key."""
        return self.one.params


class OverKeys(RestrictedEstimator):
    """The mean of an estimator's hypergradients over independent keys.

    One key shows one draw of the noise (dropout masks, augmentation, the order of batches): the
    gradient is right for that draw, and says little of the expectation. Here every key is fitted
    and differentiated by itself, one after the other: the cost is `keys` times that of one, the
    memory that of one and a state for each key.

    `info.error` is the root of the sum of squares of the mean estimated error of one key, and of
    the standard error of the mean over keys times Student's 95 % quantile for `keys - 1`
    degrees of freedom (12.7 for two keys, 3.2 for four, 2.4 for eight), relative to the mean. An
    estimator with `error_estimate=False` leaves the spread, or NaN where that is small.
    `value` is a mean, too; `aux` and `state.params` are those of the first key. The
    info of `fit` is the worst residual, and all steps.

    **Arguments:**

    - `estimator`: for one key.
    - `keys`: how many, at least 2.
    """

    state_type: ClassVar[type] = OverKeysState
    estimator: Estimator
    keys: int = eqx.field(static=True, default=4)

    def __check_init__(self) -> None:
        require("OverKeys", "estimator", self.estimator, Estimator, "ImplicitDifferentiation()")
        if not isinstance(self.keys, int) or self.keys < 2:
            raise ValueError(f"OverKeys: keys expected at least 2, received {self.keys!r}.")

    def of_one_draw(self, problem: BilevelProblem) -> bool:
        """See `Estimator.of_one_draw`."""
        return False

    def _init(self, given: RestrictedProblem) -> OverKeysState:
        first = replace(given, key=self._split(given.key)[0])
        return OverKeysState(begun(self.estimator, first), None)

    def _fit(self, given: RestrictedProblem, state: OverKeysState) -> tuple[OverKeysState, FitInfo]:
        def one(key: Array) -> tuple[Any, FitInfo]:
            return fitted(self.estimator, replace(given, key=key), state.one)

        states, infos = _mapped(one, self._split(given.key))
        info = FitInfo(jnp.max(infos.residual), jnp.sum(infos.iterations))
        return OverKeysState(_first(states), states), info

    def _hypergradient(self, given: RestrictedProblem, state: OverKeysState) -> Hypergradient:
        dynamic, static = eqx.partition(state.one if state.all is None else state.all, eqx.is_array)

        def one(numbered: tuple[Array, Any]) -> Hypergradient:
            key, own = numbered
            of_key = eqx.combine(own, static)
            return differentiated(self.estimator, replace(given, key=key), of_key)

        if state.all is None:
            dynamic = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.keys, *x.shape)), dynamic)
        out = _mapped(one, (self._split(given.key), dynamic))
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), out.grad)
        deviation = jax.tree.map(lambda g, m: g - m, out.grad, mean)
        standard = vector.norm(deviation) / (self.keys * (self.keys - 1)) ** 0.5
        spread = float(stdtrit(self.keys - 1, (1 + _CONFIDENCE) / 2)) * standard
        relative = spread / vector.norm(mean)
        infos = out.info
        info = HypergradientInfo(
            inner_residual=jnp.max(infos.inner_residual),
            inner_iterations=jnp.sum(infos.inner_iterations),
            linear_residual=jnp.max(infos.linear_residual),
            iterations=jnp.sum(infos.iterations),
            outcome=worst(infos.outcome),
            error=jnp.mean(infos.error),
            error_calls=jnp.sum(infos.error_calls),
        )
        total = info.error_with(jnp.where(spread > 0, relative, 0), jnp.hypot)
        info = eqx.tree_at(lambda i: i.error, info, total)
        state = OverKeysState(_first(out.state), None)
        return Hypergradient(jnp.mean(out.value), mean, state, info, _first(out.aux))

    def _split(self, key: Array | None) -> Array:
        if key is None:
            raise ValueError("OverKeys: pass `key`, from which the keys are made.")
        return jax.random.split(key, self.keys)


def _mapped(function: Any, over: PyTree) -> PyTree:
    """One after the other; leaves that are not arrays are those of each."""
    kept: list[PyTree] = []

    def arrays(one: PyTree) -> PyTree:
        dynamic, static = eqx.partition(function(one), eqx.is_array)
        kept.append(static)
        return dynamic

    dynamic = jax.lax.map(arrays, over)
    return eqx.combine(dynamic, kept[-1])


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, tree)
