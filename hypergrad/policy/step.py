"""An inner step whose settings a policy chooses: what the unrolled estimators run.

Adriaensen et al., "Automated dynamic algorithm configuration" (JAIR 2022): a policy maps the state
of a running algorithm to its parameters, and is judged by whole runs on a set of instances.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Scalar

from hypergrad.policy.features import Features, TrainingFeatures
from hypergrad.problem import BilevelProblem
from hypergrad.unrolled.gradient import grad
from hypergrad.unrolled.steps import LossStep


class PolicyState(eqx.Module):
    """What a run carries: steps taken, the memory of the features, the optimizer's state."""

    step: Int[Array, ""]
    memory: PyTree
    optimizer: PyTree


class Taken(NamedTuple):
    """One step: what the policy saw, what it chose, and the training loss before."""

    features: Float[Array, " features"]
    settings: PyTree
    loss: Scalar


class PolicyStep(LossStep):
    """A step of an optax optimizer whose settings are `policy(hparams, features)`.

    The hyperparameters are the policy's own parameters: constants of the run, tuned over instances
    (`OverInstances`) by any unrolled estimator. The losses are given them as well.

    **Arguments:**

    - `optimizer`: `optimizer(settings) -> optax.GradientTransformation`.
    - `policy`: `policy(hparams, features) -> settings`, any pytree. `LinearPolicy`, or a function.
    - `horizon`: the steps of a run, by which time is measured: the `steps` of the estimator.
    - `features`: what the policy sees. Default `TrainingFeatures()`.
    """

    optimizer: Callable[[PyTree], optax.GradientTransformation]
    policy: Callable[[PyTree, Array], PyTree]
    horizon: int
    features: Features = TrainingFeatures()

    def __check_init__(self) -> None:
        if isinstance(self.horizon, int) and self.horizon < 1:
            raise ValueError(f"PolicyStep: horizon expected at least 1, received {self.horizon}.")
        for name in ("optimizer", "policy"):
            if not callable(getattr(self, name)):
                kind = type(getattr(self, name)).__name__
                raise ValueError(f"PolicyStep: {name} expected a function, received a {kind}.")
        if not isinstance(self.features, Features):
            kind = type(self.features).__name__
            raise ValueError(f"PolicyStep: features expected Features, received a {kind}.")

    def over(self, horizon: int) -> "PolicyStep":
        """The same step in a run of another length."""
        return PolicyStep(self.optimizer, self.policy, horizon, self.features)

    def init(self, params: PyTree, hparams: PyTree) -> PolicyState:
        """See `InnerStep.init`."""
        dynamic = eqx.filter(params, eqx.is_inexact_array)
        nothing = jnp.zeros(len(self.features.names))
        optimizer = self._optimizer(self.policy(hparams, nothing))
        return PolicyState(
            jnp.zeros((), jnp.int32), self.features.init(dynamic), optimizer.init(dynamic)
        )

    def settings(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PolicyState,
        hparams: PyTree,
        loss_hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PolicyState]:
        """See `InnerStep.settings`."""
        params, state, _ = self.taken(problem, params, state, hparams, loss_hparams, batch, key)
        return params, state

    def losses(self, problem: BilevelProblem) -> list[Callable]:
        """See `InnerStep.losses`."""
        return [lambda *arguments: problem.inner_loss(*arguments)[0]]

    def taken(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PolicyState,
        hparams: PyTree,
        loss_hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PolicyState, Taken]:
        """A step, and what it was."""
        dynamic, static = eqx.partition(params, eqx.is_inexact_array)

        def loss(p: PyTree) -> Scalar:
            return problem.inner_loss(eqx.combine(p, static), loss_hparams, batch, key)[0]

        time = state.step / jnp.asarray(self.horizon)

        def update(gradient: PyTree, value: Scalar, state: PolicyState, dynamic: PyTree) -> tuple:
            numbers, memory = self.features(state.memory, time, value, gradient)
            self._check(numbers)
            settings = self.policy(hparams, numbers)
            updates, optimizer = self._optimizer(settings).update(
                gradient, state.optimizer, dynamic, value=value, grad=gradient, value_fn=loss
            )
            after = PolicyState(state.step + 1, memory, optimizer)
            return optax.apply_updates(dynamic, updates), after, Taken(numbers, settings, value)

        dynamic, state, taken = jax.checkpoint(update)(
            grad(loss)(dynamic), loss(dynamic), state, dynamic
        )
        return eqx.combine(dynamic, static), state, taken

    def _optimizer(self, settings: PyTree) -> optax.GradientTransformationExtraArgs:
        made: Any = self.optimizer(settings)
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(
                "PolicyStep: optimizer: expected a function that must return an "
                "optax.GradientTransformation, received one that returns a "
                f"{type(made).__name__}."
            )
        return optax.with_extra_args_support(made)

    def _check(self, numbers: Array) -> None:
        expected = (len(self.features.names),)
        if jnp.shape(numbers) != expected:
            raise ValueError(
                f"{type(self.features).__name__}: expected an array of shape {expected}, one "
                f"number for each of {self.features.names}, received {jnp.shape(numbers)}."
            )
