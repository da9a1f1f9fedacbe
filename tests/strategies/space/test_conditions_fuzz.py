"""Every kind of domain under conditions: a seeded fuzz of spaces and of default searches."""

import warnings

import numpy as np
import pytest

from strategies import (
    BayesSearcher,
    Categorical,
    Choice,
    Float,
    HypergradientSearcher,
    Int,
    SearchSpace,
)
from strategies.local import minimize
from strategies.space import Ordinal

KINDS = {
    "float": lambda rng: Float(0.1, 0.9),
    "log": lambda rng: Float(1e-4, 1.0, log=True, shape=(2,)),
    "step": lambda rng: Float(0.1, 0.9, step=0.1),
    "log step": lambda rng: Float(0.5, 8.0, log=True, step=0.5),
    "int": lambda rng: Int(1, 7),
    "log int": lambda rng: Int(1, 512, log=True),
    "ordinal": lambda rng: Ordinal([1, 3, 10]),
    "categorical": lambda rng: Categorical(["p", "q", "r"]),
    "single": lambda rng: Categorical(["only"]),
}


def drawn(rng, depth):
    """Some domains, and up to `depth` levels of branches below."""
    names = rng.choice(sorted(KINDS), rng.integers(1, 3), replace=False)
    inside = {str(name).replace(" ", "_"): KINDS[str(name)](rng) for name in names}
    if depth:
        inside["branch"] = Choice({"none": {}, "one": drawn(rng, depth - 1)})
    return inside


@pytest.mark.parametrize("seed", range(30))
def test_snapping_is_encoding_what_is_decoded(seed):
    rng = np.random.default_rng(seed)
    space = SearchSpace(drawn(rng, int(rng.integers(1, 4))))
    for count in (0, 1, 5):
        units = rng.random((count, space.dimension))
        expected = [space.encode(space.decode(unit)) for unit in units]
        expected = np.reshape(expected, (count, space.dimension))
        np.testing.assert_allclose(space.snap(units), expected, atol=1e-9)


@pytest.mark.parametrize("kind", [HypergradientSearcher, BayesSearcher])
@pytest.mark.parametrize("seed", range(3))
def test_default_searches_of_conditional_spaces_end(kind, seed):
    rng = np.random.default_rng(100 + seed)
    space = SearchSpace({"y": Float(0, 1), **drawn(rng, 2)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(
            # The incumbent stays without a branch, so that no candidate has what is inside.
            lambda config: config["y"] + (config["branch"]["kind"] != "none"),
            space,
            searcher=kind(space, seed=seed),
            trials=10,
        )
    assert len(found.history) == 10
