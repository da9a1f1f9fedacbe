"""The end of a study by what it has learned."""

import logging
from collections.abc import Mapping
from typing import Any

from strategies.optuna.history import names_of, seen_in
from strategies.optuna.names import Names
from strategies.space import SearchSpace
from strategies.stopping import Stop, Watch

logger = logging.getLogger(__name__)


class StopStudy:
    """A callback that ends a study as `minimize(stop=...)` would.

    `study.optimize(objective, callbacks=[StopStudy(Stop(patience=20))])`, with any sampler. Why it
    ended is `reason`, and in the log.

    **Arguments:**

    - `stop`: a `strategies.stopping.Stop`. The time begins now.
    - `space`: of the study; trials that are not in it do not count. Default: what its
      trials have asked for, with the conditions that explain it.

    **Raises:** `ValueError` for a `stop` that is no `Stop`.
    """

    def __init__(self, stop: Stop, space: SearchSpace | Mapping[str, Any] | None = None) -> None:
        if not isinstance(stop, Stop):
            raise ValueError(f"'stop': expected a Stop, received {stop!r:.80}")
        self._space = None if space is None else SearchSpace.of(space)
        self._watch = Watch(stop, self._space)

    @property
    def reason(self) -> str | None:
        """Why the study ended; `None` if it did not by this."""
        return self._watch.reason

    def __call__(self, study: Any, trial: Any) -> None:
        """Called by Optuna after each trial."""
        names = names_of(study) if self._space is None else Names(self._space)
        history = [] if names is None else seen_in(study, names)
        if self._watch.over(history, space=None if names is None else names.space):
            logger.info("The study ends: %s.", self._watch.reason)
            study.stop()
