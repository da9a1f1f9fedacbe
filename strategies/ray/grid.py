"""What a finished experiment of Ray Tune has seen, whoever searched."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from ray.tune.utils.util import flatten_dict

from strategies.ray.search import HypergradSearch
from strategies.searched import Searched
from strategies.space import SearchSpace

logger = logging.getLogger(__name__)


def seen_by(
    grid: Any,
    space: SearchSpace | Mapping[str, Any],
    *,
    metric: str | None = None,
    mode: str | None = None,
) -> Searched:
    """The trials of a `ResultGrid`, for `importance`, plots and pages.

    **Arguments:**

    - `grid`: what `Tuner.fit` returns.
    - `space`: a `SearchSpace`, or the `param_space` of the tuner.
    - `metric`, `mode`: what was optimised. Default: those of the tuner's `TuneConfig`.

    **Returns:** Values to be minimised, gradients and constraints included where trials have
    reported any. Trials that failed are `failed` observations of their configuration. Trials that
    are not in the space are left out, with a warning in the log.

    **Raises:** `ValueError` if metric or mode are not known, or the space cannot be searched.
    """
    analysis = grid._experiment_analysis
    metric, mode = metric or analysis.default_metric, mode or analysis.default_mode
    if metric is None or mode is None:
        raise ValueError(
            "'metric', 'mode': expected both, as the tuner had none, received "
            f"{metric!r} and {mode!r}"
        )
    search = HypergradSearch(space=space, metric=metric, mode=mode)
    for number, result in enumerate(grid):
        if result.error is not None:
            try:
                search.add_evaluated_point(dict(result.config or {}), math.nan, error=True)
            except ValueError as error:
                logger.warning("Trial %s failed and is left out: %s", number, error)
            continue
        found = flatten_dict(dict(result.metrics or {}) | {"config": result.config or {}})
        search.on_trial_complete(f"grid-{number}", found)
    return Searched(search.ledger.space, tuple(search.ledger.history))
