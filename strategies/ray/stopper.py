"""The end of a Ray experiment by what its searcher has learned."""

import logging
from typing import Any

from ray import tune

from strategies.ray.search import HypergradSearch
from strategies.stopping import Stop, Watch

logger = logging.getLogger(__name__)


class SearchStopper(tune.Stopper):
    """Ends an experiment as `minimize(stop=...)` would: `tune.RunConfig(stop=SearchStopper(...))`.

    Ray ends running trials with it; they count as far as they came, and `strategies.ray.restore`
    runs them on. Why it ended is `reason`, and in the log. A restored run keeps its stop, and what
    ends it may still hold: costs, for instance, are those of all runs together.

    **Arguments:**

    - `search`: the `HypergradSearch` or `ScheduledSearch` of the tuner.
    - `stop`: a `strategies.stopping.Stop`.

    **Raises:** `ValueError` for anything else.
    """

    def __init__(self, search: HypergradSearch, stop: Stop) -> None:
        if not isinstance(search, HypergradSearch):
            raise ValueError(f"'search': expected a HypergradSearch, received {search!r:.80}")
        if not isinstance(stop, Stop):
            raise ValueError(f"'stop': expected a Stop, received {stop!r:.80}")
        self._search, self._stop = search, stop
        self._watch: Watch | None = None

    @property
    def reason(self) -> str | None:
        """Why the experiment ended; `None` if it did not by this."""
        return None if self._watch is None else self._watch.reason

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended by itself."""
        return False

    def stop_all(self) -> bool:
        """Whether the experiment ends."""
        search = self._search
        try:
            space = search.ledger.space
        except ValueError:
            return False  # no space yet
        if self._watch is None:
            self._watch = Watch(self._stop, space)
        known = self._watch.reason
        over = self._watch.over(search.results(), search.costs())
        if over and known is None:
            logger.info("The search ends: %s.", self._watch.reason)
        return over
