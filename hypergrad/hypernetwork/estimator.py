"""The best response as a network of the hyperparameters.

A hypernetwork `w_φ(λ)` is trained on `E_λ f(w_φ(λ), λ)`, so that it approximates the best response
`w*(λ)` over a distribution of hyperparameters, and the hypergradient is plain differentiation of
`F(w_φ(λ), λ)`. Two distributions are published: a fixed one over the whole range of interest
(*global*), and a narrow one around the current hyperparameters that moves with them (*local*).

Lorraine & Duvenaud, "Stochastic Hyperparameter Optimization through Hypernetworks" (2018),
Algorithms 2 and 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, direct_info
from hypergrad.expected import require_count, require_function_fields, require_optimizer
from hypergrad.hypernetwork.distribution import (
    REACH,
    Distribution,
    Normal,
    Sampling,
    Uniform,
    is_local,
    sampling,
)
from hypergrad.hypernetwork.network import ResponseNetwork, untrained, widths
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.residual import residual_scale
from hypergrad.response.inputs import effective, ravel
from hypergrad.response.perturbation import Perturbation
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator

# Consecutive failures after which training is given up.
_PATIENCE = 10


class HypernetworkState(eqx.Module):
    """The state of a `Hypernetwork`.

    - `params`: the response at the hyperparameters last seen.
    - `network`: the hypernetwork.
    - `optimizer`: state of its optimizer.
    - `sampling`: the distribution, as a vector.
    - `effective`: ones for the hyperparameters that the inner loss reads, zeros for the others.
    - `key`: the random key of the next `fit`.
    - `steps`: training steps accepted so far, and `last_steps` by the last `fit`.
    - `failures`: consecutive training steps whose loss or gradient was not finite.
    - `scale`: see `HypergradientInfo.inner_residual`.
    """

    params: PyTree
    network: ResponseNetwork
    optimizer: Any
    sampling: Sampling
    effective: Float[Array, " h"]
    key: Array
    steps: Int[Array, ""]
    last_steps: Int[Array, ""]
    failures: Int[Array, ""]
    scale: Scalar


class Hypernetwork(RestrictedEstimator):
    """A hypernetwork as the best response: trained over a distribution of hyperparameters.

    **Arguments:**

    - `distribution`: where the network is trained. `Normal` or `Uniform`: *global*, the same
      wherever the hyperparameters are. `Perturbation`: *local*, a normal distribution around the
      hyperparameters given to `fit`, of fixed or learned scale. Default `Perturbation(0.1)`.
    - `hidden`: widths of hidden layers. Empty (the default) for a linear hypernetwork.
    - `bottleneck`: the output is a combination of this many learned directions, so that a network
      for `h` hyperparameters and `p` parameters has about `bottleneck * (h + p)` weights and not
      `h * p`. Default: no bottleneck.
    - `optimizer`: an optax optimizer of the hypernetwork. Default `optax.adam(1e-2)`.
    - `steps`: optimizer steps of one `fit`. Default 10.
    - `samples`: hyperparameters sampled in each step. Each costs one copy of the parameters and
      one gradient of the inner loss. Default 2.
    - `activation`: of the hidden layers. Default `tanh`.
    - `max_size`: `init` refuses to make a larger network. Default 50 million weights.

    Hyperparameters are used as they are given: take unconstrained ones (log penalties, logits).
    Those that the inner loss does not read have no best response: they are no input of the network,
    and get the direct derivative of the outer loss alone. Before training, the network's output is
    the `params` given to `init`, everywhere. A network with a local distribution is kept centred on
    the current hyperparameters, which leaves its function unchanged.

    The outer objective is `F(w_φ(λ), λ)`; when the scale of a local distribution is learned,
    `hypergradient` also descends `E[F(w_φ(λ + σε), λ + σε)] − τ H(σ)` in the scale.

    `info.error` is infinite outside the distribution the network was trained on (more than 3
    standard deviations from its centre, in a coordinate or in a direction of the bottleneck, or
    outside the bounds), before any training, and after 10 consecutive training steps that were not
    finite; otherwise it is NaN: a hypernetwork does not know its own error. It is biased wherever
    the network cannot represent the response: train again from scratch at the final hyperparameters
    for a number to report.

    The key of `init` seeds the network and all later training (default `jax.random.key(0)`); one
    given to `fit` or `hypergradient` takes the place of the state's own. `fit` trains for `steps`
    steps on its batch, and skips those whose loss or gradient is not finite: `FitInfo.iterations`
    are the others, `FitInfo.residual` is the stationarity of the response.

    **Raises:** `ValueError`, by `init`, when no leaf of `hparams` or `params` can be
    differentiated, when the distribution does not fit `hparams`, and when the network would exceed
    `max_size`.

    Published as Lorraine & Duvenaud (2018), Algorithm 2 (global) and 3 (local). Their local form
    without a perturbation is not offered: its response is identified only by the way in which the
    hyperparameters happen to move.
    """

    state_type: ClassVar[type] = HypernetworkState

    distribution: Distribution = Perturbation(0.1)
    hidden: tuple[int, ...] = eqx.field(static=True, default=())
    bottleneck: int | None = eqx.field(static=True, default=None)
    optimizer: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-2))
    steps: int = eqx.field(static=True, default=10)
    samples: int = eqx.field(static=True, default=2)
    activation: Callable = eqx.field(static=True, default=jnp.tanh)
    max_size: int = eqx.field(static=True, default=50_000_000)

    def __check_init__(self) -> None:
        require_optimizer("Hypernetwork", self.optimizer)
        require_function_fields(self, "activation")
        for name, value in (("steps", self.steps), ("samples", self.samples)):
            require_count("Hypernetwork", name, value)
        if not isinstance(self.hidden, Sequence) or isinstance(self.hidden, str):
            raise ValueError(
                "Hypernetwork: hidden: expected widths such as (50,), received "
                f"{self.hidden!r:.40}."
            )
        for width in self.hidden:
            require_count("Hypernetwork", "hidden", width)
        if self.bottleneck is not None:
            require_count("Hypernetwork", "bottleneck", self.bottleneck)
        if not isinstance(self.distribution, Normal | Uniform | Perturbation):
            raise ValueError(
                "Hypernetwork: `distribution`: expected a Normal, Uniform or Perturbation, "
                f"received {type(self.distribution).__name__}."
            )

    @property
    def local(self) -> bool:
        """Whether the network is trained around the current hyperparameters."""
        return is_local(self.distribution)

    def size(self, params: PyTree, hparams: PyTree) -> int:
        """Number of weights of the hypernetwork for these parameters and hyperparameters."""
        inputs, outputs = _size(hparams), _size(params)
        total = 0
        for width in widths(self.hidden, self.bottleneck):
            total += (inputs + 1) * width
            inputs = width
        return total + (inputs + 1) * outputs

    @eqx.filter_jit
    def _init(self, given: RestrictedProblem) -> HypernetworkState:
        params, hparams = given.params, given.hparams
        key = jax.random.key(0) if given.key is None else given.key
        if _size(hparams) == 0 or _size(params) == 0:
            name = "hparams" if _size(hparams) == 0 else "params"
            raise ValueError(
                f"Hypernetwork: `{name}` has no floating-point array to differentiate; expected "
                "at least one (Python numbers and integer arrays are carried along as constants)."
            )
        total = self.size(params, hparams)
        if total > self.max_size:
            raise ValueError(
                f"Hypernetwork: {_size(hparams)} hyperparameters and {_size(params)} parameters "
                f"need a network of {total} weights, more than max_size={self.max_size}. "
                "Set `bottleneck` (10 is a good start) or raise `max_size`."
            )
        network_key, problem_key, key = jax.random.split(key, 3)
        here = replace(given, key=problem_key)
        _, scale = residual_scale(here.residual, here.w)
        network = untrained(
            network_key,
            ravel(hparams)[0],
            params,
            self.hidden,
            self.bottleneck,
            self.activation,
        )
        return HypernetworkState(
            params=params,
            network=network,
            optimizer=self.optimizer.init(eqx.filter(network, eqx.is_inexact_array)),
            sampling=sampling(self.distribution, hparams),
            effective=effective(here),
            key=key,
            steps=jnp.zeros((), jnp.int32),
            last_steps=jnp.zeros((), jnp.int32),
            failures=jnp.zeros((), jnp.int32),
            scale=scale,
        )

    def response(self, state: HypernetworkState, hparams: PyTree) -> PyTree:
        """The network's answer `w_φ(hparams)`, a pytree like `params`."""
        flat, _ = ravel(hparams)
        return self._respond(state, flat)

    def inside(self, state: HypernetworkState, hparams: PyTree) -> Bool[Array, ""]:
        """Whether `hparams` lie where the network was trained."""
        flat, _ = ravel(hparams)
        away = state.effective * state.sampling.away(self.distribution, flat)
        if isinstance(self.distribution, Uniform):
            return jnp.all(jnp.abs(away) <= 1)
        # In many dimensions the whole of the distribution lies at the radius sqrt(h): each
        # coordinate is judged alone, and each direction that a bottleneck sees.
        inside = jnp.all(jnp.abs(away) <= REACH)
        if self.bottleneck is not None and not self.hidden:
            sigma = state.sampling.sigma(self.distribution)
            directions = state.network.trunk[0][0] * (sigma / state.sampling.width)
            seen = jnp.linalg.norm(directions, axis=1)
            inside &= jnp.all(jnp.abs(directions @ away) <= REACH * seen)
        return inside

    @eqx.filter_jit
    def _fit(
        self, given: RestrictedProblem, state: HypernetworkState
    ) -> tuple[HypernetworkState, FitInfo]:
        flat, unravel = ravel(given.hparams)
        key, next_key = jax.random.split(state.key if given.key is None else given.key)
        if self.local:
            state = _recentred(state, flat)
        spec = eqx.is_inexact_array

        def loss(network: ResponseNetwork, key: Array) -> Scalar:
            sample_key, problem_key = jax.random.split(key)
            draws = state.sampling.draw(self.distribution, flat, self.samples, sample_key)
            current = eqx.tree_at(lambda s: s.network, state, network)

            def one(point: Array, key: Array) -> Scalar:
                weights = self._respond(current, point)
                at = replace(given, params=weights, hparams=unravel(point), key=key)
                return at.inner_loss()

            return jnp.mean(jax.vmap(one)(draws, jax.random.split(problem_key, self.samples)))

        def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
            network, optimizer, failures = carry
            value, gradient = eqx.filter_value_and_grad(loss)(network, key)
            updates, new_optimizer = self.optimizer.update(
                gradient, optimizer, eqx.filter(network, spec)
            )
            finite = jnp.isfinite(value) & vector.all_finite(gradient)
            good = finite & (failures < _PATIENCE)
            new = eqx.apply_updates(network, updates)
            network, optimizer = vector.where(good, (new, new_optimizer), (network, optimizer))
            failures = jnp.where(good, 0, jnp.minimum(failures + 1, _PATIENCE))
            return (network, optimizer, failures), good

        (network, optimizer, failures), good = jax.lax.scan(
            step,
            (state.network, state.optimizer, state.failures),
            jax.random.split(key, self.steps),
        )
        taken = jnp.sum(good, dtype=jnp.int32)
        state = eqx.tree_at(
            lambda s: (s.network, s.optimizer, s.failures, s.key, s.last_steps, s.steps),
            state,
            (network, optimizer, failures, next_key, taken, state.steps + taken),
        )
        state = eqx.tree_at(lambda s: s.params, state, self._respond(state, flat))
        residual = _residual(replace(given, key=key), state)
        return state, FitInfo(residual=residual, iterations=state.last_steps)

    @eqx.filter_jit
    def _hypergradient(self, given: RestrictedProblem, state: HypernetworkState) -> Hypergradient:
        flat, unravel = ravel(given.hparams)
        outer_key, inner_key, scale_key, next_key = jax.random.split(
            state.key if given.key is None else given.key, 4
        )
        here = replace(given, key=outer_key)

        # Differentiated leaf by leaf, so that each gradient has the dtype of its hyperparameter.
        def outer(h: PyTree) -> tuple[Scalar, PyTree]:
            answer = replace(here, params=self._respond(state, ravel(h)[0]))
            return answer.outer_loss_and_aux(None, h)

        (value, aux), grad = jax.value_and_grad(outer, has_aux=True)(here.h)
        perturbation = state.sampling.scale
        if isinstance(self.distribution, Perturbation) and self.distribution.adaptive:
            distribution = self.distribution
            noise = jax.random.normal(scale_key, (self.samples, flat.size), flat.dtype)

            def spread(sigma: Array) -> Scalar:
                def at(e: Array) -> Scalar:
                    return outer(replace(here, hparams=unravel(flat + sigma * e)).h)[0]

                return jnp.mean(jax.vmap(at)(noise)) - distribution.bonus(sigma)

            by_sigma = jax.grad(spread)(distribution.value(perturbation))
            perturbation = distribution.step(perturbation, by_sigma)
        broken = state.failures >= _PATIENCE
        unreliable = broken | (state.steps == 0) | ~self.inside(state, given.hparams)
        state = eqx.tree_at(
            lambda s: (s.params, s.sampling.scale, s.key),
            state,
            (self._respond(state, flat), perturbation, next_key),
            is_leaf=lambda x: x is None,
        )
        info = direct_info(
            value,
            grad,
            inner_residual=_residual(replace(given, key=inner_key), state),
            inner_iterations=state.last_steps,
            outcome=Outcome.where(broken, Outcome.not_finite, Outcome.solved),
            error=jnp.where(unreliable, jnp.inf, jnp.full((), jnp.nan, value.dtype)),
        )
        return Hypergradient(value=value, grad=grad, state=state, info=info, aux=aux)

    def _respond(self, state: HypernetworkState, flat: Array) -> PyTree:
        weights = state.network(_input(state, flat))
        return eqx.combine(weights, eqx.filter(state.params, eqx.is_inexact_array, inverse=True))


def _input(state: HypernetworkState, flat: Array) -> Array:
    """The hyperparameters as the network's input."""
    return state.effective * (flat - state.sampling.centre) / state.sampling.width


def _recentred(state: HypernetworkState, flat: Array) -> HypernetworkState:
    """The same function of the hyperparameters, by a network whose input is zero at `flat`."""
    moved = state.network.shifted(_input(state, flat))
    return eqx.tree_at(lambda s: (s.network, s.sampling.centre), state, (moved, flat))


def _residual(given: RestrictedProblem, state: HypernetworkState) -> Scalar:
    return vector.norm(replace(given, params=state.params).residual()) / state.scale


def _size(tree: PyTree) -> int:
    return vector.size(eqx.filter(tree, eqx.is_inexact_array))
