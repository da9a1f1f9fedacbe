"""A ridge problem with four penalties, small enough for closed forms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.problem import BilevelProblem


class Ridge(NamedTuple):
    """The problem, its data, and its closed forms."""

    problem: BilevelProblem
    inner: dict
    outer: dict
    params: jax.Array
    hparams: jax.Array

    def solution(self, hparams):
        """`w*`."""
        x, y = self.inner["x"], self.inner["y"]
        hessian = x.T @ x / len(y) + jnp.diag(jnp.exp(hparams))
        return jnp.linalg.solve(hessian, x.T @ y / len(y))

    def value(self, hparams):
        """The outer loss at `w*`."""
        return self.problem.outer(self.solution(hparams), hparams, self.outer)


def inner(w, hparams, batch):
    residual = batch["x"] @ w - batch["y"]
    return 0.5 * jnp.mean(residual**2) + 0.5 * jnp.sum(jnp.exp(hparams) * w**2)


def outer(w, hparams, batch):
    residual = batch["x"] @ w - batch["y"]
    return 0.5 * jnp.mean(residual**2)


@pytest.fixture(scope="session")
def ridge():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4))
    y = x @ np.array([1.0, -1.0, 0.1, 0.0]) + 0.8 * rng.normal(size=48)
    parts = [{"x": jnp.asarray(x[i::2]), "y": jnp.asarray(y[i::2])} for i in range(2)]
    return Ridge(BilevelProblem(inner, outer), *parts, jnp.zeros(4), jnp.zeros(4))
