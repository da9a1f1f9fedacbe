"""What a search on Ray optimises, and what it must keep within bounds."""

from collections.abc import Mapping
from typing import Any

from strategies.plain import python_number


def expected_aim(metric: Any, mode: Any) -> tuple[Any, Any]:
    """Metric and mode as strings, or as lists of equal length for several objectives.

    **Raises:** `ValueError` naming what was expected.
    """
    if isinstance(metric, list | tuple):
        metric = list(metric)
        if not metric or any(not isinstance(name, str) for name in metric):
            raise ValueError(f"'metric': expected names of metrics, received {metric!r:.80}")
        if len(set(metric)) < len(metric):
            raise ValueError(f"'metric': expected different metrics, received {metric!r:.80}")
        if isinstance(mode, str):
            mode = [mode] * len(metric)
        if mode is not None and (not isinstance(mode, list | tuple) or len(mode) != len(metric)):
            raise ValueError(
                f"'mode': expected one for each of {len(metric)} metrics, received {mode!r:.80}"
            )
        mode = None if mode is None else list(mode)
        if len(metric) == 1:
            metric, mode = metric[0], mode and mode[0]
    elif metric is not None and not isinstance(metric, str):
        raise ValueError(f"'metric': expected the name of a metric, received {metric!r:.80}")
    for each in mode if isinstance(mode, list) else [mode]:
        if each is not None and not (isinstance(each, str) and each in ("min", "max")):
            raise ValueError(f"'mode': expected 'min' or 'max', received {each!r:.80}")
    return metric, mode


def expected_bounds(constraints: Any) -> dict[str, float]:
    """Names of metrics to what they must not be above.

    **Raises:** `ValueError` naming what was expected.
    """
    if isinstance(constraints, Mapping):
        bounds = dict(constraints)
    elif isinstance(constraints, list | tuple):
        if not all(isinstance(name, str) for name in constraints):
            raise ValueError(f"'constraints': expected names, received {constraints!r:.80}")
        bounds = dict.fromkeys(constraints, 0.0)
    else:
        raise ValueError(f"'constraints': expected names, received {constraints!r:.80}")
    for name, bound in bounds.items():
        number = python_number(bound)
        known = number is not None and not isinstance(number, bool) and number == number
        if not isinstance(name, str) or not known:
            raise ValueError(
                f"'constraints': expected names and numbers, received {name!r:.40}: {bound!r:.40}"
            )
    return {name: float(python_number(bound) or 0.0) for name, bound in bounds.items()}
