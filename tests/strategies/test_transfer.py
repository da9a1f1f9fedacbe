"""A configuration for a large model, with what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from strategies import Float, Observation, SearchSpace
from strategies.laws import PowerLaw
from strategies.transfer import transfer

SPACE = SearchSpace(
    {
        "lr": Float(1e-4, 1.0, log=True),
        "dropout": Float(0.0, 0.9),
        "batch": Float(1.0, 1e4, log=True),
    }
)


def shapes(width):
    return [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, width), (width, width), (width, 2))]


def search(best_rate=1e-2):
    return [
        Observation(
            {"lr": lr, "dropout": 0.3 + 0.1 * np.sin(i), "batch": 64.0 + 8 * np.cos(i)},
            np.log(lr / best_rate) ** 2,
            number=i,
        )
        for i, lr in enumerate(np.geomspace(1e-4, 1.0, 17))
    ]


def test_by_rule_by_law_and_not():
    noise = [(1, 1.1), (10, 0.9), (100, 1.0), (1e3, 1.0)]
    points = [{"D": d, "batch": 2 * d**0.5 * factor} for d, factor in noise]
    law = PowerLaw.fit(points, ("D",), "batch")
    out = transfer(
        search(),
        shapes(16),
        shapes(64),
        space=SPACE,
        kinds={"dropout": "regularisation"},
        laws={"batch": law},
        size={"D": 1e5},
    )
    rate, dropout, batch = (out.moved[name] for name in ("lr", "dropout", "batch"))
    assert rate.by == "rule"
    assert rate.value == pytest.approx(1e-2)
    assert rate.low < 1e-2 < rate.high
    assert rate.high / rate.low < 20
    assert (dropout.by, dropout.low) == ("not", None)
    assert "gap" in dropout.why
    assert batch.by == "law"
    assert batch.low <= batch.value <= batch.high
    assert "0.7 fitted ranges" in batch.why
    assert out.config["batch"] == batch.value
    assert out.parametrization.factors["[1]"].rate == 1 / 4


def test_what_an_outer_algorithm_has_found_has_no_interval():
    out = transfer({"lr": 0.01}, shapes(16), shapes(64))
    assert (out.moved["lr"].value, out.moved["lr"].low) == (0.01, None)
    out = transfer({"lr": 0.01}, shapes(16), shapes(64), kind="standard")
    assert out.moved["lr"].by == "not"


def test_what_is_refused():
    with pytest.raises(ValueError, match="'lr': expected an optimum inside"):
        transfer(search(best_rate=10.0), shapes(16), shapes(64), space=SPACE)
    with pytest.raises(ValueError, match="'wd': expected one of lr"):
        transfer({"lr": 0.1}, shapes(16), shapes(64), kinds={"wd": "weight_decay"})
    with pytest.raises(ValueError, match="'kinds': 'lr'"):
        transfer({"lr": 0.1}, shapes(16), shapes(64), kinds={"lr": "speed"})
    with pytest.raises(ValueError, match="received the same shapes"):
        transfer({"lr": 0.1}, shapes(16), shapes(16))
