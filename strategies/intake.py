r"""From a trial's report to a checked observation: the one way in, for all engines and schedulers.

| a trial | becomes | with `strict=True` |
| --- | --- | --- |
| reports a value that is NaN, infinite or missing | a failed observation | the same |
| raises | a failed observation | the same |
| never reports anything | nothing: the suggestion is forgotten | the same |
| reports gradient entries that are NaN | an observation without them | the same |
| reports a gradient entry of a wrong shape or key | an observation without it, and a warning \
| `ValueError` |
| reports a tuned configuration outside the space | an observation of the suggested one, \
without gradient, and a warning | `ValueError` |
| reports a cost or a resource that is NaN or infinite | an observation without it | the same |
| reports a cost, a resource or an error of its gradient that is no number \
| an observation without it, and a warning | `ValueError` |
| reports a constraint that is NaN, or no number | an observation that violates it | the same, \
`ValueError` for what is no number |
| reports another number of objectives than the trials before | a failed observation, and a \
warning | `ValueError` |
| reports what its searcher cannot use, such as a negative cost where costs are modelled \
| a failed observation, and a warning | `ValueError` |
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from strategies.observation import Observation, Report, Status
from strategies.plain import finite_number_of, known_error, number_of
from strategies.space import Point, SearchSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intake:
    """Turns reports into observations that a searcher accepts.

    **Arguments:**

    - `space`: the space of the searcher.
    - `demand`: what the searcher demands beyond the space, `Searcher.check`. Default: nothing.
    - `strict`: raise a `ValueError` for what does not fit. By default it is left out, with one
      warning for each key: a mistake in the trainable is made by every trial.
    """

    space: SearchSpace
    demand: Callable[[Observation], None] | None = None
    strict: bool = False
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _counts: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(
        self,
        config: Mapping[str, Any] | Point,
        report: Report,
        *,
        number: int | None = None,
        note: Mapping[str, Any] | None = None,
        status: Status = "complete",
        maximise: bool | Sequence[bool] = False,
        trial: Any = None,
    ) -> Observation:
        """The observation of a report.

        **Arguments:**

        - `config`: the configuration that the trial was given; it must be in the space.
        - `report`: what the trial reported, its gradient and tuned configuration keyed by the paths
          of the space, nested or flat, possibly partial.
        - `number`, `note`, `status`: as in `Observation`.
        - `maximise`: the value is to be maximised: value and gradient change their signs. For
          several objectives a list may say it of each.
        - `trial`: how warnings name the trial; its number if not given.

        **Raises:** `ValueError` naming the key, what was expected and what was received: always for
        `config` and for a value that is no number, and in the cases above if `strict`.
        """
        trial = number if trial is None else trial
        point = self.space.point(config)
        value, gradient = number_of(report.value, "value"), report.gradient
        values, gradients = tuple(report.values or ()), tuple(report.gradients or ())
        if values:
            values = tuple(number_of(each, "values") for each in values)
            usable = all(each is not None and math.isfinite(each) for each in values)
            value = values[0] if usable else None
        constraint_gradients = report.constraint_gradients or {}
        if report.config is not None:
            try:
                changes = self._paths(report.config, "config")
                point = self.space.point({**point.flat, **changes})
            except ValueError as error:
                self.complain(trial, "config", "the tuned configuration is ignored", error)
                gradient, gradients, constraint_gradients = None, (), {}
        if value is None or not math.isfinite(value):
            value, status = None, "failed"
        if status == "failed":
            gradient, gradients, values = None, (), ()
        signs = self._signs(maximise, max(len(values), 1))
        constraints = self._constraints(trial, report.constraints or {})
        observation = Observation(
            config=point.config,
            value=None if value is None else signs[0] * float(value),
            gradient=None if gradient is None else self._fitting(trial, point, gradient, signs[0]),
            gradient_error=known_error(
                self._read(trial, "gradient_error", report.gradient_error, number_of)
            ),
            cost=self._read(trial, "cost", report.cost, finite_number_of),
            resource=self._read(trial, "resource", report.resource, finite_number_of),
            number=None if number is None else int(number),
            note=note or {},
            status=status,
            values=tuple(s * float(each or 0.0) for s, each in zip(signs, values, strict=True))
            if values
            else (),
            gradients=tuple(
                None if each is None else self._fitting(trial, point, each, s)
                for s, each in zip(signs, gradients, strict=True)
            )
            if gradients
            else (),
            constraints=constraints,
            constraint_gradients=self._slopes(trial, point, constraints, constraint_gradients),
            point=point,
        )
        if status != "failed":
            try:
                if self.demand is not None:
                    self.demand(observation)
                self._expect_as_many(observation)
            except ValueError as error:
                self.complain(trial, "result", "the result counts as a failure", error)
                return replace(
                    observation, value=None, gradient=None, values=(), gradients=(), status="failed"
                )
        return observation

    def _read(self, trial: Any, name: str, value: Any, read: Callable[[Any, str], Any]) -> Any:
        """A number beside the value; what is none is left out."""
        try:
            return read(value, name)
        except ValueError as error:
            self.complain(trial, name, f"its {name} is ignored", error)
            return None

    @staticmethod
    def _signs(maximise: bool | Sequence[bool], count: int) -> list[float]:
        each = [maximise] * count if isinstance(maximise, bool) else list(maximise)[:count]
        return [-1.0 if one else 1.0 for one in each]

    def _expect_as_many(self, observation: Observation) -> None:
        """All trials of a search have as many objectives as the first that did not fail."""
        count = max(len(observation.values), 1)
        if not self._counts:
            self._counts.append(count)
        if count != self._counts[0]:
            raise ValueError(
                f"'values': expected {_objectives(self._counts[0])} as in the trials before, "
                f"received {_objectives(count)}"
            )

    def _constraints(self, trial: Any, reported: Mapping[str, Any]) -> dict[str, float]:
        """Constraints as plain numbers; one that is no number is violated."""
        found: dict[str, float] = {}
        for name, entry in reported.items():
            try:
                number = number_of(entry, f"constraints[{name}]")
            except ValueError as error:
                self.complain(trial, str(name), "a constraint counts as violated", error)
                number = None
            found[str(name)] = math.nan if number is None else float(number)
        return found

    def _slopes(
        self,
        trial: Any,
        point: Point,
        constraints: Mapping[str, float],
        reported: Mapping[str, Any],
    ) -> dict[str, dict[str, Any]]:
        """The gradients of constraints whose value is known."""
        found: dict[str, dict[str, Any]] = {}
        for name, gradient in reported.items():
            if name not in constraints:
                self.complain(
                    trial,
                    f"constraint_gradients[{name}]",
                    "the gradient of a constraint is ignored",
                    f"expected one of {list(constraints)}, received {name!r}",
                )
            elif math.isfinite(constraints[name]):
                kept = self._fitting(trial, point, gradient, 1.0)
                if kept:
                    found[name] = kept
        return found

    def complain(self, trial: Any, key: str, what: str, why: Any) -> None:
        """Part of a report is ignored: an error if `strict`, else a warning, once for each key."""
        if self.strict:
            raise why if isinstance(why, ValueError) else ValueError(f"{what}: {why}")
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("Trial %s: %s: %s", trial, what, why)

    def _paths(self, tree: Any, name: str) -> dict[str, Any]:
        """Paths to values; what is no path of the space keeps its own name, for the message."""
        if not isinstance(tree, Mapping):
            raise ValueError(f"{name!r}: expected a mapping, received {tree!r:.80}")
        return dict(self.space.paths(tree))

    def _fitting(
        self, trial: Any, point: Point, gradient: Any, sign: float
    ) -> dict[str, Any] | None:
        """The entries of a gradient that fit and say something, each judged by itself."""
        kept: dict[str, Any] = {}
        try:
            entries = self._paths(gradient, "gradient")
        except ValueError as error:
            self.complain(trial, "gradient", "the gradient is ignored", error)
            return None
        for path, entry in entries.items():
            if entry is None:
                continue
            try:
                parts = self.space.flatten_gradient(point, {path: entry})
            except ValueError as error:
                self.complain(trial, path, "a gradient entry is ignored", error)
                continue
            for name, array in parts.items():
                if np.isfinite(array).any():
                    kept[name] = (sign * array).tolist()
        return kept or None


def _objectives(count: int) -> str:
    return f"{count} objectives" if count > 1 else "one objective"
