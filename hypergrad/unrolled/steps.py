"""One step of the inner optimizer, as a differentiable map of parameters and hyperparameters."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from hypergrad.expected import require_function_fields
from hypergrad.linear import vector
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.stateful import Stateful
from hypergrad.unrolled.gradient import grad


class InnerStep(eqx.Module):
    """A step `(params, state) -> (params, state)` that is run, and differentiated, T times."""

    @property
    def noisy(self) -> bool:
        """The step itself draws random numbers, besides those of the losses."""
        return False

    @abstractmethod
    def init(self, params: PyTree, hparams: PyTree) -> PyTree:
        """The step's own state (momenta) at the start of a run."""

    @abstractmethod
    def step(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PyTree]:
        """The next params and state, of the structure, shapes and dtypes of those given."""

    def settings(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PyTree,
        hparams: PyTree,
        loss_hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PyTree]:
        """The same step, with `loss_hparams` in place of `hparams` where the inner loss reads them.

        It tells apart what a hyperparameter does within the step from what it does in the loss; a
        step that does not know the difference takes `hparams` for all.
        """
        return self.step(problem, params, state, hparams, batch, key)

    def losses(self, problem: BilevelProblem) -> list[Callable]:
        """The functions `(params, hparams, batch, key)` that `settings` leaves out."""
        return []


class LossStep(InnerStep):
    """A step on the problem's inner loss; subclasses write `settings`."""

    def step(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PyTree]:
        """See `InnerStep.step`."""
        return self.settings(problem, params, state, hparams, hparams, batch, key)


class OptaxStep(LossStep):
    """A step of an optax optimizer on the problem's inner loss.

    **Arguments:**

    - `optimizer`: `optimizer(hparams) -> optax.GradientTransformation`. It is called inside the
      step, so whatever it takes from `hparams` (learning rate, schedule, momentum, weight decay) is
      traced and differentiated.

    Adam and its relatives divide by the square root of a running mean of squares, whose derivative
    is infinite where a parameter never had a gradient (a dead pixel): give them a positive
    `eps_root`.

    Of a `Stateful` problem the optimizer moves the weights, and the state that the loss returns is
    that of the next step. It is differentiated as well.
    """

    optimizer: Callable[[PyTree], optax.GradientTransformation]

    def __check_init__(self) -> None:
        if isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                "OptaxStep: 'optimizer': expected a function, such as lambda hparams: "
                "optax.adam(hparams['rate']), received an optax optimizer. One that takes nothing "
                "from the hyperparameters is given to the estimator as it is."
            )
        require_function_fields(self, "optimizer")

    def init(self, params: PyTree, hparams: PyTree) -> PyTree:
        """The optimizer's initial state."""
        return self._build(hparams).init(eqx.filter(params, eqx.is_inexact_array))

    def settings(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PyTree,
        hparams: PyTree,
        loss_hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PyTree]:
        """See `InnerStep.settings`."""
        given = RestrictedProblem(problem, params, loss_hparams, batch, key=key)
        renewing = problem.optimality if isinstance(problem.optimality, Stateful) else None
        fixed = (loss_hparams, batch, *given.extra)

        def loss(w: PyTree) -> Array:
            if renewing is not None:
                return renewing.value(given.params_at(w), *fixed)
            return given.inner_loss(w)

        def update(gradient: PyTree, state: PyTree, w: PyTree, value: Array) -> tuple:
            updates, state = self._build(hparams).update(
                gradient, state, w, value=value, grad=gradient, value_fn=loss
            )
            return optax.apply_updates(w, updates), state

        if renewing is None:
            gradient = grad(loss)(given.w)
        else:
            weights, carried = given.w
            gradient = grad(lambda weights, carried: loss((weights, carried)))(weights, carried)
            gradient = (gradient, vector.zeros_like(carried))
        w, state = jax.checkpoint(update)(gradient, state, given.w, loss(given.w))
        params = given.params_at(w)
        if renewing is not None:
            params = (params[0], renewing.renewed(given.params, *fixed))
        return params, state

    def losses(self, problem: BilevelProblem) -> list[Callable]:
        """See `InnerStep.losses`."""
        if isinstance(problem.optimality, Stateful):
            return problem.inner_parts()
        return [lambda *arguments: problem.inner_loss(*arguments)[0]]

    def _build(self, hparams: PyTree) -> optax.GradientTransformationExtraArgs:
        optimizer = self.optimizer(hparams)
        if not isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(
                "The optimizer function: expected an optax.GradientTransformation, "
                f"received {type(optimizer).__name__}. A step of your own goes into StepFunction."
            )
        return optax.with_extra_args_support(optimizer)


class StepFunction(InnerStep):
    """Any step: projected, proximal, preconditioned, with noise, on several losses.

    **Arguments:**

    - `fn`: `fn(params, state, hparams, batch) -> (params, state)`.
    - `state`: `state(params, hparams) -> state` at the start of a run; `None` starts from `None`.
    - `stochastic`: `fn` takes a fifth argument `key`, a new one at each step.

    Take the gradient with `hypergrad.unrolled.grad` in place of `jax.grad`: the same values, at a
    fraction of the memory of the derivative.
    """

    fn: Callable
    state: Callable | None = None
    stochastic: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        require_function_fields(self, "fn")
        if self.state is not None and not callable(self.state):
            raise ValueError(
                "StepFunction: state expected a function state(params, hparams), received a "
                f"{type(self.state).__name__}; write `lambda params, hparams: ...`."
            )

    @property
    def noisy(self) -> bool:
        """See `InnerStep.noisy`."""
        return self.stochastic

    def init(self, params: PyTree, hparams: PyTree) -> PyTree:
        """The state at the start of a run."""
        return None if self.state is None else self.state(params, hparams)

    def step(
        self,
        problem: BilevelProblem,
        params: PyTree,
        state: PyTree,
        hparams: PyTree,
        batch: PyTree,
        key: Array | None,
    ) -> tuple[PyTree, PyTree]:
        """See `InnerStep.step`."""
        if self.stochastic and key is None:
            raise ValueError("The step function is stochastic: pass `key`.")
        out = self.fn(params, state, hparams, batch, *((key,) if self.stochastic else ()))
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(
                f"The step function: expected (params, state), received {type(out).__name__}."
            )
        return out


def as_inner_step(update: Any) -> InnerStep:
    """An `InnerStep` from whatever the user has.

    **Arguments:**

    - `update`: an `InnerStep` (returned as it is), an optax optimizer, or a function of the
      hyperparameters that returns one.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(update, InnerStep):
        return update
    if isinstance(update, optax.GradientTransformation):
        return OptaxStep(_Constant(update))
    if callable(update) and not isinstance(update, type):
        return OptaxStep(update)
    raise ValueError(
        "Inner step: expected an optax optimizer, a function hparams -> optax optimizer, or an "
        f"InnerStep such as StepFunction, received {_given(update)}."
    )


def _given(update: Any) -> str:
    if isinstance(update, type):
        return f"the class {update.__name__} (make one: {update.__name__}(...))"
    return f"the text {update!r}" if isinstance(update, str) else f"a {type(update).__name__}"


class _Constant(eqx.Module):
    """The function that ignores the hyperparameters. A class, so that two are equal to `jit`."""

    optimizer: optax.GradientTransformation

    def __call__(self, hparams: PyTree) -> optax.GradientTransformation:
        return self.optimizer
