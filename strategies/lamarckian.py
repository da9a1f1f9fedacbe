r"""Lamarckian trials: a trial tunes its own continuous hyperparameters, and reports what it found.

A trial of this kind is given a configuration, follows the hypergradient for a few outer steps in
the hyperparameters that have one, and reports the value, the gradient and the configuration at the
best point of its path. The searcher learns from that configuration, not from the one that it
proposed: what an individual acquired is inherited, as Lamarck would have it (Whitley, Gordon and
Mathias, "Lamarckian evolution, the Baldwin effect and function optimization", PPSN 1994). So the
searcher outside is left with what has no gradient, and each of its trials comes back at the best
continuous values that could be found for it.

The outer algorithm works in the unit coordinates of the search space, where log domains are affine
and every bound is 0 or 1; the losses see natural values.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hypergrad import BilevelProblem, Estimator, as_arrays
from hypergrad.outer import Box, FullBatch, OuterAlgorithm, Sampler, StepReport, run
from hypergrad.paths import trace_paths
from strategies.arguments import functions, instance, integer, several
from strategies.observation import Report, report
from strategies.space import Config, Domain, Float, Logit, Ordered, SearchSpace, Simplex
from strategies.space.tree import nested


class Training(NamedTuple):
    """What one configuration trains.

    - `problem`: the two losses. Their `hparams` is a dict nested like the configuration, with an
      array of natural values for each continuous hyperparameter that the configuration has.
    - `params`: where the inner problem starts, any pytree.
    - `inner_data`, `outer_data`: training and validation data, any pytrees.
    """

    problem: BilevelProblem
    params: PyTree
    inner_data: PyTree = None
    outer_data: PyTree = None


class LamarckianTrial:
    """A trial that trains, tunes its own continuous hyperparameters, and reports them.

    An objective for every engine: call it with a configuration, or hand it to
    `strategies.local.minimize`, to `strategies.ray.trainable` or to `strategies.optuna.objective`.

    **Arguments:**

    - `space`: the `SearchSpace` that configurations are of; it supplies the bounds.
    - `build`: function from a configuration to a `Training`. It decides everything discrete: the
      architecture, the optimizer, the data. What it returns is compiled once for each combination
      of loss functions and array shapes, so let it return the same function objects again.
    - `algorithm`: an algorithm of `hypergrad.outer`, without a constraint of its own. It works on
      unit coordinates: `optax.adam(0.05)` moves by about a twentieth of each range at a step. Its
      inner solver must work on the problem's losses, as `OptaxSolver` and `Newton` do: functions
      of your own (`FunctionSolver`, jaxopt) would be given unit coordinates.
    - `steps`: outer steps of a trial.
    - `tune`: paths of the hyperparameters to tune. Default: all continuous ones that reach a
      differentiable loss, found by tracing; the others keep the values that were suggested. Those
      that only act inside the training step, such as a learning rate, must be named, and need an
      estimator that sees them.
    - `sampler`: which examples enter which part of a step; all of them by default.
    - `seed`: of the mini-batches and of the losses' own noise, the same for all trials.

    **Raises:** `ValueError` naming a path that is not one of the space's continuous
    hyperparameters, or an algorithm that has a constraint.
    """

    def __init__(
        self,
        space: SearchSpace,
        build: Callable[[Config], Training],
        algorithm: OuterAlgorithm,
        *,
        steps: int = 5,
        tune: Sequence[str] | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
    ):
        instance("space", space, SearchSpace)
        functions("build", [build])
        if instance("algorithm", algorithm, OuterAlgorithm).constraint is not None:
            raise ValueError(
                "'algorithm': expected one without a constraint, as the bounds are those of the "
                f"space, received {algorithm.constraint!r}"
            )
        continuous = [path for path, d in space.domains.items() if d.differentiable and d.tunable]
        for path in continuous if tune is None else several("tune", tune, "a list of paths"):
            if path not in continuous:
                raise ValueError(f"'tune': expected paths of {continuous}, received {path!r}")
        self.space = space
        self.build = build
        # Every algorithm has the field; only the common base class leaves it abstract.
        self.algorithm = dataclasses.replace(algorithm, constraint=Box(0.0, 1.0))  # type: ignore[call-arg]
        self.steps = integer("steps", steps, 1)
        self.tune = None if tune is None else tuple(tune)
        self.sampler = FullBatch() if sampler is None else sampler
        self.seed = seed

    def __call__(self, config: Mapping[str, Any]) -> Report:
        """Train and tune.

        **Arguments:**

        - `config`: a configuration of the space.

        **Returns:** A `Report`: the smallest outer loss seen, the hypergradient there with respect
        to natural values, its estimated error if the algorithm knows it, and the whole tuned
        configuration. `info` holds `start_value` (the loss at the configuration that was given),
        `outer_steps`, `calls` (gradient-like evaluations) and `outcome` (why the steps ended).
        """
        config = self.space.validate(config)
        training = self.build(config)
        units = self._units(config)
        fixed = {path: jnp.asarray(value) for path, value in units.items()}
        tuned = self._tuned(training, fixed)
        if not tuned:
            return self._trained(training, fixed)
        best = _Best()
        result = run(
            _in_units(training.problem, self._leaves(units), fixed),
            self.algorithm,
            training.params,
            {path: fixed[path] for path in tuned},
            training.inner_data,
            training.outer_data,
            steps=self.steps,
            sampler=self.sampler,
            seed=self.seed,
            callbacks=[best],
        )
        info = {
            "start_value": result.history[0]["validation"],
            "outer_steps": len(result.history),
            "calls": sum(row["calls"] for row in result.history),
            "outcome": result.status,
        }
        if best.units is None:
            return report(math.nan, info=info)
        vector = self.space.encode(config)
        for path in tuned:
            vector[self.space.slices[path]] = np.asarray(best.units[path], float).ravel()
        found = self.space.decode(vector)
        flat = self.space.flatten(found)
        gradient = {
            path: _natural_gradient(self.space.domains[path], flat[path], best.gradient[path])
            for path in tuned
        }
        return report(best.value, gradient, gradient_error=best.error, config=found, info=info)

    def _units(self, config: Config) -> dict[str, np.ndarray]:
        """Unit coordinates of the continuous hyperparameters that a configuration has."""
        vector, flat = self.space.encode(config), self.space.flatten(config)
        found = {}
        for path in flat:
            domain = self.space.domains[path]
            if domain.differentiable and domain.tunable:
                part = vector[self.space.slices[path]]
                if isinstance(domain, Float | Logit):
                    part = part.reshape(domain.shape)
                found[path] = part
        return found

    def _leaves(self, units: Mapping[str, Any]) -> "tuple[_Leaf, ...]":
        return tuple(_leaf(path, self.space.domains[path]) for path in units)

    def _tuned(self, training: Training, units: Mapping[str, Array]) -> list[str]:
        """The hyperparameters that are tuned: named by the user, or seen by tracing."""
        if self.tune is not None or not units:
            return [path for path in units if path in (self.tune or ())]
        problem = _in_units(training.problem, self._leaves(units), {})
        key = jax.random.key(self.seed)
        params, inner_data, outer_data = as_arrays(training[1:])
        batches = self.sampler(inner_data, outer_data, jnp.zeros((), jnp.int32), key)
        paths = trace_paths(problem, params, dict(units), batches.linear, batches.outer, key)
        seen = dict(zip(paths.hparams, paths.differentiated, strict=True))
        return [path for path in units if seen[path]]

    def _trained(self, training: Training, units: Mapping[str, Array]) -> Report:
        """A configuration in which nothing can be tuned is trained as long as the others are."""
        estimator = getattr(self.algorithm, "estimator", None)
        if not isinstance(estimator, Estimator):
            raise ValueError(
                f"'algorithm': expected one with an estimator, which trains configurations in "
                f"which no hyperparameter has a gradient, received {type(self.algorithm).__name__}"
            )
        problem = _in_units(training.problem, self._leaves(units), dict(units))
        params, inner_data, outer_data = as_arrays(training[1:])
        key = jax.random.key(self.seed)
        value = _fitted_value(
            problem, estimator, self.sampler, params, inner_data, outer_data, key, self.steps
        )
        return report(value, info={"outer_steps": 0, "outcome": "nothing to tune"})


class _Best:
    """A callback of the driver that keeps the point with the smallest outer loss."""

    def __init__(self) -> None:
        self.value = math.inf
        self.error: float | None = None
        self.units: PyTree = None
        self.gradient: PyTree = None

    def __call__(self, report: StepReport) -> None:
        value, error = report.row["validation"], report.row["error"]
        if value < self.value:
            self.value = value
            self.error = None if math.isnan(error) else error
            self.units, self.gradient = jax.device_get(
                (report.state.visited, report.state.hypergradient)
            )


# From unit coordinates to natural values, in JAX: what `Domain.decode` does in NumPy.


class _Leaf(NamedTuple):
    """What the map needs to know of a domain; hashable, so that equal spaces compile once."""

    path: str
    kind: str
    low: float
    high: float
    log: bool = False
    turned: bool = False


def _leaf(path: str, domain: Domain) -> _Leaf:
    if isinstance(domain, Simplex):
        return _Leaf(path, domain.kind, 0.0, domain.total, turned=domain.at_most)
    if isinstance(domain, Logit):
        return _Leaf(path, domain.kind, *domain.ends)
    assert isinstance(domain, Float | Ordered)
    turned = isinstance(domain, Ordered) and domain.decreasing
    return _Leaf(path, domain.kind, domain.low, domain.high, domain.log, turned)


def _natural(leaf: _Leaf, unit: Array) -> Array:
    if leaf.kind == Logit.kind:
        return jax.nn.sigmoid(leaf.low + unit * (leaf.high - leaf.low))
    if leaf.kind == Float.kind:
        place = unit
    else:
        # The stick of `strategies.space.structured`.
        later = jnp.arange(unit.size, 0, -1, dtype=unit.dtype)
        fractions = unit / (unit + (1.0 - unit) * later)
        left = jnp.concatenate([jnp.ones(1, unit.dtype), jnp.cumprod(1.0 - fractions)])
        place = fractions * left[:-1]
        if leaf.kind == Simplex.kind:
            place = place if leaf.turned else jnp.append(place, left[-1])
        else:
            place = jnp.cumsum(place)
            place = place[::-1] if leaf.turned else place
    if leaf.log:
        return leaf.low * jnp.exp(place * math.log(leaf.high / leaf.low))
    return leaf.low + place * (leaf.high - leaf.low)


def _natural_gradient(domain: Domain, value: Any, gradient: np.ndarray) -> np.ndarray:
    """The derivative in natural values whose pull-back is `gradient`, in unit coordinates."""
    if isinstance(domain, Float | Logit):
        return np.asarray(gradient) / domain.pull_back(value, np.ones(domain.size)).reshape(
            domain.shape
        )
    # The shares of a simplex have one more entry than freedoms: the smallest derivative will do.
    entries = len(value)
    jacobian = np.stack([domain.pull_back(value, row) for row in np.eye(entries)])
    return np.linalg.lstsq(jacobian.T, np.asarray(gradient, float))[0]


class _InUnits(eqx.Module):
    """A loss of natural values as one of unit coordinates; `fixed` holds those not tuned."""

    loss: Callable
    leaves: tuple[_Leaf, ...] = eqx.field(static=True)
    fixed: dict[str, Array]

    def __call__(self, params: PyTree, units: dict[str, Array], *rest: Any) -> Any:
        known = {**self.fixed, **units}
        natural = {leaf.path: _natural(leaf, known[leaf.path]) for leaf in self.leaves}
        return self.loss(params, nested(natural), *rest)


def _in_units(
    problem: BilevelProblem, leaves: tuple[_Leaf, ...], fixed: dict[str, Array]
) -> BilevelProblem:
    def wrapped(loss: Callable | None) -> Callable | None:
        return None if loss is None else _InUnits(loss, leaves, fixed)

    return BilevelProblem(
        wrapped(problem.inner),
        _InUnits(problem.outer, leaves, fixed),
        wrapped(problem.optimality),
        problem.has_aux,
        problem.stochastic,
    )


@eqx.filter_jit
def _fitted_value(
    problem: BilevelProblem,
    estimator: Estimator,
    sampler: Sampler,
    params: PyTree,
    inner_data: PyTree,
    outer_data: PyTree,
    key: Array,
    fits: int,
) -> Array:
    """The outer loss after so many fits without hyperparameters."""
    draw, noise = jax.random.split(key)
    state = estimator.init(problem, params, {}, inner_data, key=noise)
    for step in range(fits):
        batches = sampler(inner_data, outer_data, jnp.asarray(step, jnp.int32), draw)
        state, _ = estimator.fit(
            problem, state, {}, batches.inner(), key=jax.random.fold_in(noise, step)
        )
    return problem.outer_loss(state.params, {}, outer_data, noise)[0]


__all__ = ["LamarckianTrial", "Training"]
