"""An objective that JAX can trace, evaluated for many configurations in one compiled call."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from strategies.observation import Report, Suggestion, report
from strategies.plain import known_error, plain
from strategies.population.buckets import checked, examples, key_of
from strategies.population.memory import available, peak, refuse, tree_size
from strategies.population.training import Functions, Training, is_input
from strategies.space import Point, SearchSpace


class Together:
    """Evaluates configurations many at a time: `jit(vmap(objective))`, compiled once.

    Numbers of a configuration arrive as JAX values. Hyperparameters that are no numbers, and those
    that decide whether there are others, arrive as plain values: each combination of these has a
    program of its own.

    **Arguments:**

    - `objective`: as for `minimize`, of what JAX can trace.
    - `space`: the search space.
    - `size`: how many configurations are evaluated at a time.

    **Raises:** `ValueError` for a hyperparameter that changes shapes, if there are too many
    combinations of plain values, and for an objective that returns no scalar.
    """

    def __init__(self, objective: Callable[..., Any], space: SearchSpace, size: int) -> None:
        self._objective, self._space = objective, space
        parents = {parent for domain in space.domains.values() for parent in domain.when}
        plainly = [p for p in space.domains if p in parents or not is_input(p, space)]
        self._buckets = checked(space, plainly)
        self._examples = examples(space, self._buckets)
        #: How many configurations a program takes at a time.
        self.lanes = -(-size // len(self._examples))
        #: By combination of plain values, as it comes.
        self._programs: dict[Any, tuple[Training, Callable[..., Any]]] = {}

    def __call__(self, suggestions: Sequence[Suggestion]) -> list[tuple[Report, float]]:
        """Reports, and seconds of each, in the order of the suggestions."""
        found: dict[int, tuple[Report, float]] = {}
        places: dict[Any, list[int]] = {}
        points = [s.point or self._space.point(s.config) for s in suggestions]
        for place, point in enumerate(points):
            places.setdefault(key_of(point, self._buckets), []).append(place)
        for key, those in places.items():
            for start in range(0, len(those), self.lanes):
                some = those[start : start + self.lanes]
                began = time.perf_counter()
                reports = self._evaluate(key, [points[i] for i in some])
                share = (time.perf_counter() - began) / len(some)
                found.update((i, (one, share)) for i, one in zip(some, reports, strict=True))
        return [found[place] for place in range(len(points))]

    def _evaluate(self, key: Any, points: list[Point]) -> list[Report]:
        if key not in self._programs:
            self._programs[key] = self._compiled(key)
        training, call = self._programs[key]
        # Lanes that are left over repeat the last configuration.
        filled = points + points[-1:] * (self.lanes - len(points))
        types = training.types.items()
        arrays = {p: np.array([one.flat[p] for one in filled], t) for p, t in types}
        told = jax.device_get(call(arrays))
        return [_report(jax.tree.map(lambda leaf, i=i: leaf[i], told)) for i in range(len(points))]

    def _compiled(self, key: Any) -> tuple[Training, Callable[..., Any]]:
        functions = Functions(lambda key, config: (), self._step, lambda *_: jnp.zeros(()))
        training = Training(functions, self._space, self._examples[key], self._buckets)
        training.state_shape()
        shapes = {
            path: jax.ShapeDtypeStruct((self.lanes, *one.shape), one.dtype)
            for path, one in training.inputs().items()
        }
        each = jax.vmap(lambda config: training.step((), config, jax.random.key(0), 0)[1])
        if not shapes:
            raise ValueError("'space': expected a number that JAX can trace, found none")
        traced = jax.jit(each).trace(shapes)
        whole = traced.jaxpr
        shared = tree_size([data for data in whole.consts if hasattr(data, "dtype")])
        refuse(
            self.lanes, peak(whole.jaxpr) / self.lanes, shared, available(jax.devices()[0]),
            name="population",
        )  # fmt: skip
        return training, traced.lower().compile()

    def _step(self, state: Any, config: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        made = report(self._objective(config))
        if made.value is None:
            raise ValueError("'objective': expected a number, received None")
        return state, {name: entry for name, entry in made.__dict__.items() if entry is not None}


def _report(told: dict[str, Any]) -> Report:
    """A report of plain numbers from one of NumPy's."""
    made = {name: plain(entry) for name, entry in told.items()}
    made["gradient_error"] = known_error(made.get("gradient_error"))
    return Report(**made)
