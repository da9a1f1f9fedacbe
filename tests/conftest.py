"""Tests compare against float64 truths; float32 is tested by building float32 arrays."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

jax.config.update("jax_enable_x64", True)

# Tests compile far more than they compute: without LLVM's optimisations compiling takes a third
# less, and a third of the rest with the kernels' older emitters, which XLA lost after JAX 0.10 (and
# it ends a program whose flags it does not know). JAX reads this at its first computation;
# processes that a test starts inherit it.
FASTER = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    FASTER += " --xla_cpu_use_fusion_emitters=false"
if FASTER not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FASTER}"


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


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key."""
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    """Every compiled program holds memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()
