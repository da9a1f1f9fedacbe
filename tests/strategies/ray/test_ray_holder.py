"""The actor of a population, called as its trials call it; no cluster is needed."""

import asyncio

import numpy as np
import pytest
from ray import cloudpickle

from strategies.population import Population
from strategies.ray.holder import Holder
from tests.strategies.population.problem import SPACE, alone, batch, evaluate, init, step

ONE = {"rate": 0.02, "inner": {"decay": 0.01}, "power": 1}
OTHER = {**ONE, "rate": 0.1}


def holder():
    population = Population(init, step, evaluate, 2, space=SPACE, batch=batch)
    return Holder(cloudpickle.dumps(population), 0.01)


def test_trials_that_share_a_number_do_not_share_a_state():
    async def run():
        held = holder()
        found = await asyncio.gather(
            held.train(100, 5, ONE, 0, 3),
            held.train(200, 5, OTHER, 0, 3),
            held.train(300, 6, ONE, 0, 2),
        )
        assert [value for value, _ in found] == pytest.approx(
            [alone(c, n, s)[1] for c, n, s in ((ONE, 5, 3), (OTHER, 5, 3), (ONE, 6, 2))], rel=1e-12
        )
        # States are asked for while others are trained.
        kept, later, _ = await asyncio.gather(
            held.state(100, 3), held.train(200, 5, OTHER, 3, 4), held.train(300, 6, ONE, 2, 9)
        )
        np.testing.assert_allclose(
            sorted(kept.leaves[-1]), sorted(alone(ONE, 5, 3)[0]["w"]), rtol=1e-12
        )
        assert later[0] == pytest.approx(alone(OTHER, 5, 4)[1], rel=1e-12)
        # One takes over another one's state and goes on with its own configuration.
        taken, _ = await held.train(200, 5, ONE, 3, 6, kept)
        assert taken == pytest.approx(alone(ONE, 5, 6)[1], rel=1e-12)
        assert held.compiled()[0] == 1

    asyncio.run(run())


def test_what_is_not_known_is_said_and_what_begins_anew_begins_anew():
    async def run():
        held = holder()
        assert await held.train(1, 1, ONE, 2, 4) is None
        assert await held.state(1, 2) is None
        first = await held.train(1, 1, ONE, 0, 2)
        held.forget(1)
        assert await held.train(1, 1, ONE, 0, 2) == first
        with pytest.raises(ValueError, match="rate"):
            await held.train(2, 2, {**ONE, "rate": -1.0}, 0, 2)

    asyncio.run(run())
