"""Members of a population are trainings of their own; values never compile; failures stay alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from strategies import (
    Categorical,
    Choice,
    Constant,
    Float,
    GridSearcher,
    Int,
    Ordered,
    RandomSearcher,
    SearchSpace,
    Simplex,
    TPESearcher,
)
from strategies.local import minimize
from strategies.population import Population
from strategies.schedulers import ASHA, Hyperband, IterativeDeepeningHyperband, run
from strategies.space import Logit
from tests.strategies.population.problem import (
    SPACE,
    X,
    Y,
    alone,
    batch,
    evaluate,
    init,
    step,
)


@pytest.fixture(scope="module")
def population():
    return Population(init, step, evaluate, 4, space=SPACE, batch=batch)


def test_members_equal_the_same_configurations_trained_alone(population):
    """Sums over a batch of 8 are the only ones whose order may differ: a few last digits."""
    result = population.run(RandomSearcher(SPACE, seed=2), trials=10, steps=7)
    assert len(result.trials) == 10
    for trial in result.trials:
        assert trial.value == pytest.approx(alone(trial.config, trial.number, 7)[1], rel=1e-12)
    best, _ = alone(result.best_config, min(result.trials, key=lambda t: t.value).number, 7)
    np.testing.assert_allclose(result.best_state["w"], best["w"], rtol=1e-12)
    np.testing.assert_array_equal(
        jax.random.key_data(result.best_state["key"]), jax.random.key_data(best["key"])
    )


def test_the_result_is_that_of_minimize_with_the_same_searcher(population):
    """With one batch of suggestions at a time a searcher that learns sees other histories."""
    result = population.run(RandomSearcher(SPACE, seed=5), trials=6, steps=3)
    numbers = iter(range(6))
    other = minimize(
        lambda config: alone(config, next(numbers), 3)[1],
        SPACE,
        trials=6,
        searcher=RandomSearcher(SPACE, seed=5),
    )
    assert [o.config for o in result.history] == [o.config for o in other.history]
    assert result.best_config == other.best_config
    assert result.best_value == pytest.approx(other.best_value, rel=1e-12)
    np.testing.assert_allclose(result.best_so_far(), other.best_so_far(), rtol=1e-12)


def test_new_values_and_lengths_compile_nothing(population):
    population.run(TPESearcher(SPACE, seed=1), trials=9, steps=5)
    compiled = next(iter(population.programs().values())).compiled
    population.run(ASHA(RandomSearcher(SPACE), 9, configurations=7), steps=2)
    assert population.traces == 1
    assert next(iter(population.programs().values())).compiled is compiled


def test_another_seed_compiles_nothing_and_has_other_members(population):
    other = population.with_seed(3)
    found = other.run(RandomSearcher(SPACE, seed=2), trials=5, steps=4)
    for trial in found.trials:
        expected = alone(trial.config, trial.number, 4, seed=3)[1]
        assert trial.value == pytest.approx(expected, rel=1e-12)
        assert trial.value != pytest.approx(alone(trial.config, trial.number, 4)[1], rel=1e-6)
    assert (population.seed, other.seed, population.traces, other.traces) == (0, 3, 1, 1)
    with pytest.raises(ValueError, match="'seed': expected"):
        population.with_seed(-1)


def test_members_are_given_probabilities_shares_and_ordered_arrays():
    space = SearchSpace(
        {"odds": Logit(0.1, 0.999), "shares": Simplex(3), "knots": Ordered(0.5, 1.0, 2)}
    )
    population = Population(
        lambda key, config: jnp.zeros(()),
        lambda state, config, batch, key: (
            state + config["odds"] + config["shares"][1] + config["knots"][0],
            {},
        ),
        lambda state, config: state,
        2,
        space=space,
    )
    for trial in population.run(RandomSearcher(space, seed=1), trials=3, steps=1).trials:
        config = trial.config
        assert trial.value == pytest.approx(
            config["odds"] + config["shares"][1] + config["knots"][0]
        )


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda: Hyperband(RandomSearcher(SPACE, seed=3), 9),
        lambda: ASHA(RandomSearcher(SPACE, seed=3), 9, configurations=9, mode="stopping"),
        lambda: IterativeDeepeningHyperband(TPESearcher(SPACE, seed=3), 9),
    ],
)
def test_rungs_resume_members_without_training_anew(population, scheduler):
    """Each result is that of a training alone; more members wait than there are lanes."""
    inside = scheduler()
    result = population.run(inside, steps=2)
    assert inside.finished
    for candidate in inside.candidates.values():
        for level, told in candidate.results.items():
            steps = 2 * inside.resources[level]
            value = alone(candidate.config, candidate.number, steps)[1]
            assert told.value == pytest.approx(value, rel=1e-11)
    assert result.best_value == inside.incumbent.value
    assert result.best_config == inside.incumbent.config


def test_rungs_decide_as_they_do_outside(population):
    outside = run(
        lambda job: alone(job.config, job.number, job.resource)[1],
        Hyperband(RandomSearcher(SPACE, seed=3), 9),
    )
    inside = Hyperband(RandomSearcher(SPACE, seed=3), 9)
    population.run(inside)
    for number, candidate in outside.candidates.items():
        assert inside.candidates[number].config == candidate.config
        assert set(inside.candidates[number].results) == set(candidate.results)
    deepened = IterativeDeepeningHyperband(RandomSearcher(SPACE, seed=3), 3)
    population.run(deepened)
    deepened.deepen(9)
    population.run(deepened)
    assert deepened.finished
    assert deepened.max_resource == 9


def test_a_failed_member_harms_no_other_and_is_replaced():
    """Some diverge to NaN: reported as failed, and their lanes go on with others."""
    space = SearchSpace({"rate": Float(0.05, 1e6, log=True)})

    def descend(state, config, batch, key):
        return state - config["rate"] * (X.T @ (X @ state - Y)) / len(X), {}

    def fit(state, config):
        return jnp.mean((X @ state - Y) ** 2)

    def begin(key, config):
        return jax.random.normal(key, (6,))

    population = Population(begin, descend, fit, 4, space=space)
    result = population.run(RandomSearcher(space), trials=20, steps=200)
    failed = [t for t in result.trials if t.status == "failed"]
    assert 0 < len(failed) < 20
    assert population.traces == 1
    for trial in result.trials:
        member = jax.random.fold_in(jax.random.key(0), trial.number)
        state = begin(jax.random.fold_in(member, 0), trial.config)
        state = jax.lax.fori_loop(
            0, 200, lambda _, s, c=trial.config: descend(s, c, None, None)[0], state
        )
        value = fit(state, trial.config)
        assert (trial.status == "failed") == (not np.isfinite(value))
        if trial.status == "complete":
            assert trial.value == pytest.approx(float(value), rel=1e-10)


def test_hyperparameters_that_change_shapes_have_a_program_each():
    space = SearchSpace(
        {
            "width": Categorical([2, 3]),
            "optimizer": Choice(
                {"sgd": {"rate": Float(0.01, 0.1)}, "sign": {"size": Float(0.01, 0.1)}}
            ),
            "name": Constant("net"),
        }
    )

    def begin(key, config):
        assert config["name"] == "net"
        return jnp.ones(config["width"])

    def move(state, config, batch, key):
        if config["optimizer"]["kind"] == "sgd":
            return state - config["optimizer"]["sgd"]["rate"] * state, None
        return state - config["optimizer"]["sign"]["size"] * jnp.sign(state), None

    population = Population(
        begin, move, lambda state, config: jnp.sum(state), 6, space=space,
        buckets=["width", "optimizer/kind"],
    )  # fmt: skip
    result = population.run(RandomSearcher(space), trials=25, steps=3)
    assert population.traces == 4
    assert sorted(t.number for t in result.trials) == list(range(25))
    for trial in result.trials:
        width, kind = trial.config["width"], trial.config["optimizer"]["kind"]
        (size,) = trial.config["optimizer"][kind].values()
        one = (1 - size) ** 3 if kind == "sgd" else 1 - 3 * size
        assert trial.value == pytest.approx(width * one)


def test_a_mask_serves_several_widths_with_one_program():
    space = SearchSpace({"width": Int(1, 5)})

    def begin(key, config):
        return jnp.where(jnp.arange(5) < config["width"], 1.0, 0.0)

    population = Population(
        begin, lambda s, c, b, k: (2.0 * s, None), lambda s, c: jnp.sum(s), 3, space=space
    )
    result = population.run(GridSearcher(space), trials=5, steps=1)
    assert {t.config["width"]: t.value for t in result.trials} == {w: 2.0 * w for w in range(1, 6)}
    assert population.traces == 1


def test_a_population_that_does_not_fit_says_how_many_members_would():
    with pytest.raises(ValueError, match="'size': expected at most") as caught:
        Population(init, step, evaluate, 4000, space=SPACE, batch=batch, memory=200_000).run(
            RandomSearcher(SPACE), trials=1, steps=1
        )
    fitting = int(str(caught.value).split("at most ")[1].split()[0])
    assert 50 < fitting < 4000
    small = Population(init, step, evaluate, fitting, space=SPACE, batch=batch, memory=200_000)
    assert small.predicted_bytes <= 200_000
    assert small.traces == 1
    with pytest.raises(ValueError, match=f"at most {fitting} members"):
        Population(
            init, step, evaluate, fitting + 1, space=SPACE, batch=batch, memory=200_000
        ).programs()


def wide(key, config):
    return jnp.zeros(config["n"])


def same(state, config, batch, key):
    return state, {}


def total(state, config):
    return jnp.sum(state)


def start(key, config):
    return jnp.zeros(2)


BAD = {
    "shape": (
        {"init": wide},
        r"'n': expected a hyperparameter that changes no shape.*'buckets'.*mask",
    ),
    "rows": (
        {"batch": lambda key, config: jnp.ones(3)[: config["n"]]},
        r"'n': expected a hyperparameter that changes no shape.*'buckets'.*mask",
    ),
    "structure": ({"step": lambda s, c, b, k: ((s, s), {})}, "'step': expected the state's struct"),
    "type": (
        {"step": lambda s, c, b, k: (s.astype(jnp.float16), {})},
        r"'step': expected state to stay float64\(2,\), received float16",
    ),
    "pair": ({"step": lambda s, c, b, k: s}, "'step': expected a pair of state and metrics"),
    "vector": ({"evaluate": lambda s, c: s}, r"'evaluate': expected a scalar.*\(2,\)"),
    "dict": ({"evaluate": lambda s, c: {"loss": s[0]}}, "'evaluate': expected a scalar.* dict"),
    "one": ({"size": 1}, "'size': expected an integer >= 2, received 1"),
    "unknown": ({"buckets": ["m"]}, "'buckets': expected keys of"),
    "endless": ({"buckets": ["x"]}, "'buckets': expected at most 64"),
    "text": ({"buckets": "n"}, "'buckets': expected a list of names"),
    "function": ({"evaluate": 3}, "'evaluate': expected a function, received 3"),
    "key": ({"seed": jax.random.key(0)}, "'seed': expected an integer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    change, message = BAD[case]
    space = SearchSpace({"n": Int(1, 3), "x": Float(0.0, 1.0)})
    given = {"init": start, "step": same, "evaluate": total, "size": 2, "space": space} | change
    with pytest.raises(ValueError, match=message):
        Population(**given).programs()


def test_words_need_a_bucket():
    space = SearchSpace({"kind": Categorical(["a", "b"]), "x": Float(0.0, 1.0)})
    with pytest.raises(ValueError, match=r"'kind': expected numbers.*'buckets'"):
        Population(start, same, total, 2, space=space).programs()
    space = SearchSpace({"kind": Choice({"a": {"x": Float(0.0, 1.0)}, "b": {}})})
    with pytest.raises(ValueError, match="'buckets': expected 'kind/kind' among them"):
        Population(start, same, total, 2, space=space)


class Lazy(RandomSearcher):
    def _propose(self, number, history, pending):
        return None if number > 2 else super()._propose(number, history, pending)


def test_a_searcher_that_returns_fewer_than_asked_is_named(population):
    with pytest.raises(ValueError, match="expected a suggestion for trial 3, received None"):
        population.run(Lazy(SPACE), trials=5, steps=1)


@pytest.mark.parametrize(
    ("search", "options", "message"),
    [
        (3, {}, "'search': expected a searcher, a scheduler or a PBT"),
        (RandomSearcher(SPACE), {"trials": 3}, "'steps': expected an integer"),
        (
            RandomSearcher({"x": Float(0.0, 1.0)}),
            {"trials": 3, "steps": 1},
            "'search': expected one",
        ),
        (ASHA(RandomSearcher(SPACE), 9), {}, "'trials': expected a number"),
    ],
)
def test_bad_calls_are_named(population, search, options, message):
    with pytest.raises(ValueError, match=message):
        population.run(search, **options)


def test_members_share_a_batch_of_no_keys(population):
    """Same configuration, two members: other keys, so other results."""
    searcher = RandomSearcher(SPACE, first=[{"rate": 0.1}] * 2)
    one, two = population.run(searcher, trials=2, steps=2).trials
    assert one.config == two.config
    assert one.value != two.value


def test_progress_says_how_far_it_is(population):
    seen = []
    population.run(RandomSearcher(SPACE), trials=9, steps=3, progress=seen.append)
    assert [p.trials for p in seen] == [4, 8, 9]
    assert [p.steps for p in seen] == [12, 24, 27]
    assert seen[-1].left == 0
    assert seen[0].alive == 4
    assert "4 alive, 4 results, 12 steps, best " in str(seen[0])
