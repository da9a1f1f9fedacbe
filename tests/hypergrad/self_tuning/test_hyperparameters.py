"""Transforms: round trips, domains, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.self_tuning import Bounded, Discrete, Hyperparameters, Positive

SET = Hyperparameters(
    {
        "dropout": Bounded(0.0, 0.9, initial=0.1, shape=(2,)),
        "decay": Positive(1e-4),
        "holes": Discrete(0, 4, initial=1),
    }
)


def test_initial_values_round_trip():
    hparams = SET.initial()
    assert {name: value.shape for name, value in hparams.items()} == {
        "dropout": (2,),
        "decay": (),
        "holes": (),
    }
    values = SET.values(hparams)
    np.testing.assert_allclose(values["dropout"], 0.1, rtol=1e-12)
    np.testing.assert_allclose(values["decay"], 1e-4, rtol=1e-12)
    assert values["holes"] == 1.0
    back = SET.unconstrained({"dropout": [0.2, 0.3], "decay": 0.5, "holes": 4})
    np.testing.assert_allclose(SET.values(back)["dropout"], [0.2, 0.3], rtol=1e-12)
    assert SET.values(back)["holes"] == 4.0
    assert SET.initial(jnp.float32)["decay"].dtype == jnp.float32


def test_values_stay_in_their_domains_however_far():
    for eta in (-1e4, 1e4):
        values = SET.values({n: jnp.full(a.shape, eta) for n, a in SET.initial().items()})
        assert jnp.all((values["dropout"] >= 0) & (values["dropout"] <= 0.9))
        assert values["decay"] >= 0
        assert values["holes"] == (0.0 if eta < 0 else 4.0)


def test_every_whole_number_is_reached():
    transform = Discrete(-1, 3, initial=0)
    reached = [float(transform.value(jnp.array(transform.inverse(k)))) for k in range(-1, 4)]
    assert reached == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert jax.grad(transform.value)(0.3) == 0.0


def test_an_initial_value_on_a_bound_is_moved_inside():
    values = Hyperparameters({"rate": Bounded(0.0, 0.5, initial=0.0)})
    rate = values.values(values.initial())["rate"]
    np.testing.assert_allclose(rate, 0.5 * 1e-3, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Bounded(1.0, 1.0, initial=1.0), "Bounded: expected low < high, received low=1.0"),
        (
            lambda: Bounded(0.0, jnp.inf, initial=1.0),
            "Bounded: high: expected a finite number, received inf",
        ),
        (lambda: Bounded(0.0, 1.0, initial=2.0), r"a number in \[0.0, 1.0\], received 2.0"),
        (lambda: Positive(0.0), "Positive: expected a positive number, received 0.0"),
        (lambda: Discrete(0, 2.5, initial=1), "`high`: expected a whole number, received 2.5"),
        (lambda: Discrete(0, 2, initial=3), r"Discrete: expected a number in \[0, 2\], received 3"),
        (lambda: Hyperparameters({}), "transforms: expected a dict .*received none"),
        (lambda: Hyperparameters({"kind": ["a", "b"]}), "'kind': expected .*received list"),
        (lambda: SET.values({"decay": 1.0}), r"expected the names \['decay', 'dropout', 'holes'\]"),
        (
            lambda: SET.unconstrained({"dropout": 0.95, "decay": 1.0, "holes": 1}),
            r"'dropout': Bounded: expected a number in \[0.0, 0.9\], received 0.95",
        ),
        (
            lambda: SET.check({**SET.initial(), "decay": jnp.array(jnp.nan)}),
            "'decay' left its domain: expected finite values, received nan",
        ),
        (
            lambda: SET.check({**SET.initial(), "dropout": jnp.zeros(3)}),
            r"'dropout': expected shape \(2,\), received \(3,\)",
        ),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()
