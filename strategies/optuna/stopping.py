"""The end of a study by what it has learned."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strategies.optuna.history import observations_of
from strategies.optuna.spaces import space_from_trials
from strategies.space import SearchSpace
from strategies.stopping import Stop, Watch

logger = logging.getLogger(__name__)


class StopStudy:
    """A callback that ends a study as `minimize(stop=...)` would.

    `study.optimize(objective, callbacks=[StopStudy(Stop(patience=20))])`, with any sampler. Why it
    ended is `reason`, and in the log.

    **Arguments:**

    - `stop`: a `strategies.stopping.Stop`. The time begins now.
    - `space`: of the study; trials that are not in it do not count. Default: the parameters that
      its trials have in common.

    **Raises:** `ValueError` if it is none.
    """

    def __init__(self, stop: Stop, space: SearchSpace | Mapping[str, Any] | None = None) -> None:
        if not isinstance(stop, Stop):
            raise ValueError(f"'stop': expected a Stop, received {stop!r:.80}")
        if space is not None and not isinstance(space, SearchSpace):
            space = SearchSpace(space)
        self._space = space
        self._watch = Watch(stop, space)

    @property
    def reason(self) -> str | None:
        """Why the study ended; `None` if it did not by this."""
        return self._watch.reason

    def __call__(self, study: Any, trial: Any) -> None:
        """Called by Optuna after each trial."""
        space = self._space
        if space is None:
            space = space_from_trials(study.get_trials(deepcopy=False))
        # Trials count, which points that an earlier search has left would not.
        history = [replace(o, number=i) for i, o in enumerate(observations_of(study, space))]
        if self._watch.over(history, space=space):
            logger.info("The study ends: %s.", self._watch.reason)
            study.stop()


__all__ = ["StopStudy"]
