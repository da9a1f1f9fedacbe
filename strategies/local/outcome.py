"""What came of a call of the user's objective, wherever it ran."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from strategies.local.running import Lost
from strategies.observation import Report, report
from strategies.plain import NoNumberError


@dataclass(frozen=True)
class Outcome:
    """A report, how long it took, and what went wrong if something did.

    - `made`: the report as the objective has made it; without a value if it made none.
    """

    made: Report
    seconds: float
    error: BaseException | None = None

    @classmethod
    def of(cls, found: "Outcome | Lost") -> "Outcome":
        """What came of a call, also of one whose result will not come."""
        if isinstance(found, Lost):
            return cls(Report(None), found.seconds, found.error)
        return found

    @property
    def report(self) -> Report:
        """The report; what it does not say of its cost is the time that it took."""
        return self.made if self.made.cost is not None else replace(self.made, cost=self.seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a process pool sends back, where a result or an exception might not arrive."""
        error = self.error
        try:
            made = pickle.dumps(self.made)
        except Exception as failure:
            made, error = pickle.dumps(Report(None)), failure
        return _arrived, (made, self.seconds, error and _portable(error))


def _arrived(made: bytes, seconds: float, error: BaseException | None) -> Outcome:
    return Outcome(pickle.loads(made), seconds, error)


def _portable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{error!r} (which cannot be pickled)")
    return error


def evaluate(objective: Callable[[Any], Any], given: Any) -> Outcome:
    """Call an objective with a configuration or a job; a process pool can run this, too."""
    start = time.perf_counter()
    try:
        returned = objective(given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit, a cancellation, a panic of a library in Rust
        return Outcome(Report(None), time.perf_counter() - start, error)
    seconds = time.perf_counter() - start
    try:
        return Outcome(report(returned), seconds)
    except NoNumberError as error:
        return Outcome(Report(None), seconds, error)
