"""What a result of Ray, as its driver has it, says of a trial."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from strategies.observation import Report
from strategies.plain import plain
from strategies.ray.reports import RESERVED, as_number


def read_result(
    result: Mapping[str, Any], metrics: Sequence[str], bounds: Mapping[str, float]
) -> Report:
    """What matters in a flat result, in Ray's keys.

    **Arguments:**

    - `result`: of a trial, its names joined by slashes.
    - `metrics`: the names of the objectives.
    - `bounds`: what further metrics must not be above, by name. One that is missing is warned of,
      and counts as not met.
    """
    values = [as_number(result.get(name)) for name in metrics]
    gradients = under(result, f"{RESERVED}/gradients")
    constraints = {
        name: math.nan if (number := as_number(entry)) is None else number
        for name, entry in under(result, f"{RESERVED}/constraints").items()
    }
    for name, bound in bounds.items():
        if name not in result:
            warnings.warn(
                f"'constraints': expected a metric {name!r} in every result, received one without; "
                "its trial counts as infeasible",
                stacklevel=2,
            )
        found = as_number(result.get(name))
        constraints[name] = math.nan if found is None else found - bound
    return Report(
        value=values[0],
        values=values if len(values) > 1 else None,
        gradients=[under(gradients, str(i)) or None for i in range(len(values))]
        if gradients
        else None,
        constraints=constraints or None,
        constraint_gradients=_by_name(
            under(result, f"{RESERVED}/constraint_gradients"), constraints
        ),
        gradient=under(result, f"{RESERVED}/gradient"),
        gradient_error=as_number(result.get(f"{RESERVED}/gradient_error")),
        config=under(result, f"{RESERVED}/config"),
        cost=as_number(result.get(f"{RESERVED}/cost", result.get("time_total_s"))),
        resource=as_number(result.get(f"{RESERVED}/resource", result.get("training_iteration"))),
    )


def under(result: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The part of a flat result below a key, with plain values."""
    start = prefix + "/"
    return {
        key[len(start) :]: plain(value)
        for key, value in result.items()
        if isinstance(key, str) and key.startswith(start)
    }


def _by_name(
    entries: Mapping[str, Any], constraints: Mapping[str, float]
) -> dict[str, dict[str, Any]] | None:
    """Gradients of constraints out of a flat result; a name may have slashes of its own."""
    found = {name: under(entries, name) for name in constraints}
    return {name: gradient for name, gradient in found.items() if gradient} or None
