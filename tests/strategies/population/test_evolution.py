"""Population-based training: who is copied, what is explored, and derivatives that are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from strategies import (
    Categorical,
    Float,
    Int,
    Observation,
    Ordered,
    Ordinal,
    RandomSearcher,
    SearchSpace,
    Simplex,
)
from strategies.population import (
    PB2,
    PBT,
    FollowGradient,
    Perturb,
    Population,
    Resample,
    Round,
)
from strategies.population.pbt import exploit
from strategies.space import Logit
from tests.strategies.population.problem import SPACE, alone, batch, evaluate, init, step

MIXED = SearchSpace(
    {
        "rate": Float(1e-3, 1.0, log=True),
        "shift": Float(-1.0, 1.0, shape=(2,)),
        "units": Int(1, 100),
        "size": Ordinal([16, 32, 64]),
        "act": Categorical([0, 1, 2]),
        "coarse": Float(0.0, 1.0, step=0.25),
    }
)
CONFIG = {
    "rate": 0.1, "shift": [0.0, 0.5], "units": 10, "size": 32, "act": 1, "coarse": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def population():
    return Population(init, step, evaluate, 6, space=SPACE, batch=batch)


def test_the_worst_go_on_from_the_best():
    rng = np.random.default_rng(0)
    parents = exploit([5.0, 1.0, 4.0, 2.0, None, 3.0, 8.0, 9.0, 6.0, 7.0], 0.2, rng)
    assert [i for i in range(10) if parents[i] != i] == [4, 7]
    assert {parents[4], parents[7]} <= {1, 3}
    # All that failed, even beyond the share; the only one that has not is the best.
    assert exploit([None, 2.0, None, None], 0.25, rng) == [1, 1, 1, 1]
    assert exploit([None, None], 0.5, rng) == [-1, -1]
    assert exploit([1.0, 2.0], 0.5, rng) == [0, 0]


def test_perturbation_multiplies_and_stays_inside():
    rng = np.random.default_rng(1)
    seen = [Perturb(resample=0.0).changed(MIXED, CONFIG, rng) for _ in range(50)]
    assert {round(c["rate"], 9) for c in seen} == {0.08, 0.12}
    # On [-1, 1] by a fifth of the range.
    assert {round(c["shift"][0], 9) for c in seen} == {-0.4, 0.4}
    assert {c["units"] for c in seen} == {8, 12}
    assert {c["size"] for c in seen} == {16, 64}
    assert {c["act"] for c in seen} == {1}
    assert {c["coarse"] for c in seen} == {0.25, 0.75}
    edge = Perturb(resample=0.0).changed(MIXED, {**CONFIG, "rate": 1.0, "units": 1}, rng)
    assert edge["rate"] <= 1.0
    assert edge["units"] in (1, 2)
    anew = [Perturb(resample=1.0).changed(MIXED, CONFIG, rng)["act"] for _ in range(30)]
    assert set(anew) == {0, 1, 2}


def test_odds_are_multiplied_and_shares_stay_shares():
    space = SearchSpace(
        {"odds": Logit(0.01, 0.999), "shares": Simplex(3), "knots": Ordered(0, 1, 2)}
    )
    rng = np.random.default_rng(2)
    config = space.default() | {"odds": 0.9}
    seen = [Perturb(resample=0.0).changed(space, config, rng) for _ in range(20)]
    assert {round(c["odds"] / (1 - c["odds"]), 6) for c in seen} == {7.2, 10.8}
    assert all(space.validate(c) == c and c["shares"] != config["shares"] for c in seen)


@pytest.mark.parametrize("explore", [Perturb(), Resample(0.5), PB2(start=4), FollowGradient(3)])
def test_every_round_goes_on_from_the_parents(population, explore):
    """Weights are copied exactly: each member can be trained again along its ancestry."""
    search = PBT(
        RandomSearcher(SPACE, seed=4), steps=20, interval=5, truncation=0.3, explore=explore
    )
    result = population.run(search)
    assert len(result.history) == 24
    by_number = {o.number: o for o in result.history}
    copied = [o for o in result.history if o.note["parent"] not in (-1, o.note["member"])]
    assert copied
    for told in (copied[0], result.history[-1]):
        ancestry = [told]
        while (parent := ancestry[0].note["parent"]) >= 0:
            ancestry.insert(0, by_number[6 * (ancestry[0].note["round"] - 1) + parent])
        _, value = retrained(ancestry)
        assert told.value == pytest.approx(value, rel=1e-11)
    steps, rates = result.schedule("rate")
    assert list(steps) == [5 * i for i in range(len(result.lineage))]
    assert rates[-1] == result.best_config["rate"]
    state, value = retrained(result.lineage)
    assert result.best_value == min(o.value for o in result.history)
    assert result.best_value == pytest.approx(value, rel=1e-11)
    np.testing.assert_allclose(result.best_state["w"], state["w"], rtol=1e-10)


def retrained(ancestry):
    """The state and value after the rounds of a lineage, by plain calls."""
    state, age = None, 0
    for item in ancestry:
        member = jax.random.fold_in(jax.random.key(0), item.note["member"])
        if state is None:
            state = init(jax.random.fold_in(member, 0), item.config)
        for _ in range(5):
            draw, move = jax.random.split(jax.random.fold_in(member, age + 1))
            state, _ = step(state, item.config, batch(draw, item.config), move)
            age += 1
    return state, float(evaluate(state, ancestry[-1].config))


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_hypergradient_is_that_of_the_value_some_steps_ahead(horizon):
    population = Population(init, step, evaluate, 3, space=SPACE, batch=batch)
    search = PBT(RandomSearcher(SPACE, seed=1), 4, 4, explore=FollowGradient(horizon))
    told = population.run(search).history
    assert population.traces == 1
    for item in told:
        state, value = alone(item.config, item.number, 4)
        assert item.value == pytest.approx(value, rel=1e-12)

        def ahead(rate, decay, item=item, state=state):
            config = {**item.config, "rate": rate, "inner": {"decay": decay}}
            member = jax.random.fold_in(jax.random.key(0), item.number)
            for age in range(4, 4 + horizon):
                draw, move = jax.random.split(jax.random.fold_in(member, age + 1))
                state, _ = step(state, config, batch(draw, config), move)
            return float(evaluate(state, config))

        rate, decay, h = item.config["rate"], item.config["inner"]["decay"], 1e-5
        by_rate = (ahead(rate + h, decay) - ahead(rate - h, decay)) / (2 * h)
        by_decay = (ahead(rate, decay + h) - ahead(rate, decay - h)) / (2 * h)
        assert item.gradient["rate"] == pytest.approx(by_rate, rel=1e-5)
        assert item.gradient["inner/decay"] == pytest.approx(by_decay, rel=1e-5)
        assert "power" not in item.gradient


def told(space, value, config, number, parent, gradient=None):
    note = {"member": number % 4, "round": number // 4, "parent": parent}
    point = space.point(config)
    return Observation(point.config, value, gradient, number=number, note=note, point=point)


def test_all_members_follow_their_gradient_and_copies_that_of_their_parent():
    space = SearchSpace({"a": Float(0.0, 1.0), "b": Float(0.0, 1.0), "c": Int(0, 10)})
    slopes = [4.0, -4.0, 0.0, None]
    last = [
        told(space, 1.0, {"a": 0.5, "b": 0.5, "c": 5}, i, -1, None if s is None else {"a": s})
        for i, s in enumerate(slopes)
    ]
    rng = np.random.default_rng(0)
    follow = FollowGradient(rate=0.1, others=Perturb(resample=0.0))
    found = follow(Round(space, 1, 5, rng, [0, 1, 2, 1], [last]))
    # Against the gradient, by no more than the rate; not at all without a derivative.
    assert [c["a"] for c in found] == pytest.approx([0.4, 0.6, 0.5, 0.6])
    assert [c["b"] for c in found] == [0.5] * 4
    assert [c["c"] for c in found[:3]] == [5, 5, 5]
    assert found[3]["c"] in (4, 6)


def test_the_bandit_goes_where_values_have_fallen_most():
    """Values fall fastest at a = 0.8; b says nothing; a copy does not repeat another."""
    space = SearchSpace({"a": Float(0.0, 1.0), "b": Categorical([0, 1])})
    rng = np.random.default_rng(3)
    value, rounds = np.full(4, 100.0), []
    for r in range(8):
        configs = [space.sample(rng) for _ in range(4)]
        value = value - 1.0 + 4 * np.array([(c["a"] - 0.8) ** 2 for c in configs])
        rounds.append(
            [told(space, value[i], c, 4 * r + i, i if r else -1) for i, c in enumerate(configs)]
        )
    found = PB2()(Round(space, 8, 10, rng, [0, 0, 0, 3], rounds))
    assert found[0] == rounds[-1][0].config
    assert found[3] == rounds[-1][3].config
    for config in found[1:3]:
        assert abs(config["a"] - 0.8) < 0.15
    assert found[1]["a"] != found[2]["a"]


def test_a_population_that_has_failed_begins_anew():
    space = SearchSpace({"x": Float(0.0, 1.0)})
    population = Population(
        lambda key, config: jax.random.uniform(key),
        lambda state, config, batch, key: (state, {}),
        lambda state, config: jnp.where(config["x"] < 0.5, jnp.nan, state),
        4,
        space=space,
    )
    first = [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}, {"x": 0.4}]
    result = population.run(PBT(RandomSearcher(space, first=first), steps=4, interval=1))
    assert [o.status for o in result.history[:4]] == ["failed"] * 4
    assert [o.note["parent"] for o in result.history[4:8]] == [-1] * 4
    assert result.best_value is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 7}, "'steps': expected a multiple of interval=5, received 7"),
        ({"truncation": 0.6}, "'truncation': expected a share"),
        ({"explore": 3}, "'explore': expected an Explore"),
        ({"searcher": 3}, "'searcher': expected a searcher"),
    ],
)
def test_bad_options_are_named(change, message):
    given = {"searcher": RandomSearcher(SPACE), "steps": 10, "interval": 5} | change
    with pytest.raises(ValueError, match=message):
        PBT(**given)


@pytest.mark.parametrize("value", [1.5, -0.1, True, "a", float("nan")])
def test_probabilities_are_checked_by_name(value):
    with pytest.raises(ValueError, match="'resample': expected a probability"):
        Perturb(resample=value)
    with pytest.raises(ValueError, match="'probability': expected a probability"):
        Resample(value)


def test_weights_are_not_copied_between_shapes():
    space = SearchSpace({"width": Categorical([2, 3])})
    population = Population(
        lambda key, config: jnp.ones(config["width"]),
        lambda state, config, batch, key: (state, {}),
        lambda state, config: jnp.sum(state),
        4,
        space=space,
        buckets=["width"],
    )
    with pytest.raises(ValueError, match="'buckets': expected none"):
        population.run(PBT(RandomSearcher(space), steps=2, interval=1))
