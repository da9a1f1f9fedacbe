"""Models that the rules were not written for: their coordinates stay, and their roles are right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.transfer import Probe, coordinate_check, infer

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 6, 6, 2))
SERIES = RNG.normal(size=(5, 8, 3))
ROWS = RNG.normal(size=(16, 4))
LABELS = RNG.integers(0, 3, 16)
#: A multiple of the width is wide enough that sums over it have settled.
WIDTHS = [32, 256]


def normal(rng, *shape):
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


def classified(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[: len(logits)]).mean()


# -- convolutions: a stem, one that is grouped by channel, one over all channels, a head ----------


def conv_net(width, rng):
    return {
        "stem": normal(rng, 3, 3, 2, width),
        "each": rng.normal(size=(3, 3, 1, width)) / 3.0,
        "full": normal(rng, 3, 3, width, width),
        "gain": np.ones(width),
        "head": normal(rng, width, 3),
    }


def convolved(params):
    def conv(x, kernel, groups=1):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    width = params["gain"].shape[0]
    stem = conv(IMAGES, params["stem"])
    each = conv(jax.nn.relu(stem), params["each"], width)
    full = conv(jax.nn.relu(each), params["full"]) * params["gain"]
    logits = jax.nn.relu(full).mean((1, 2)) @ params["head"]
    return {"stem": stem, "each": each, "full": full, "logits": logits}


# -- a recurrent network with gates ------------------------------------------------------------


def lstm(width, rng):
    return {
        "in": normal(rng, 3, 4 * width),
        "hidden": normal(rng, width, 4 * width),
        "bias": np.zeros(4 * width),
        "head": normal(rng, width, 3),
    }


def recurred(params):
    def step(carry, x):
        h, c = carry
        gates = x @ params["in"] + h @ params["hidden"] + params["bias"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), gates

    zero = jnp.zeros((SERIES.shape[1], params["head"].shape[0]))
    (h, c), gates = jax.lax.scan(step, (zero, zero), SERIES)
    return {"gates": gates[-1], "cell": c, "logits": h @ params["head"]}


# -- a mixture of experts ----------------------------------------------------------------------


def experts(width, rng):
    return {
        "embed": normal(rng, 4, width),
        "router": normal(rng, width, 4),
        "up": np.stack([normal(rng, width, 2 * width) for _ in range(4)]),
        "down": np.stack([normal(rng, 2 * width, width) for _ in range(4)]),
        "head": normal(rng, width, 3),
    }


def routed(params):
    h = jnp.tanh(ROWS @ params["embed"])
    router = h @ params["router"]
    weights, chosen = jax.lax.top_k(jax.nn.softmax(router), 2)
    gates = jnp.zeros_like(router).at[jnp.arange(len(h))[:, None], chosen].set(weights)
    up = jax.nn.relu(jnp.einsum("nw,ewv->nev", h, params["up"]))
    h = h + jnp.einsum("nev,evw,ne->nw", up, params["down"], gates)
    return {"up": up, "stream": h, "router": router, "logits": jnp.tanh(h) @ params["head"]}


MODELS = {
    "convolutions": (
        conv_net,
        convolved,
        {"stem": "input", "each": "input", "full": "hidden", "gain": "vector", "head": "output"},
    ),
    "recurrent": (
        lstm,
        recurred,
        {"in": "input", "hidden": "hidden", "bias": "vector", "head": "output"},
    ),
    "experts": (
        experts,
        routed,
        {
            "embed": "input",
            "router": "output",
            "up": "hidden",
            "down": "hidden",
            "head": "output",
        },
    ),
}


def check(name, kind):
    draw, activations, _ = MODELS[name]
    shapes = [draw(width, np.random.default_rng(0)) for width in (WIDTHS[0], 2 * WIDTHS[0])]

    def make(width, key):
        seed = int(jax.random.key_data(key)[-1])
        base, params = (
            jax.tree.map(jnp.asarray, draw(w, np.random.default_rng(seed)))
            for w in (WIDTHS[0], width)
        )
        rule = infer(*shapes, kind=kind).at(params)
        return Probe(
            rule.init(params, base),
            lambda p: classified(activations(rule.forward(p))["logits"]),
            lambda p: activations(rule.forward(p)),
            rule.optimizer(optax.adam(2.0**-5)),
        )

    return coordinate_check(make, WIDTHS, seeds=1)


@pytest.mark.parametrize("name", MODELS)
def test_roles(name):
    draw, _, roles = MODELS[name]
    rule = infer(draw(8, RNG), draw(24, RNG))
    assert {leaf.path.strip("[']"): leaf.role for leaf in rule.leaves} == roles


@pytest.mark.parametrize("name", MODELS)
def test_coordinates_stay_with_mup(name):
    mup = check(name, "mup")
    inner = {k: abs(v) for k, v in mup.slopes.items() if k != "logits"}
    assert max(inner.values()) <= 0.12, mup.slopes
    # At the start a readout under muP falls as the root of the width; it must not grow.
    assert mup.slopes["logits"] <= 0.12


def test_coordinates_do_not_stay_without():
    assert check("experts", "standard").worst >= 0.4
