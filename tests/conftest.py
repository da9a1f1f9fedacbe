"""Tests compare against float64 truths; float32 is tested by building float32 arrays."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

from tests.compiling import quick_to_compile, quick_to_trace

jax.config.update("jax_enable_x64", True)
quick_to_trace()
os.environ["XLA_FLAGS"] = quick_to_compile(os.environ.get("XLA_FLAGS", ""))


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))


def checked(function: Callable) -> Callable:
    """`beartype` for the arguments and results that are annotated with a dtype and a shape.

    All others are left to mypy and to the library's own checks, whose errors are tested.
    """
    shaped = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    function.__annotations__ = shaped
    # A whole number will do where a float is asked for.
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True)) if shaped else function


# What is imported of the core's rooms from here on checks its shapes at each call. The modules
# above them are left as they are: the hook would stand between their warnings and who is warned.
CORE = Path(__file__).parents[1] / "hypergrad"
ROOMS = sorted(f"hypergrad.{path.parent.name}" for path in CORE.glob("*/__init__.py"))
install_import_hook(ROOMS, f"{__name__}.checked")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: a file stays on a worker, but each quick path is a unit of its own.

    Files with many tests begin, single tests end the run, so that workers end together.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            alone = "::test_the_quick_path" in nodeid
            return nodeid if alone else super()._split_scope(nodeid)

    return Files(config, log)


def pytest_collection_finish() -> None:
    """Tracing makes many small objects: look for garbage less often, and not in the modules."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key."""
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    """Every compiled program holds memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def _ctrl_c_interrupts() -> None:
    """Tests send it to themselves; background jobs ignore it, and Ray Tune leaves a handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
