"""Calls of a storage that another process may have locked."""

import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError

#: Seconds for which a call is tried again: twice what SQLite itself waits for a lock. A training
#: may depend on it.
_PATIENCE = 10.0
_PAUSE = 0.05

Found = TypeVar("Found")


def patiently(call: Callable[[], Found]) -> Found:
    """What a call of a storage returns, tried again while a database is locked or out of reach.

    **Raises:** `StorageInternalError` if it remains so, or if its reason is another.
    """
    begun = time.monotonic()
    while True:
        try:
            return call()
        except StorageInternalError as error:
            # SQLAlchemy's error for what the database, not the call, is to blame for; by its name,
            # as not every storage needs SQLAlchemy.
            passing = type(error.__cause__).__name__ == "OperationalError"
            if not passing or time.monotonic() - begun > _PATIENCE:
                raise
            time.sleep(_PAUSE)
