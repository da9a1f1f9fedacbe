"""The losses as functions of what is differentiated, against dense derivatives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.problem import BilevelProblem
from hypergrad.restricted import RestrictedProblem

PARAMS = {"w": jnp.array([0.3, -1.2]), "act": jnp.tanh, "steps": jnp.array(3)}
HPARAMS = {"l": jnp.array([0.1, 0.7]), "power": 2}


def inner(p, h, batch):
    return batch * jnp.sum(jnp.exp(h["l"]) * p["act"](p["w"]) ** h["power"]) + jnp.prod(p["w"])


def outer(p, h, batch):
    return jnp.sum((p["w"] - batch) ** 2 * h["l"]), p["steps"]


@jax.custom_vjp
def backward_only(x):
    return jnp.sin(x)


backward_only.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
LOSSES = {
    "plain": inner,
    "custom_vjp": lambda p, h, b: inner(p, h, b) + jnp.sum(h["l"] * backward_only(p["w"])),
}


@pytest.fixture(params=LOSSES)
def here(request):
    loss = LOSSES[request.param]
    problem = BilevelProblem(lambda p, h, b: (loss(p, h, b), None), outer, has_aux=True)
    return RestrictedProblem(problem, PARAMS, HPARAMS, 1.5, 0.2)


def test_what_is_not_differentiated_is_carried(here):
    assert here.w["w"] is PARAMS["w"]
    assert here.w["act"] is here.w["steps"] is None
    moved = here.params_at({"w": jnp.ones(2), "act": None, "steps": None})
    assert moved["act"] is jnp.tanh
    assert moved["steps"] is PARAMS["steps"]
    assert here.hparams_at(here.h)["power"] == 2
    assert here.params_at() is PARAMS
    value, aux = here.outer_loss_and_aux()
    assert aux == 3
    assert value == outer(PARAMS, HPARAMS, 0.2)[0]


def test_the_gradients_of_the_directional_derivative(here):
    w, h = PARAMS["w"], HPARAMS["l"]

    def residual(w, h):
        return here.residual({**here.w, "w": w}, {**here.h, "l": h})["w"]

    q = jnp.array([0.4, -2.0])
    by_w, by_h, by_q = jax.grad(here.directional_derivative(), argnums=(0, 1, 2))(
        here.w, here.h, {**here.w, "w": q}
    )
    np.testing.assert_allclose(by_h["l"], jax.jacrev(residual, 1)(w, h).T @ q, rtol=1e-12)
    np.testing.assert_allclose(by_w["w"], jax.jacrev(residual, 0)(w, h).T @ q, rtol=1e-12)
    np.testing.assert_allclose(by_q["w"], residual(w, h), rtol=1e-12)
    assert by_h["power"] is None


def test_other_data_by_replacing_them(here):
    change = replace(here, inner_batch=3.0).inner_loss() - here.inner_loss()
    expected = inner(PARAMS, HPARAMS, 3.0) - inner(PARAMS, HPARAMS, 1.5)
    np.testing.assert_allclose(change, expected, rtol=1e-12)
