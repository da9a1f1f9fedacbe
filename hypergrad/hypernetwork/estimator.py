"""The best response as a network of the hyperparameters.

A hypernetwork `w_φ(λ)` is trained on `E_λ f(w_φ(λ), λ)`, so that it approximates the best response
`w*(λ)` over a distribution of hyperparameters, and the hypergradient is plain differentiation of
`F(w_φ(λ), λ)`. Two distributions are published: a fixed one over the whole range of interest
(*global*), and a narrow one around the current hyperparameters that moves with them (*local*).

Lorraine & Duvenaud, "Stochastic Hyperparameter Optimization through Hypernetworks" (2018),
Algorithms 2 and 3.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from hypergrad.estimator import Estimator, FitInfo, Hypergradient, HypergradientInfo
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.problem import BilevelProblem
from hypergrad.residual import residual_of, residual_scale
from hypergrad.self_tuning.perturbation import Perturbation

# A sample of a normal distribution lies within this many standard deviations of its mean in all
# but 0.3 % of the cases: beyond it, the network has seen next to nothing.
_REACH = 3.0
# Consecutive failures after which training is given up.
_PATIENCE = 10


class Normal(eqx.Module):
    """A fixed normal distribution of the hyperparameters, for a global hypernetwork.

    **Arguments:**

    - `mean`: a number, or a pytree like `hparams`. Default 0.
    - `std`: standard deviation, a positive number or a pytree like `hparams`. Default 1.5.
    """

    mean: PyTree = 0.0
    std: PyTree = 1.5

    def __check_init__(self) -> None:
        _check_positive("Normal", "std", self.std)


class Uniform(eqx.Module):
    """A fixed uniform distribution of the hyperparameters, for a global hypernetwork.

    **Arguments:**

    - `low`, `high`: bounds with `low < high`, numbers or pytrees like `hparams`.
    """

    low: PyTree
    high: PyTree

    def __check_init__(self) -> None:
        _check_positive("Uniform", "high - low", jax.tree.map(jnp.subtract, self.high, self.low))


class ResponseNetwork(eqx.Module):
    """`w_φ(z) = offset + Σ_k basis_k trunk_k(z)`, with `z` the normalised hyperparameters.

    - `trunk`: weights and biases of the layers before the output; empty for a linear network.
    - `activations`: one for each layer of the trunk.
    - `basis`: a pytree like the parameters, each leaf with a leading axis of features.
    - `offset`: a pytree like the parameters.
    """

    trunk: list[tuple[Array, Array]]
    activations: tuple[Callable | None, ...] = eqx.field(static=True)
    basis: PyTree
    offset: PyTree

    def features(self, z: Float[Array, " h"]) -> Float[Array, " k"]:
        """The output of the trunk."""
        for (weight, bias), activation in zip(self.trunk, self.activations, strict=True):
            z = weight @ z + bias
            z = z if activation is None else activation(z)
        return z

    def change(self, features: Float[Array, " k"]) -> PyTree:
        """The part of the output that is linear in the features."""
        return jax.tree.map(
            lambda b: jnp.tensordot(features.astype(b.dtype), b, axes=1), self.basis
        )

    def __call__(self, z: Float[Array, " h"]) -> PyTree:
        """The response at the normalised hyperparameters `z`."""
        return jax.tree.map(jnp.add, self.offset, self.change(self.features(z)))


class HypernetworkState(eqx.Module):
    """The state of a `Hypernetwork`.

    - `params`: the response at the hyperparameters last seen.
    - `network`: the hypernetwork.
    - `optimizer`: state of its optimizer.
    - `centre`, `width`: the hyperparameters as a vector are normalised as `(λ − centre) / width`.
    - `perturbation`: state of the local distribution's scale; `None` for a global one.
    - `key`: the random key of the next `fit`.
    - `steps`: training steps accepted so far, and `last_steps` by the last `fit`.
    - `failures`: consecutive training steps whose loss or gradient was not finite.
    - `scale`: see `HypergradientInfo.inner_residual`.
    """

    params: PyTree
    network: ResponseNetwork
    optimizer: Any
    centre: Float[Array, " h"]
    width: Float[Array, " h"]
    perturbation: Any
    key: Array
    steps: Int[Array, ""]
    last_steps: Int[Array, ""]
    failures: Int[Array, ""]
    scale: Scalar


class Hypernetwork(Estimator):
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
    Before training, the network's output is the `params` given to `init`, everywhere. A linear
    network with a local distribution is kept centred on the current hyperparameters, which leaves
    its function unchanged and makes `offset` the response there.

    The outer objective is `F(w_φ(λ), λ)`; when the scale of a local distribution is learned,
    `hypergradient` also descends `E[F(w_φ(λ + σε), λ + σε)] − τ H(σ)` in the scale.

    `info.error` is infinite outside the distribution the network was trained on (more than 3
    standard deviations from its centre, in a coordinate or in a direction of the bottleneck, or
    outside the bounds), before any training, and after 10 consecutive training steps that were not
    finite; otherwise it is NaN: a hypernetwork does not know its own error. It is biased wherever
    the network cannot represent the response: train again from scratch at the final hyperparameters
    for a number to report.

    Published as Lorraine & Duvenaud (2018), Algorithm 2 (global) and 3 (local). Their local form
    without a perturbation is not offered: its response is identified only by the way in which the
    hyperparameters happen to move.
    """

    distribution: Normal | Uniform | Perturbation = Perturbation(0.1)
    hidden: tuple[int, ...] = eqx.field(static=True, default=())
    bottleneck: int | None = eqx.field(static=True, default=None)
    optimizer: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-2))
    steps: int = eqx.field(static=True, default=10)
    samples: int = eqx.field(static=True, default=2)
    activation: Callable = eqx.field(static=True, default=jnp.tanh)
    max_size: int = eqx.field(static=True, default=50_000_000)

    def __check_init__(self) -> None:
        for name, value in (("steps", self.steps), ("samples", self.samples)):
            if value < 1:
                raise ValueError(f"Hypernetwork: `{name}` must be at least 1, got {value}.")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"Hypernetwork: widths must be positive, got hidden={self.hidden}.")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"Hypernetwork: `bottleneck` must be positive, got {self.bottleneck}.")
        if not isinstance(self.distribution, Normal | Uniform | Perturbation):
            raise ValueError(
                "Hypernetwork: `distribution` must be a Normal, Uniform or Perturbation, "
                f"got {type(self.distribution).__name__}."
            )

    @property
    def local(self) -> bool:
        """Whether the network is trained around the current hyperparameters."""
        return isinstance(self.distribution, Perturbation)

    def size(self, params: PyTree, hparams: PyTree) -> int:
        """Number of weights of the hypernetwork for these parameters and hyperparameters."""
        inputs, outputs = _size(hparams), _size(params)
        total = 0
        for width in self._widths():
            total += (inputs + 1) * width
            inputs = width
        return total + (inputs + 1) * outputs

    @eqx.filter_jit
    def init(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> HypernetworkState:
        """The untrained network, whose output is `params` everywhere.

        **Arguments:** as `Estimator.init`; `key` seeds the network and all later training (default
        `jax.random.key(0)`).

        Raises `ValueError` when no leaf of `hparams` or `params` can be differentiated, when the
        distribution does not fit `hparams`, and when the network would exceed `max_size`.
        """
        key = jax.random.key(0) if key is None else key
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
        flat, _ = _ravel(hparams)
        network_key, problem_key, key = jax.random.split(key, 3)
        centre, width = self._normaliser(hparams, flat)
        weights, constant = eqx.partition(params, eqx.is_inexact_array)
        gradient = residual_of(problem, constant, hparams, inner_batch, problem_key)
        _, scale = residual_scale(gradient, weights)
        state = HypernetworkState(
            params=params,
            network=self._network(network_key, flat, params),
            optimizer=None,
            centre=centre,
            width=width,
            perturbation=(
                self.distribution.init(flat.size, flat.dtype)
                if isinstance(self.distribution, Perturbation)
                else None
            ),
            key=key,
            steps=jnp.zeros((), jnp.int32),
            last_steps=jnp.zeros((), jnp.int32),
            failures=jnp.zeros((), jnp.int32),
            scale=scale,
        )
        return eqx.tree_at(
            lambda s: s.optimizer,
            state,
            self.optimizer.init(eqx.filter(state.network, eqx.is_inexact_array)),
            is_leaf=lambda x: x is None,
        )

    def response(self, state: HypernetworkState, hparams: PyTree) -> PyTree:
        """The network's answer `w_φ(hparams)`, a pytree like `params`."""
        flat, _ = _ravel(hparams)
        return self._respond(state, flat)

    def inside(self, state: HypernetworkState, hparams: PyTree) -> Bool[Array, ""]:
        """Whether `hparams` lie where the network was trained."""
        flat, _ = _ravel(hparams)
        if isinstance(self.distribution, Uniform):
            return jnp.all(jnp.abs(flat - state.centre) <= state.width)
        sigma = state.width if state.perturbation is None else self._sigma(state)
        # In many dimensions the whole of the distribution lies at the radius sqrt(h): each
        # coordinate is judged alone, and each direction that a bottleneck looks at.
        away = (flat - state.centre) / sigma
        inside = jnp.all(jnp.abs(away) <= _REACH)
        if self.bottleneck is not None and not self.hidden:
            directions = state.network.trunk[0][0] * (sigma / state.width)
            seen = jnp.linalg.norm(directions, axis=1)
            inside &= jnp.all(jnp.abs(directions @ away) <= _REACH * seen)
        return inside

    @eqx.filter_jit
    def fit(
        self,
        problem: BilevelProblem,
        state: HypernetworkState,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> tuple[HypernetworkState, FitInfo]:
        """Train the network for `steps` steps on `inner_batch`.

        A step whose loss or gradient is not finite is skipped. `key` replaces the state's own.
        `FitInfo.residual` is the stationarity of the response at `hparams`, `iterations` the steps
        that were not skipped.
        """
        flat, unravel = _ravel(hparams)
        key, next_key = jax.random.split(state.key if key is None else key)
        if self.local and not self.hidden:
            state = _recentre(state, flat)
        spec = eqx.is_inexact_array

        def loss(network: ResponseNetwork, key: Array) -> Scalar:
            sample_key, problem_key = jax.random.split(key)
            draws = self._draw(state, flat, sample_key)
            current = eqx.tree_at(lambda s: s.network, state, network)

            def one(point: Array, key: Array) -> Scalar:
                weights = self._respond(current, point)
                return problem.inner_loss(weights, unravel(point), inner_batch, key)[0]

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
            network, optimizer = jax.tree.map(
                lambda a, b: jnp.where(good, a, b) if eqx.is_array(a) else a,
                (new, new_optimizer),
                (network, optimizer),
            )
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
        residual = _residual(problem, state, hparams, inner_batch, key)
        return state, FitInfo(residual=residual, iterations=state.last_steps)

    @eqx.filter_jit
    def hypergradient(
        self,
        problem: BilevelProblem,
        state: HypernetworkState,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> Hypergradient:
        """The outer loss at the network's response, and its derivative through the network."""
        flat, unravel = _ravel(hparams)
        outer_key, inner_key, scale_key, next_key = jax.random.split(
            state.key if key is None else key, 4
        )

        def outer(point: Array, key: Array) -> tuple[Scalar, PyTree]:
            return problem.outer_loss(self._respond(state, point), unravel(point), outer_batch, key)

        # Differentiated leaf by leaf, so that each gradient has the dtype of its hyperparameter.
        differentiable, constant = eqx.partition(hparams, eqx.is_inexact_array)

        def by_leaf(leaves: PyTree) -> tuple[Scalar, PyTree]:
            point = jax.flatten_util.ravel_pytree(leaves)[0]
            weights = self._respond(state, point)
            return problem.outer_loss(
                weights, eqx.combine(leaves, constant), outer_batch, outer_key
            )

        (value, aux), grad = jax.value_and_grad(by_leaf, has_aux=True)(differentiable)
        perturbation = state.perturbation
        if isinstance(self.distribution, Perturbation) and self.distribution.adaptive:
            distribution = self.distribution
            noise = jax.random.normal(scale_key, (self.samples, flat.size), flat.dtype)

            def spread(sigma: Array) -> Scalar:
                values = jax.vmap(lambda e: outer(flat + sigma * e, outer_key)[0])(noise)
                return jnp.mean(values) - distribution.bonus(sigma)

            by_sigma = jax.grad(spread)(distribution.value(perturbation))
            perturbation = distribution.step(perturbation, by_sigma)
        broken = state.failures >= _PATIENCE
        unreliable = broken | (state.steps == 0) | ~self.inside(state, hparams)
        state = eqx.tree_at(
            lambda s: (s.params, s.perturbation, s.key),
            state,
            (self._respond(state, flat), perturbation, next_key),
            is_leaf=lambda x: x is None,
        )
        finite = jnp.isfinite(value) & vector.all_finite(grad)
        unknown = jnp.full((), jnp.nan, value.dtype)
        info = HypergradientInfo(
            inner_residual=_residual(problem, state, hparams, inner_batch, inner_key),
            inner_iterations=state.last_steps,
            linear_residual=unknown,
            iterations=jnp.asarray(0),
            outcome=Outcome.where(broken | ~finite, Outcome.not_finite, Outcome.solved),
            error=jnp.where(unreliable | ~finite, jnp.inf, unknown),
        )
        return Hypergradient(value=value, grad=grad, state=state, info=info, aux=aux)

    def _widths(self) -> tuple[int, ...]:
        return self.hidden if self.bottleneck is None else (*self.hidden, self.bottleneck)

    def _network(self, key: Array, flat: Array, params: PyTree) -> ResponseNetwork:
        trunk = []
        features = flat.size
        for index, width in enumerate(self._widths()):
            key, weight_key, bias_key = jax.random.split(key, 3)
            weight = jax.random.normal(weight_key, (width, features), flat.dtype)
            # Hidden units need different biases, or tanh of a scalar is odd in all of them.
            bias = jax.random.normal(bias_key, (width,), flat.dtype)
            trunk.append((weight / np.sqrt(features), bias * (index < len(self.hidden))))
            features = width
        activations: tuple = (self.activation,) * len(self.hidden)
        offset = eqx.filter(params, eqx.is_inexact_array)
        return ResponseNetwork(
            trunk=trunk,
            activations=activations + (None,) * (self.bottleneck is not None),
            basis=jax.tree.map(lambda w: jnp.zeros((features, *w.shape), w.dtype), offset),
            offset=jax.tree.map(jnp.asarray, offset),
        )

    def _normaliser(self, hparams: PyTree, flat: Array) -> tuple[Array, Array]:
        match self.distribution:
            case Perturbation():
                return flat, self.distribution.value(self.distribution.init(flat.size, flat.dtype))
            case Normal():
                return (
                    _broadcast("mean", self.distribution.mean, hparams),
                    _broadcast("std", self.distribution.std, hparams),
                )
            case Uniform():
                low = _broadcast("low", self.distribution.low, hparams)
                high = _broadcast("high", self.distribution.high, hparams)
                return (low + high) / 2, (high - low) / 2

    def _sigma(self, state: HypernetworkState) -> Array:
        assert isinstance(self.distribution, Perturbation)
        return self.distribution.value(state.perturbation)

    def _draw(self, state: HypernetworkState, flat: Array, key: Array) -> Array:
        shape = (self.samples, flat.size)
        match self.distribution:
            case Perturbation():
                noise = jax.random.normal(key, shape, flat.dtype)
                return flat + self._sigma(state) * noise
            case Normal():
                return state.centre + state.width * jax.random.normal(key, shape, flat.dtype)
            case Uniform():
                noise = jax.random.uniform(key, shape, flat.dtype, -1, 1)
                return state.centre + state.width * noise

    def _respond(self, state: HypernetworkState, flat: Array) -> PyTree:
        weights = state.network((flat - state.centre) / state.width)
        return eqx.combine(weights, eqx.filter(state.params, eqx.is_inexact_array, inverse=True))


def _recentre(state: HypernetworkState, flat: Array) -> HypernetworkState:
    """The same linear network, with its offset at `flat`."""
    network = state.network
    origin = network.features(jnp.zeros_like(flat))
    moved = network.features((flat - state.centre) / state.width)
    offset = jax.tree.map(jnp.add, network.offset, network.change(moved - origin))
    return eqx.tree_at(lambda s: (s.network.offset, s.centre), state, (offset, flat))


def _residual(
    problem: BilevelProblem, state: HypernetworkState, hparams: PyTree, batch: PyTree, key: Array
) -> Scalar:
    return vector.norm(problem.residual(state.params, hparams, batch, key)) / state.scale


def _ravel(hparams: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    differentiable, constant = eqx.partition(hparams, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(differentiable)
    return flat, lambda point: eqx.combine(unravel(point), constant)


def _size(tree: PyTree) -> int:
    return vector.size(eqx.filter(tree, eqx.is_inexact_array))


def _broadcast(name: str, value: PyTree, hparams: PyTree) -> Array:
    """`value` as a vector with one entry for each hyperparameter."""
    target = eqx.filter(hparams, eqx.is_inexact_array)
    if jax.tree_util.all_leaves([value]):
        value = jax.tree.map(lambda _: value, target)
    try:
        full = jax.tree.map(
            lambda v, t: jnp.broadcast_to(jnp.asarray(v, t.dtype), t.shape), value, target
        )
    except ValueError as error:
        raise ValueError(
            f"Hypernetwork: `{name}` of the distribution must be a number or fit hparams: "
            f"expected {jax.tree.map(jnp.shape, target)}, got {jax.tree.map(jnp.shape, value)}."
        ) from error
    return jax.flatten_util.ravel_pytree(full)[0]


def _check_positive(owner: str, name: str, value: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if isinstance(leaf, jax.core.Tracer):
            continue
        array = np.asarray(leaf, dtype=float)
        if not np.all(np.isfinite(array) & (array > 0)):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{owner}: `{name}`{where} must be positive, got {array}.")
