"""Tests compare against float64 truths; float32 is tested by building float32 arrays."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key."""
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    """Every compiled program holds memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()
