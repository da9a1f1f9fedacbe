"""The estimator that differentiates a whole run in reverse mode."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hypergrad.expected import require_flag
from hypergrad.linear import vector
from hypergrad.paths import Reach
from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem
from hypergrad.unrolled.base import UnrolledEstimator, UnrolledState
from hypergrad.unrolled.checkpointing import CheckpointSchedule, bytes_allowed
from hypergrad.unrolled.effect import reaches, require_effect
from hypergrad.unrolled.reverse import plan, reverse
from hypergrad.unrolled.roundings import rounding_error
from hypergrad.unrolled.run import Dynamics
from hypergrad.unrolled.stepped import Differentiated


class Unrolled(UnrolledEstimator):
    """The exact derivative of the T steps that are run, by reverse mode within a memory budget.

    The cost does not depend on the number of hyperparameters: about four runs.

    **Arguments:** those of `UnrolledEstimator`, and

    - `memory`: bytes that the reverse pass may take for states and intermediate values, besides
      params, batch and program. States are then stored or run again in the binomial order
      (`hypergrad.unrolled.checkpointing`). `None` stores the whole run if that takes less than
      64 MiB, and otherwise runs every step once more to need about `2 sqrt(T)` of them. Under
      `vmap` it is the memory of one element.
    - `offload`: keep the stored states in the host's memory and fetch them one at a time, on an
      accelerator (on a CPU, which has but one memory, nothing changes). `memory` counts them all
      the same. A run that is stored whole has no such states: give a `memory` that is smaller.
      Needs a JAX that has `jax.memory`.

    `info.error` is an estimate of the rounding error, relative to the hypergradient: machine
    epsilon of the params, times the root of `T`, times how much the contributions of the steps
    cancel, times how much an unstable or chaotic run multiplies its own roundings
    (`hypergrad.unrolled.roundings`): above 1 no digit is right, and float64 has more. It says
    nothing of how far T steps are from convergence: what is differentiated is what was run. Nor
    does it say over what steps of the hyperparameters a chaotic derivative holds: `Metasmooth`
    measures it.

    If a step's derivative is not finite, the contributions of the steps after it are returned, with
    `info.breakdown` set, an infinite `error`, and `info.iterations` counting the steps that they
    stand for. The usual cause is Adam without `eps_root`.
    """

    memory: int | None = eqx.field(static=True)
    offload: bool = eqx.field(static=True)

    def __init__(
        self,
        update: Any,
        steps: int,
        *,
        memory: int | None = None,
        offload: bool = False,
        initial: Callable | None = None,
        stacked: bool = False,
        warm_start: bool = False,
        unseen: Literal["raise", "none"] = "raise",
    ) -> None:
        super().__init__(
            update, steps, initial=initial, stacked=stacked, warm_start=warm_start, unseen=unseen
        )
        require_flag("Unrolled", "offload", offload)
        if offload and not hasattr(jax, "memory"):
            raise ValueError(
                "Unrolled: offload: expected a jax that has jax.memory to hold arrays on the host, "
                f"received jax {jax.__version__}."
            )
        self.memory = bytes_allowed("Unrolled", memory)
        self.offload = bool(offload)

    def _differentiated(self, run: Dynamics) -> tuple[Differentiated, tuple]:
        name, unseen = type(self).__name__, self.unseen == "none"
        run = require_effect(run, 0, self.steps, estimator=name, unseen=unseen)
        x, pull_start = jax.vjp(run.start, run.h)
        result = reverse(run, x, run.rest, 0, self.steps, self.memory, self.offload)
        (from_start,) = pull_start(result.adjoint)
        usable = result.intact & vector.all_finite(from_start)
        grad = jax.tree.map(lambda g, s: g + jnp.where(usable, s, 0), result.grad, from_start)
        total = result.total + result.growth * vector.norm(from_start)
        error = rounding_error(run, self.steps, total, grad)
        value, aux, steps = result.value, result.aux, result.differentiated
        found = Differentiated(run, value, aux, grad, steps, error, usable)
        return found, (result.x, result.rest)

    def reaches(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        outer_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> dict[str, Reach]:
        """What each hyperparameter does in the losses and in the training step; nothing is run."""
        out: list[dict[str, Reach]] = []

        def traced(given: RestrictedProblem) -> None:
            state = self.init(problem, given.params, given.hparams, given.inner_batch, key=key)
            out.append(reaches(self._dynamics(given, state), 0, self.steps))

        given = RestrictedProblem(problem, params, hparams, inner_batch, outer_batch, key)
        eqx.filter_eval_shape(traced, given)
        return out[0]

    def plan(
        self,
        problem: BilevelProblem,
        params: PyTree,
        hparams: PyTree,
        inner_batch: PyTree,
        *,
        key: Array | None = None,
    ) -> CheckpointSchedule:
        """What `hypergradient` is going to do: blocks, slots, steps run again, predicted bytes.

        Nothing is run.
        """
        state = eqx.filter_eval_shape(
            lambda *a: self.init(problem, *a, key=key), params, hparams, inner_batch
        )
        out: list[CheckpointSchedule] = []

        def traced(state: UnrolledState, hparams: PyTree, batch: PyTree) -> None:
            given = RestrictedProblem(problem, state.start, hparams, batch, key=key)
            out.append(plan(self._dynamics(given, state), self.steps, self.memory))

        eqx.filter_eval_shape(traced, state, hparams, inner_batch)
        return out[0]
