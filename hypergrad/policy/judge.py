"""How a policy does on instances and horizons that it has not learned from."""

import math
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad.arguments import as_arrays, check_leaves
from hypergrad.expected import require, require_count, require_flag, require_key
from hypergrad.policy.instances import instances
from hypergrad.policy.step import PolicyStep, Taken
from hypergrad.problem import BilevelProblem


@dataclass(frozen=True)
class Judgement:
    """Trainings by a policy, one for each instance.

    - `values`: the outer losses at their ends, shape `(instances,)`; infinite where a training
      diverged.
    - `losses`: training losses before each step, shape `(instances, steps)`.
    - `settings`: what the policy chose, a pytree with leaves `(instances, steps, ...)`.
    - `features`: what it saw, shape `(instances, steps, features)`.
    - `failures`: for an instance by its number, what was not finite first, and when.
    """

    values: np.ndarray
    losses: np.ndarray
    settings: Any
    features: np.ndarray
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean value; infinite if a training diverged."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean over instances; NaN for a single one."""
        count = len(self.values)
        return float(np.std(self.values, ddof=1) / math.sqrt(count)) if count > 1 else math.nan

    def excess(self, other: "Judgement") -> tuple[float, float]:
        """Mean difference of the values from another's on the same instances, and its error.

        Of log losses it is the log of the geometric mean of the ratios.
        """
        if len(self.values) != len(other.values):
            raise ValueError(
                f"excess: expected {len(self.values)} instances, received {len(other.values)}."
            )
        apart = self.values - other.values
        count = len(apart)
        spread = float(np.std(apart, ddof=1) / math.sqrt(count)) if count > 1 else math.nan
        return float(np.mean(apart)), spread


def judge(
    problem: BilevelProblem,
    step: PolicyStep,
    params: PyTree,
    hparams: PyTree,
    inner_batch: PyTree,
    outer_batch: PyTree,
    *,
    horizon: int | None = None,
    stacked: bool = False,
    key: Array | None = None,
) -> Judgement:
    """Train each instance by the policy, and look at the end; nothing is differentiated.

    **Arguments:**

    - `problem`: of one instance.
    - `step`: the policy's step.
    - `params`, `inner_batch`, `outer_batch`: with a leading axis over instances.
    - `hparams`: the policy's parameters.
    - `horizon`: steps of a run. Default: that of `step`. With another one, the policy measures time
      by it.
    - `stacked`: each instance's inner batch has one more axis, over steps.
    - `key`: for stochastic problems; each instance and step gets another one of it.

    **Returns:** a `Judgement`. A training that diverged, or a feature that was NaN, is named in its
    `failures`; the other instances are not touched by it.
    """
    require("judge", "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    require("judge", "step", step, PolicyStep, "PolicyStep(policy, optimizer, horizon)")
    if horizon is not None:
        require_count("judge", "horizon", horizon)
    if key is not None:
        require_key("judge", "key", key)
    require_flag("judge", "stacked", stacked)
    check_leaves(params=params, hparams=hparams, inner_batch=inner_batch, outer_batch=outer_batch)
    count = instances(params=params, inner_batch=inner_batch, outer_batch=outer_batch)
    step = step if horizon is None else step.over(horizon)
    keys = None if key is None else jax.random.split(key, count)
    params, hparams, inner, outer = as_arrays((params, hparams, inner_batch, outer_batch))
    steps = step.horizon
    ends, taken = _train(problem, step, params, hparams, inner, outer, keys, steps, bool(stacked))
    values, features, losses = (np.asarray(x) for x in (ends, taken.features, taken.loss))
    failures = {}
    for i in range(count):
        text = _failure(step, values[i], features[i], losses[i])
        if text is not None:
            failures[i] = f"instance {i}: {text}"
    return Judgement(
        values=np.where(np.isfinite(values), values, np.inf),
        losses=losses,
        settings=jax.tree.map(np.asarray, taken.settings),
        features=features,
        failures=failures,
    )


@eqx.filter_jit
def _train(
    problem: BilevelProblem,
    step: PolicyStep,
    params: PyTree,
    hparams: PyTree,
    inner: PyTree,
    outer: PyTree,
    keys: Array | None,
    steps: int,
    stacked: bool,
) -> tuple[Array, Taken]:
    def one(params: PyTree, inner: PyTree, outer: PyTree, key: Array | None) -> tuple:
        dynamic, static = eqx.partition((params, step.init(params, hparams)), eqx.is_array)

        def body(carry: PyTree, t: Array) -> tuple[PyTree, Taken]:
            params, state = eqx.combine(carry, static)
            batch = jax.tree.map(lambda a: a[t], inner) if stacked else inner
            noise = None if key is None else jax.random.fold_in(key, t)
            params, state, taken = step.taken(
                problem, params, state, hparams, hparams, batch, noise
            )
            moved = eqx.filter((params, state), eqx.is_array)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), moved, carry), taken

        end, taken = jax.lax.scan(body, dynamic, jnp.arange(steps))
        params, _ = eqx.combine(end, static)
        return problem.outer_loss(params, hparams, outer, key)[0], taken

    return eqx.filter_vmap(one)(params, inner, outer, keys)


def _failure(
    step: PolicyStep, value: np.ndarray, features: np.ndarray, losses: np.ndarray
) -> str | None:
    """What was not finite first: a feature of a sound training, or the training itself."""
    bad = np.argwhere(~np.isfinite(features))
    broken = np.flatnonzero(~np.isfinite(losses))
    if len(bad) and not (len(broken) and broken[0] <= bad[0][0]):
        at, which = bad[0]
        name = step.features.names[which]
        return f"feature {name!r} expected finite, received {features[at, which]} at step {at}"
    if len(broken):
        return f"the training diverged: loss {losses[broken[0]]} at step {broken[0]}"
    return None if np.isfinite(value) else f"the outer loss is {value}"
