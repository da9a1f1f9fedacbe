r"""From a trial's report to an observation: the one failure policy of all engines.

| a trial | becomes |
| --- | --- |
| reports a value that is NaN, infinite, missing or no number | a failed observation |
| raises | a failed observation |
| never reports anything | nothing: the suggestion is forgotten |
| reports a gradient entry of a wrong shape or key | an observation without it, and a warning |
| reports gradient entries that are NaN | an observation without them |
| reports a tuned configuration outside the space | an observation of the suggested one, \
without gradient, and a warning |
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from strategies.observation import Observation, Report, Status
from strategies.space import SearchSpace

logger = logging.getLogger(__name__)


def observe(
    space: SearchSpace,
    config: Mapping[str, Any],
    report: Report,
    *,
    maximise: bool = False,
    number: int | None = None,
    note: Mapping[str, Any] | None = None,
    status: Status = "complete",
) -> tuple[Observation, dict[str, str]]:
    """An observation that any searcher accepts, whatever the trial reported.

    **Arguments:**

    - `space`: the space of the searcher.
    - `config`: the configuration that the trial was given; it must be in the space.
    - `report`: what the trial reported, its gradient and tuned configuration keyed by the paths of
      the space, nested or flat, possibly partial.
    - `maximise`: the value is to be maximised: value and gradient change their signs.
    - `number`, `note`, `status`: as in `Observation`.

    **Returns:** The observation, and a message for each key of the report that was left out.
    """
    problems: dict[str, str] = {}
    sign = -1.0 if maximise else 1.0
    gradient: dict[str, Any] | None = report.gradient or {}
    if report.config:
        try:
            config = space.validate({**space.flatten(config), **_flat(space, report.config)})
        except ValueError as error:
            problems["config"] = f"the tuned configuration is ignored: {error}"
            gradient = None
    value = report.value
    if value is None or not math.isfinite(value):
        value, gradient = None, None
    observation = Observation(
        config=config,
        value=None if value is None else sign * value,
        gradient=_fitting(space, config, gradient, sign, problems) if gradient else None,
        gradient_error=report.gradient_error,
        cost=report.cost,
        resource=report.resource,
        number=number,
        note=note or {},
        status="failed" if value is None else status,
    )
    return observation, problems


def _flat(space: SearchSpace, tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Paths to values; what is no path of the space keeps its own name, for the error message."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in space.domains:
            flat.update(_flat(space, value, path + "/"))
        else:
            flat[path] = value
    return flat


def _fitting(
    space: SearchSpace,
    config: Mapping[str, Any],
    gradient: Mapping[str, Any],
    sign: float,
    problems: dict[str, str],
) -> dict[str, Any] | None:
    """The entries of a gradient that fit, each judged by itself."""
    kept: dict[str, Any] = {}
    for path, entry in _flat(space, gradient).items():
        if entry is None:
            continue
        try:
            parts = space.flatten_gradient(config, {path: entry})
        except ValueError as error:
            problems[path] = f"a gradient entry is ignored: {error}"
            continue
        for name, array in parts.items():
            if np.isfinite(array).any():
                kept[name] = (sign * array).tolist()
    return kept or None


class Warner:
    """Warns once for each key: a mistake in the trainable is made by every trial."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, trial: Any, problems: Mapping[str, str]) -> None:
        """Log the problems of a trial's report that are new."""
        for key, message in problems.items():
            if key not in self._known:
                self._known.add(key)
                logger.warning("Trial %s: %s", trial, message)
