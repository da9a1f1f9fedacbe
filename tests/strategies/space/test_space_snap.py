"""Snapping a matrix of unit coordinates equals encoding what each row decodes to."""

import numpy as np
import pytest

from strategies.space import Categorical, Choice, Constant, Float, Int, Ordinal, SearchSpace

BRANCHES = {
    "svm": {"c": Float(1e-3, 1, log=True)},
    "mlp": {
        "depth": Int(1, 9),
        "width": Int(1, 100, log=True),
        "optimizer": Choice({"sgd": {"batch": Ordinal([1, 5, 9])}, "adam": {}}),
    },
}


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace({"model": Choice(BRANCHES)}),
        SearchSpace(
            {
                "a": Int(2, 30, log=True, step=3),
                "b": Float(0, 1, step=0.3),
                "c": Categorical([1, 2, 3]),
                "one": Categorical(["only"]),
                "k": Constant(3),
                "v": Float(0, 1, shape=(2, 2)),
                "w": Float(-1, 2, shape=(2, 3), step=0.1),
                "x": Float(1, 100, log=True, step=0.7),
            }
        ),
    ],
)
def test_snap_is_encode_of_decode(space):
    units = np.random.default_rng(0).random((200, space.dimension))
    expected = np.stack([space.encode(space.decode(row)) for row in units])
    np.testing.assert_allclose(space.snap(units), expected, atol=1e-11)
