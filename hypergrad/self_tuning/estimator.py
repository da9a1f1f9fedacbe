"""Self-tuning networks as a family of hypergradient: the training step and the outer gradient.

The weights are an affine function of a response input around the current hyperparameters (see
`layers`), trained on hyperparameters that are perturbed anew for each example. Two published forms
differ in what the response input is and in what is trained on what:

- *STN* (MacKay et al. 2019): the response input is `λ + σε` itself, and all weights are trained on
  the loss at the perturbed hyperparameters;
- *Delta-STN* (Bae & Grosse 2020): the response input is `(λ + σε) − λ`, centred. The base weights
  are trained on the loss at `λ`, unperturbed, which removes the bias of STN; the response weights
  alone are trained at `λ + σε`, on an output that is linearised in the response.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from hypergrad.estimator import FitInfo, Hypergradient, direct_info
from hypergrad.expected import require, require_count, require_number, require_optimizer
from hypergrad.linear import vector
from hypergrad.outcome import Outcome
from hypergrad.response.inputs import effective, ravel
from hypergrad.response.perturbation import Perturbation, PerturbationState
from hypergrad.restricted import RestrictedProblem
from hypergrad.restricted_estimator import RestrictedEstimator
from hypergrad.self_tuning.convert import (
    SelfTuningModel,
    respond,
    response_size,
)
from hypergrad.self_tuning.groups import group_count, split
from hypergrad.self_tuning.weights import Weights, gates_finite

# Response inputs further from the centre than this many standard deviations are extrapolation, as
# are gates that exceed 1 in more than this fraction of the units.
_REACH = 3.0
_SATURATED = 0.1


class SelfTuningState(eqx.Module):
    """The state of a `SelfTuning` estimator.

    - `params`: the model, at the response input of the hyperparameters last seen.
    - `optimizer`, `response_optimizer`: optimizer states of base and response weights.
    - `perturbation`: state of the scale.
    - `centre`: the hyperparameters of the last `fit`, as a vector.
    - `effective`: ones for the hyperparameters that the inner loss reads, zeros for the others.
    - `key`: the random key of the next call.
    - `loss`: the training loss of the last `fit`, at the unperturbed hyperparameters for Delta-STN
      and at the perturbed ones for STN.
    - `steps`, `last_steps`: training steps accepted so far, and by the last `fit`.
    - `rejected`: whether the last `fit` rejected a step that was not finite.
    - `gradient`, `scale`: `HypergradientInfo.inner_residual` is their quotient.
    """

    params: PyTree
    optimizer: Any
    response_optimizer: Any
    perturbation: PerturbationState
    centre: Float[Array, " h"]
    effective: Float[Array, " h"]
    key: Array
    loss: Scalar
    steps: Int[Array, ""]
    last_steps: Int[Array, ""]
    rejected: Bool[Array, ""]
    gradient: Scalar
    scale: Scalar


class _Trained(eqx.Module):
    """What training steps move: both kinds of weights, their optimizers' states, the scale."""

    base: PyTree
    response: PyTree
    optimizer: Any
    response_optimizer: Any
    perturbation: PerturbationState


class SelfTuning(RestrictedEstimator):
    """Self-tuning networks: the response is trained along with the weights.

    **Arguments:**

    - `optimizer`: an optax optimizer of the weights. Default `optax.adam(1e-3)`.
    - `response_optimizer`: of the response weights `W'`, `b'` and `V`. It must have no weight
      decay, which would shrink the response. Default: the same as `optimizer`.
    - `perturbation`: the scale `σ` of the perturbed hyperparameters, fixed or learned. Default
      `Perturbation(0.5)`, fixed.
    - `centred`: `True` (the default) for Delta-STN, `False` for STN.
    - `groups`: number of perturbations drawn for a batch, each shared by a slice of it; the batch's
      leading axis must be a multiple. `None` (the default): one for each example. 1: one for the
      batch, for hyperparameters that examples cannot have on their own.
    - `response_part`: with `centred`, the part of a batch on which the response weights are
      trained, in (0, 1]. Their step costs 5/3 of a plain training step on the same data; on half of
      the batch (the default, 0.5) the whole step costs less than twice a plain one.
    - `steps`: training steps of one `fit`, on the batch it is given. Default 1.

    The problem's `params` hold one or more models made by `to_self_tuning`. Its inner loss is
    called on slices of a batch, with leading axis `batch size / groups`, and must be a mean over
    the batch plus terms that do not depend on it. Hyperparameters are perturbed as they are given:
    take unconstrained ones, and transform them inside the losses (`Hyperparameters`). Only the
    response carries the training loss's dependence on them to the outer loss, so that the inner
    loss need not be differentiable in them: dropout rates and rounded numbers are fine. What the
    outer loss itself does with them is differentiated as well.

    With a fixed scale, `hypergradient` is taken at the hyperparameters themselves. With a learned
    one, value and gradient are means over perturbed hyperparameters, as in the papers, and the
    scale takes one step on its own objective; `aux` then has a leading axis of groups.

    `info.error` is infinite when the response cannot be trusted: before any training, more than 3
    standard deviations from the hyperparameters of the last `fit`, when more than 10 % of the
    gates exceed 1 within one standard deviation, or when the last `fit` met a loss that was not
    finite (that step is rejected and the scale halved). Otherwise it is NaN, for not known.

    The key of `init` seeds all perturbations (default `jax.random.key(0)`); one given to `fit` or
    `hypergradient` takes the place of the state's own. `FitInfo.residual` is that of the last
    step's gradient with respect to the base weights (a batch gradient, with its noise).
    `hypergradient` has no use for the inner batch: the response has been trained by `fit`.

    **Raises:** `ValueError` when `params` hold no `SelfTuningModel`, or one made for another number
    of hyperparameters, when `hparams` hold a discrete hyperparameter without a relaxation, and when
    a batch cannot be split into `groups`.

    The hyperparameters must act on the training loss. Those that it does not read (learning rates,
    batch sizes, initial values) have no best response: they get the direct derivative of the outer
    loss, which is zero where that does not read them either.
    """

    state_type: ClassVar[type] = SelfTuningState

    optimizer: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-3))
    response_optimizer: optax.GradientTransformation | None = eqx.field(static=True, default=None)
    perturbation: Perturbation = Perturbation(0.5)
    centred: bool = eqx.field(static=True, default=True)
    groups: int | None = eqx.field(static=True, default=None)
    response_part: float = eqx.field(static=True, default=0.5)
    steps: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        require_optimizer("SelfTuning", self.optimizer)
        if self.response_optimizer is not None:
            require_optimizer("SelfTuning", self.response_optimizer)
        require("SelfTuning", "perturbation", self.perturbation, Perturbation, "Perturbation(0.5)")
        require_number("SelfTuning", "response_part", self.response_part)
        if not 0 < self.response_part <= 1:
            raise ValueError(
                "SelfTuning: `response_part`: expected a number in (0, 1], received "
                f"{self.response_part}."
            )
        for name, value in (("steps", self.steps), ("groups", self.groups)):
            if value is not None or name == "steps":
                require_count("SelfTuning", name, value)

    @eqx.filter_jit
    def _init(self, given: RestrictedProblem) -> SelfTuningState:
        problem, params, hparams, inner_batch = given.inner_arguments
        size = response_size(hparams)
        models = [
            node
            for node in jax.tree.leaves(params, is_leaf=_is_model)
            if isinstance(node, SelfTuningModel)
        ]
        if not models:
            raise ValueError(
                "SelfTuning: `params` hold no self-tuning model; convert one with "
                "hypergrad.self_tuning.to_self_tuning(model, hparams, key=key)."
            )
        for model in models:
            if model.size != size:
                raise ValueError(
                    f"SelfTuning: the model was converted for {model.size} hyperparameters; "
                    f"`hparams` holds {size}."
                )
        key = jax.random.key(0) if given.key is None else given.key
        key, problem_key = jax.random.split(key)
        flat, _ = ravel(hparams)
        weights = Weights.of(params)
        gradient, scale = weights.stationarity(problem, hparams, inner_batch, problem_key)
        active = effective(replace(given, key=problem_key))
        return SelfTuningState(
            params=self._place(params, active * flat),
            optimizer=self.optimizer.init(weights.base),
            response_optimizer=(self.response_optimizer or self.optimizer).init(weights.response),
            perturbation=self.perturbation.init(size, flat.dtype),
            centre=flat,
            effective=active,
            key=key,
            loss=jnp.full((), jnp.nan, flat.dtype),
            steps=jnp.zeros((), jnp.int32),
            last_steps=jnp.zeros((), jnp.int32),
            rejected=jnp.asarray(False),
            gradient=gradient,
            scale=scale,
        )

    @eqx.filter_jit
    def _fit(
        self, given: RestrictedProblem, state: SelfTuningState
    ) -> tuple[SelfTuningState, FitInfo]:
        flat, _ = ravel(given.hparams)
        weights = Weights.of(given.params)
        key, next_key = jax.random.split(state.key if given.key is None else given.key)
        state = replace(state, centre=flat)

        def loss(trained: tuple[PyTree, PyTree], sigma: Array, key: Array) -> Any:
            base, response = trained
            base_key, response_key = jax.random.split(key)
            fixed = jax.lax.stop_gradient(base) if self.centred else base
            there = replace(given, params=weights.params(fixed, response))
            nearby = self._perturbed(there, state, sigma, response_key)
            if not self.centred:
                return nearby, nearby
            here = replace(given, params=weights.params(base, response), key=base_key)
            at_centre = here.inner_loss()
            # Disjoint weights: the sum has the gradient of each by its own.
            return at_centre + nearby, at_centre

        def step(now: _Trained, key: Array) -> tuple[_Trained, tuple]:
            sigma = self.perturbation.value(now.perturbation)
            (total, value), (by_base, by_response) = jax.value_and_grad(loss, has_aux=True)(
                (now.base, now.response), sigma, key
            )
            updates, optimizer = self.optimizer.update(by_base, now.optimizer, now.base)
            response_updates, response_optimizer = (
                self.response_optimizer or self.optimizer
            ).update(by_response, now.response_optimizer, now.response)
            # A step costs as much memory traffic as arithmetic: one pass over the gradient of the
            # base weights, and none over that of the response. `W'` acts through its gates alone,
            # so that its gradient fails with that of the gates, which are few.
            square = vector.vdot(by_base, by_base)
            finite = jnp.isfinite(total) & jnp.isfinite(square) & gates_finite(by_response)
            new = _Trained(
                optax.apply_updates(now.base, updates),
                optax.apply_updates(now.response, response_updates),
                optimizer,
                response_optimizer,
                now.perturbation,
            )
            old = replace(now, perturbation=self.perturbation.halve(now.perturbation))
            return vector.where(finite, new, old), (finite, value, jnp.sqrt(square))

        end = _Trained(
            weights.base,
            weights.response,
            state.optimizer,
            state.response_optimizer,
            state.perturbation,
        )
        if self.steps == 1:
            end, (finite, value, gradient) = step(end, key)
            accepted = finite.astype(jnp.int32)
        else:
            end, (finite, values, gradients) = jax.lax.scan(
                step, end, jax.random.split(key, self.steps)
            )
            accepted = jnp.sum(finite, dtype=jnp.int32)
            value, gradient = values[-1], gradients[-1]
        params = weights.params(end.base, end.response)
        state = replace(
            state,
            params=self._place(params, state.effective * flat),
            optimizer=end.optimizer,
            response_optimizer=end.response_optimizer,
            perturbation=end.perturbation,
            key=next_key,
            loss=value.astype(state.loss.dtype),
            steps=state.steps + accepted,
            last_steps=accepted,
            rejected=accepted < self.steps,
            gradient=gradient,
        )
        return state, FitInfo(residual=state.gradient / state.scale, iterations=accepted)

    @eqx.filter_jit
    def _hypergradient(self, given: RestrictedProblem, state: SelfTuningState) -> Hypergradient:
        flat, _ = ravel(given.hparams)
        problem, outer_batch = given.problem, given.outer_batch
        params = respond(given.params, None)
        key = state.key if given.key is None else given.key
        noise_key, problem_key, next_key = jax.random.split(key, 3)

        def outer(leaves: PyTree, shift: PyTree, batch: PyTree, key: Array) -> tuple[Scalar, Any]:
            point = jax.tree.map(jnp.add, leaves, shift)
            vector_point = jax.flatten_util.ravel_pytree(point)[0]
            model = self._at(params, vector_point, state)
            return problem.outer_loss(model, given.hparams_at(point), batch, key)

        sigma = self.perturbation.value(state.perturbation)
        perturbation = state.perturbation
        if self.perturbation.adaptive:
            groups = group_count(outer_batch, self.groups)
            _, unravel = jax.flatten_util.ravel_pytree(given.h)
            noise = jax.random.normal(noise_key, (groups, flat.size), flat.dtype)
            slices = split(outer_batch, groups)
            keys = jax.random.split(problem_key, groups)

            def objective(leaves: PyTree, sigma: Array) -> tuple[Scalar, tuple[Scalar, Any]]:
                values, aux = jax.vmap(lambda e, b, k: outer(leaves, unravel(sigma * e), b, k))(
                    noise, slices, keys
                )
                value = jnp.mean(values)
                return value - self.perturbation.bonus(sigma), (value, aux)

            (_, (value, aux)), (grad, by_sigma) = jax.value_and_grad(
                objective, argnums=(0, 1), has_aux=True
            )(given.h, sigma)
            perturbation = self.perturbation.step(perturbation, by_sigma)
        else:
            nowhere = jax.tree.map(jnp.zeros_like, given.h)
            (value, aux), grad = jax.value_and_grad(outer, has_aux=True)(
                given.h, nowhere, outer_batch, problem_key
            )
        far = jnp.any(state.effective * jnp.abs(flat - state.centre) > _REACH * sigma)
        unreliable = far | state.rejected | (state.steps == 0) | self._saturated(params, sigma)
        state = eqx.tree_at(
            lambda s: (s.params, s.perturbation, s.key),
            state,
            (self._place(params, state.effective * flat), perturbation, next_key),
        )
        info = direct_info(
            value,
            grad,
            inner_residual=state.gradient / state.scale,
            inner_iterations=state.last_steps,
            outcome=Outcome.where(state.rejected, Outcome.not_finite, Outcome.solved),
            error=jnp.where(unreliable, jnp.inf, jnp.full((), jnp.nan, value.dtype)),
        )
        return Hypergradient(value=value, grad=grad, state=state, info=info, aux=aux)

    def _at(self, params: PyTree, point: Array, state: SelfTuningState) -> PyTree:
        """The model's response to the hyperparameters `point`."""
        if self.centred:
            return respond(params, state.effective * (point - state.centre), linearised=True)
        return respond(params, state.effective * point)

    def _place(self, params: PyTree, point: Array) -> PyTree:
        """The model as it is at the centre: what `state.params` holds."""
        return respond(params, None if self.centred else point)

    def _perturbed(
        self, given: RestrictedProblem, state: SelfTuningState, sigma: Array, key: Array
    ) -> Scalar:
        """The mean inner loss at hyperparameters perturbed by group, around the state's centre."""
        flat, unravel = ravel(given.hparams)
        groups = group_count(given.inner_batch, self.groups)
        slices = split(given.inner_batch, groups)
        if self.centred:
            groups = math.ceil(self.response_part * groups)
            slices = jax.tree.map(lambda a: a[:groups], slices)
        noise_key, problem_key = jax.random.split(key)
        noise = sigma * jax.random.normal(noise_key, (groups, flat.size), flat.dtype)

        def one(shift: Array, batch: PyTree, key: Array) -> Scalar:
            model, hparams = self._at(given.params, flat + shift, state), unravel(flat + shift)
            return given.problem.inner_loss(model, hparams, batch, key)[0]

        keys = jax.random.split(problem_key, groups)
        return jnp.mean(jax.vmap(one)(noise, slices, keys))

    def _saturated(self, params: PyTree, sigma: Array) -> Bool[Array, ""]:
        fractions = [
            node.saturation(sigma)
            for node in jax.tree.leaves(params, is_leaf=_is_model)
            if isinstance(node, SelfTuningModel)
        ]
        return jnp.max(jnp.stack(fractions)) > _SATURATED


def _is_model(node: Any) -> bool:
    return isinstance(node, SelfTuningModel)
