"""Learn schedules from any start, by derivatives through whole trainings.

A setting at step `t`, for group `g`, is `s(u[t, g] + Σ_k B[t, k] v[k, g])`: `u` is the start on the
setting's scale, `B` interpolates linearly between `K` knots, and `v`, zero at first, is learned.
The derivative in `v` is the mean of the metagradient around each knot: what one step gains and the
next one loses cancels. The start itself need not be smooth. Maclaurin, Duvenaud & Adams 2015 learn
schedules by derivatives through trainings, Engstrom et al. 2025 from a flat one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from hypergrad.arguments import as_arrays
from hypergrad.expected import received, require, require_function
from hypergrad.outer import Alternating, run
from hypergrad.problem import BilevelProblem
from hypergrad.schedule.learned import LearnedSchedules, over_steps
from hypergrad.schedule.scales import Scale, from_line, to_line
from hypergrad.schedule.scheduled import GroupOf, Make, group_names, scheduled
from hypergrad.unrolled import OptaxStep, Unrolled
from hypergrad.unrolled.stepped import positive_int

# A tenth of a natural logarithm, or of a logit, a step.
_DEFAULT_OPTIMIZER = optax.adam(0.1)
_KNOTS = 10
# What does not say otherwise is positive.
_SCALES: dict[str, Scale] = {"momentum": "logit", "b1": "logit", "b2": "logit"}


class _Optimizer(eqx.Module):
    """Corrections at the knots to an optimizer. A class, so that two are equal to `jit`."""

    make: Make
    base: dict[str, Float[Array, "steps groups"]]
    between: Float[Array, "steps knots"]
    scales: tuple[tuple[str, Scale], ...] = eqx.field(static=True)
    groups: tuple[str, ...] = eqx.field(static=True)
    group_of: GroupOf | None

    def values(self, corrections: dict[str, Array]) -> dict[str, Array]:
        """Settings over steps and groups."""
        return {
            name: from_line(self.base[name] + self.between @ corrections[name], scale)
            for name, scale in self.scales
        }

    def __call__(self, corrections: dict[str, Array]) -> optax.GradientTransformation:
        return scheduled(self.make, self.values(corrections), self.groups, self.group_of)


class _Fixed(eqx.Module):
    """A loss at fixed hyperparameters: only the step reads what is learned."""

    loss: Callable
    hparams: PyTree

    def __call__(self, params: PyTree, _: PyTree, batch: PyTree, key: Array | None = None) -> Any:
        return self.loss(params, self.hparams, batch, key)[0]


def learn_schedules(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
    *,
    optimizer: Make,
    start: Mapping[str, Any],
    steps: int,
    iterations: int = 20,
    scales: Mapping[str, Scale] | None = None,
    group_of: GroupOf | None = None,
    knots: int = _KNOTS,
    outer_optimizer: optax.GradientTransformation = _DEFAULT_OPTIMIZER,
    stacked: bool = False,
    memory: int | None = None,
    holdout: PyTree = None,
    seed: int = 0,
    callbacks: Sequence[Callable] = (),
    **options: Any,
) -> LearnedSchedules:
    """Schedules of the optimizer's settings for the least outer loss at the end of the training.

    Costs five to six trainings an iteration.

    **Arguments:**

    - `problem`, `params`, `hparams`, `inner_batch`, `outer_batch`: the training, and what it is
      judged by; `params` are where it starts.
    - `optimizer`: `optimizer(settings) -> optax.GradientTransformation`, of the settings of one
      step, a dict of scalars: `lambda s: optax.adamw(s["learning_rate"], b1=s["momentum"])`.
    - `start`: for each setting a number, an optax schedule, or an array over the steps (and
      groups). The setting `"batch_weight"` multiplies the gradient of each step's batch, and is
      not passed to the optimizer.
    - `steps`: of a training.
    - `iterations`: metagradient steps.
    - `scales`: for each setting `"log"` (positive; steps are factors), `"logit"` (between 0 and 1)
      or `"linear"`. Default: `"logit"` for `momentum`, `b1`, `b2`, otherwise `"log"`. A start that
      reaches zero counts as a thousandth of its largest value there.
    - `group_of`: the name of a parameter (`"layers/0/weight"`) to that of a group with schedules of
      its own. Default: one for all.
    - `knots`: of the correction, at most `steps`; fewer are smoother. Default 10.
    - `outer_optimizer`: of the corrections. Default: Adam with 0.1.
    - `stacked`: the inner batch holds one batch per step, along a leading axis.
    - `memory`: bytes for checkpoints, as for `Unrolled`.
    - `holdout`: data that move nothing: the schedules with the least loss on them are kept.
    - `seed`, `callbacks`, `options`: of `hypergrad.outer.run`.

    **Returns:** the `LearnedSchedules` with the least loss.

    **Raises:** `ValueError` for bad input; for settings that the end of the training does not
    depend on smoothly, by name (momentum of an optimizer that takes signs).
    """
    steps, knots = positive_int("steps", steps), positive_int("knots", knots)
    require("learn_schedules", "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    require_function("learn_schedules", "optimizer", optimizer)
    if not isinstance(start, Mapping) or not start:
        given_start = "none" if isinstance(start, Mapping) else received(start)
        raise ValueError(f"start: expected at least one setting in a dict, received {given_start}.")
    if scales is not None and not isinstance(scales, Mapping):
        raise ValueError(f"scales: expected a dict of scales, received {received(scales)}.")
    if group_of is not None:
        require_function("learn_schedules", "group_of", group_of)
    given = dict(scales or {})
    if unknown := sorted(set(given) - set(start)):
        raise ValueError(
            f"scales: expected settings of the start {list(start)}, received {unknown}."
        )
    chosen = {name: given.get(name, _SCALES.get(name, "log")) for name in start}
    params, hparams = as_arrays(params), as_arrays(hparams)
    groups = group_names(eqx.filter(params, eqx.is_inexact_array), group_of)
    lines = {
        name: to_line(name, over_steps(value, name, steps, len(groups)), chosen[name])
        for name, value in start.items()
    }
    dtype = jnp.result_type(float)
    knots = min(knots, steps)
    made = _Optimizer(
        optimizer,
        {name: jnp.asarray(line, dtype) for name, line in lines.items()},
        jnp.asarray(_between(steps, knots), dtype),
        tuple(chosen.items()),
        groups,
        group_of,
    )
    result = run(
        BilevelProblem(
            _Fixed(problem.inner_loss, hparams),
            _Fixed(problem.outer_loss, hparams),
            stochastic=problem.stochastic,
            biased=problem.biased,
        ),
        Alternating(
            Unrolled(OptaxStep(made), steps, stacked=stacked, memory=memory),
            outer_optimizer,
            start="cold",
        ),
        params,
        {name: jnp.zeros((knots, len(groups)), dtype) for name in start},
        inner_batch,
        outer_batch,
        steps=positive_int("iterations", iterations),
        seed=seed,
        holdout_data=holdout,
        callbacks=callbacks,
        **options,
    )
    best = result.best if result.holdout_best is None else result.holdout_best
    values = {name: np.asarray(value) for name, value in made.values(best.hparams).items()}
    losses = np.array([row["value"] for row in result.history])
    return LearnedSchedules(values, groups, float(best.value), losses)


def _between(steps: int, knots: int) -> np.ndarray:
    """Linear interpolation from knots at equal distances, the first and last step among them."""
    if knots == 1:
        return np.ones((steps, 1))
    at = np.linspace(0, knots - 1, steps)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(knots)))
