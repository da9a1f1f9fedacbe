"""One thread for the linear algebra of a suggestion.

The matrices of a surrogate have tens or hundreds of rows. More threads only wait for each other
there, and where trials keep the processors busy they wait long.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

_held = threading.Lock()


@contextmanager
def single_thread() -> Iterator[None]:
    """BLAS libraries use one thread inside, and as many as before afterwards.

    The number belongs to the process. Whoever comes while another thread is inside leaves it alone,
    so that nobody takes the one for what it was before.
    """
    if not _held.acquire(blocking=False):
        yield
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _held.release()


@functools.cache
def _libraries() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  (scipy brings a library of its own, to be found here)

    return ThreadpoolController()
