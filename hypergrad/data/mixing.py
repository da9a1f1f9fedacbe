"""How much of each domain to train on, learned during one training.

The inner loss is `Σ_d p_d f_d(w)`, with `f_d` the loss on a mini-batch of domain `d` and `p` on the
simplex; the outer loss is that on the target. The hyperparameters are logits `z`,

    p = (1 − c) softmax(z) + c / D,

so that no step leaves the simplex and no domain is given up for good (`c`: `floor`). Any outer
algorithm moves them: forward mode carried along the training (Franceschi et al. 2017), `F2SA`, as
in ScaleBiO for the sources of a language model (Pan et al. 2024), implicit differentiation.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from hypergrad.arguments import as_arrays, check_leaves
from hypergrad.data.domains import DomainBatches, MixedDomains, TargetLoss, domain_sizes
from hypergrad.data.frames import to_frame, without_frames
from hypergrad.data.trained import check_count, check_taken
from hypergrad.expected import received, require, require_number
from hypergrad.outer import OuterAlgorithm, Result, run
from hypergrad.outer.report import StepReport
from hypergrad.problem import BilevelProblem

# Weights sum to one but for roundings of numbers written with six digits.
_SUM_TOLERANCE = 1e-5


class Mixture(eqx.Module):
    """What `mixture` found.

    - `weights`: of each domain, at the end of the run.
    - `average`: their means over all steps: what to train with from the start (as DoReMi does).
    - `params`: the parameters at the end of this one training.
    - `value`: their loss on all of the target.
    - `trace`: weights before each outer step, domains in the order of `names`.
    - `result`: of the run, with history and state.
    """

    names: tuple[str, ...]
    weights: dict[str, float]
    average: dict[str, float]
    params: PyTree
    value: float
    trace: Float[np.ndarray, "steps domains"]
    result: Result

    def frame(self) -> Any:
        """A pandas data frame with a row a domain: `weight` and `average`."""
        columns = {"weight": list(self.weights.values()), "average": list(self.average.values())}
        return to_frame(columns, list(self.names))


def mixture(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    domains: Mapping[str, PyTree],
    target: PyTree,
    *,
    algorithm: OuterAlgorithm,
    steps: int,
    batch: int,
    target_batch: int | None = None,
    start: Mapping[str, float] | None = None,
    floor: float = 1e-3,
    seed: int = 0,
    callbacks: Any = (),
    **options: Any,
) -> Mixture:
    """Weights of the domains for the least loss on a target, learned while the model is trained.

    **Arguments:**

    - `problem`: its inner loss is the mean over a batch of one domain, its outer loss the one on
      the target.
    - `params`: where the training starts.
    - `hparams`: further hyperparameters, held fixed.
    - `domains`: for each name its examples, along the leading axis of every array; of all domains
      the same pytree and shapes of an example. Data frames are taken as arrays.
    - `target`: examples to do well on, which no domain should contain.
    - `algorithm`: any outer algorithm without a constraint, for instance
      `Alternating(OnlineUnrolled(optimizer, 1), optax.adam(0.05), fits=10)`, which takes ten steps
      of training and then one of the weights, or `F2SA(inner_steps=10)`.
    - `steps`: outer steps.
    - `batch`: examples of each domain in a mini-batch; a training step takes `D` times as many.
    - `target_batch`: target examples of an outer step. Default: all.
    - `start`: a weight for each domain, which sum to one. Default: equal weights.
    - `floor`: share of the weights that all domains have in equal parts, in [0, 1).
    - `seed`: of the mini-batches and of stochastic losses.
    - `callbacks`, `options`: of `hypergrad.outer.run`: `checkpoint`, `holdout_data`, `patience`.

    **Returns:** a `Mixture`.

    **Raises:** `ValueError` for fewer than two domains, examples of different shapes, a start that
    is not on the simplex, an algorithm with a constraint.
    """
    require("mixture", "problem", problem, BilevelProblem, "BilevelProblem(inner, outer)")
    check_leaves(params=params, hparams=hparams)
    if not isinstance(domains, Mapping):
        raise ValueError(f"domains: expected a dict of examples, received {received(domains)}.")
    names = tuple(domains)
    if len(names) < 2:
        raise ValueError(f"domains: expected at least two, received {list(names)}.")
    require_number("mixture", "floor", floor)
    if not 0 <= floor < 1:
        raise ValueError(f"floor: expected a number in [0, 1), received {floor!r}.")
    require("mixture", "algorithm", algorithm, OuterAlgorithm, "F2SA(inner_steps=10)")
    if algorithm.constraint is not None:
        raise ValueError(
            "algorithm: expected one without a constraint, since its steps are in logits, received "
            f"{type(algorithm.constraint).__name__}."
        )
    data = {name: as_arrays(without_frames(name, domains[name])[0]) for name in names}
    target = as_arrays(without_frames("target", target)[0])
    sizes = domain_sizes(data)
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *data.values())
    mixed = MixedDomains(problem, as_arrays(hparams), len(names), float(floor))
    check_taken("target", TargetLoss(mixed), as_arrays(params), target, jax.random.key(0))
    logits = jnp.asarray(_logits(start, names, floor), jnp.result_type(float))
    visited: list[np.ndarray] = []

    def watch(report: StepReport) -> None:
        visited.append(np.asarray(mixed.weights(report.state.visited)))

    result = run(
        BilevelProblem(mixed, TargetLoss(mixed), stochastic=problem.stochastic),
        algorithm,
        as_arrays(params),
        logits,
        together,
        target,
        steps=check_count("steps", steps),
        sampler=DomainBatches(
            sizes,
            check_count("batch", batch),
            None if target_batch is None else check_count("target_batch", target_batch),
            int(getattr(algorithm, "fits", getattr(algorithm, "inner_steps", 1))),
        ),
        seed=seed,
        callbacks=[watch, *callbacks],
        **options,
    )
    trace = np.stack(visited) if visited else np.asarray(mixed.weights(result.hparams))[None]
    last = np.asarray(mixed.weights(result.state.hparams))
    return Mixture(
        names,
        dict(zip(names, last.tolist(), strict=True)),
        dict(zip(names, trace.mean(axis=0).tolist(), strict=True)),
        result.params,
        result.value,
        trace,
        result,
    )


def _logits(start: Mapping[str, float] | None, names: tuple[str, ...], floor: float) -> np.ndarray:
    if start is None:
        return np.zeros(len(names))
    if set(start) != set(names):
        raise ValueError(
            f"start: expected a weight for each of {list(names)}, received {list(start)}."
        )
    weights = np.array([float(start[name]) for name in names])
    total = weights.sum()
    if not (np.all(weights >= 0) and abs(total - 1) <= _SUM_TOLERANCE):
        raise ValueError(
            "start: expected weights on the simplex (at least 0, of sum 1), received "
            f"{dict(start)} of sum {total:.6g}."
        )
    above = (weights - floor / len(names)) / (1 - floor)
    if np.any(above <= 0):
        least = floor / len(names)
        raise ValueError(
            f"start: expected weights above {least:.3g} (floor / number of domains), received "
            f"{dict(start)}."
        )
    return np.log(above)
