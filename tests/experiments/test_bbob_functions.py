"""The 24 functions: their optima, and their gradients against differences."""

import numpy as np
import pytest

from experiments.data.bbob import FUNCTIONS, best_place, evaluate, instance

NUMBERS = range(1, len(FUNCTIONS) + 1)
#: A step function, and two that are rough on every scale: differences say nothing of a slope.
ROUGH = {7, 16, 23}


@pytest.mark.parametrize("number", NUMBERS)
def test_the_optimum_has_the_value_zero_and_no_other_place_is_below(number):
    arrays, rng = instance(number, 3, 1), np.random.default_rng(number)
    optimum = best_place(number, arrays)
    assert np.all(np.abs(optimum) <= 5.0)
    assert evaluate(number, arrays, optimum)[0] == pytest.approx(0.0, abs=1e-7)
    near = optimum + 1e-2 * rng.standard_normal((10, 3))
    places = np.clip(np.concatenate([rng.uniform(-5, 5, (20, 3)), near]), -5, 5)
    assert min(evaluate(number, arrays, place)[0] for place in places) >= -1e-9


@pytest.mark.parametrize("number", [number for number in NUMBERS if number not in ROUGH])
def test_gradients_are_those_of_the_values(number):
    arrays, rng = instance(number, 3, 2), np.random.default_rng(number)
    for place in rng.uniform(-4.9, 4.9, (3, 3)):
        gradient = evaluate(number, arrays, place)[1]
        steps = 1e-6 * np.eye(3)
        differences = [
            (evaluate(number, arrays, place + s)[0] - evaluate(number, arrays, place - s)[0]) / 2e-6
            for s in steps
        ]
        np.testing.assert_allclose(
            gradient, differences, rtol=2e-4, atol=1e-4 * np.abs(gradient).max()
        )
