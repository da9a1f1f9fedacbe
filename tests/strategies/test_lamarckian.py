"""Trials that tune themselves: what they report, on every engine, and what searchers make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, ImplicitDifferentiation, OptaxSolver
from hypergrad.linear import CG
from hypergrad.outer import HOAG, Alternating, Box
from strategies import (
    AutoSearcher,
    BayesSearcher,
    Categorical,
    Choice,
    EvolutionSearcher,
    Float,
    HypergradientSearcher,
    Int,
    Observation,
    Ordered,
    SearchSpace,
    Simplex,
)
from strategies.lamarckian import LamarckianTrial, Training
from strategies.ledger import Ledger
from strategies.local import minimize
from strategies.space import Logit

SIZE = 4
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, SIZE)) * [1.0, 2.0, 3.0, 4.0]
Y = X[:, 0] - X[:, 1] + RNG.standard_normal(60)
SPACE = SearchSpace(
    {
        "l2": Float(1e-3, 1.0, log=True, shape=(SIZE,)),
        "rate": Float(1e-4, 1.0, log=True),
        "scaling": Categorical(["none", "standard"]),
    }
)
# Gradient steps and a few products: they compile in a moment, and suffice for these problems.
SOLVER = OptaxSolver(optax.sgd(0.05), steps=400, tol=1e-12)
ESTIMATOR = ImplicitDifferentiation(SOLVER, CG(max_steps=8, tol=1e-12), error_estimate=False)


def inner(params, hparams, batch):
    x, y = batch
    return jnp.mean((x @ params - y) ** 2) + params @ (hparams["l2"] * params)


def outer(params, hparams, batch):
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)


PROBLEM = BilevelProblem(inner, outer)


def build(config):
    x = X / X.std(0) if config["scaling"] == "standard" else X
    x, y = jnp.asarray(x), jnp.asarray(Y)
    return Training(PROBLEM, jnp.zeros(SIZE), (x[:30], y[:30]), (x[30:], y[30:]))


def exact(config):
    """Validation loss and its derivative in the penalties, by a direct solve."""
    _, _, (x, y), (u, v) = build(config)

    def loss(l2):
        w = jnp.linalg.solve(x.T @ x / 30 + jnp.diag(l2), x.T @ y / 30)
        return jnp.mean((u @ w - v) ** 2)

    return jax.value_and_grad(loss)(jnp.asarray(config["l2"]))


class Spied(HypergradientSearcher):
    """The hypergradient searcher, which keeps what it was shown last."""

    def _propose(self, number, history, pending):
        self.shown = history
        return super()._propose(number, history, pending)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def trial(**options):
    return LamarckianTrial(
        SPACE, build, Alternating(ESTIMATOR, optax.adam(0.1)), **{"steps": 6, **options}
    )


def test_it_reports_where_it_ended_with_value_and_gradient_there():
    start = SPACE.default()
    told = trial()(start)
    assert told.info["start_value"] == pytest.approx(float(exact(start)[0]), rel=1e-9)
    assert told.value < told.info["start_value"]
    assert told.config != start
    value, gradient = exact(told.config)
    assert told.value == pytest.approx(float(value), rel=1e-8)
    assert list(told.gradient) == ["l2"]
    np.testing.assert_allclose(told.gradient["l2"], gradient, rtol=1e-5, atol=1e-9)
    # What no loss reads is left to the searcher, and so is what has no gradient.
    assert told.config["rate"] == start["rate"]
    assert told.config["scaling"] == start["scaling"]
    assert told.gradient_error is None
    assert told.info["outer_steps"] == 6


def test_the_error_estimate_is_reported():
    careful = ImplicitDifferentiation(SOLVER, CG(max_steps=8, tol=1e-12))
    made = LamarckianTrial(SPACE, build, Alternating(careful, optax.adam(0.1)), steps=1)
    assert 0 <= made(SPACE.default()).gradient_error < 1e-3


def test_other_outer_algorithms_do_it_too():
    algorithm = HOAG(ESTIMATOR, step_size=0.05)
    told = LamarckianTrial(SPACE, build, algorithm, steps=8)(SPACE.default())
    assert told.value < told.info["start_value"]
    assert told.value == pytest.approx(float(exact(told.config)[0]), rel=1e-3)


def test_the_bounds_of_the_space_hold():
    # So narrow that the loss falls all the way to a bound.
    space = SearchSpace({"l2": Float(1.0, 1.02, shape=(SIZE,)), "scaling": "none"})
    greedy = Alternating(ESTIMATOR, optax.adam(0.3))
    told = LamarckianTrial(space, build, greedy, steps=4)(space.default())
    l2 = np.array(told.config["l2"])
    assert np.all((l2 >= 1.0) & (l2 <= 1.02))
    assert np.any((l2 == 1.0) | (l2 == 1.02))


def test_several_trainings_are_compiled_once():
    made, rng = trial(), np.random.default_rng(1)
    made(SPACE.default())
    counted = []

    def count(event, _duration, **_context):
        counted.append("backend_compile" in event)

    jax.monitoring.register_event_duration_secs_listener(count)
    for _ in range(3):
        made({**SPACE.sample(rng), "scaling": "none"})
    assert not any(counted)


def test_a_hyperparameter_that_is_not_named_keeps_its_value():
    def penalised(params, hparams, batch):
        x, y = batch
        w = params
        return jnp.mean((x @ w - y) ** 2) + w @ (hparams["a"]["l2"] * w) + hparams["l1"] * w @ w

    space = SearchSpace({"a": {"l2": Float(0.01, 1.0, shape=(SIZE,))}, "l1": Float(0.01, 1.0)})
    problem = BilevelProblem(penalised, outer)

    def make(config):
        return build({"scaling": "none"})._replace(problem=problem)

    config = space.default()
    adam = Alternating(ESTIMATOR, optax.adam(0.01))
    both = LamarckianTrial(space, make, adam, steps=3)(config)
    one = LamarckianTrial(space, make, adam, steps=3, tune=["a/l2"])(config)
    assert both.config["l1"] != config["l1"]
    assert one.config["l1"] == config["l1"]
    assert one.config["a"]["l2"] != config["a"]["l2"]
    assert list(one.gradient) == ["a/l2"]


@pytest.mark.slow
def test_continuous_domains_of_every_kind_are_tuned():
    space = SearchSpace(
        {
            "shares": Simplex(3),
            "spent": Simplex(3, total=2.0, at_most=True),
            "knots": Ordered(0.0, 10.0, 3),
            "rates": Ordered(0.1, 10.0, 3, log=True, decreasing=True),
            "log": Float(0.1, 10.0, log=True),
            "odds": Logit(0.1, 0.999),
            "group": {"matrix": Float(-3.0, 5.0, shape=(2, 2))},
        }
    )
    target = {
        "shares": [0.2, 0.7, 0.1],
        "spent": [0.2, 0.7, 0.1],
        "knots": [2.0, 3.0, 8.0],
        "rates": [5.0, 3.0, 0.5],
        "log": 2.0,
        "odds": 0.7,
        "group": {"matrix": [[1.0, 2.0], [0.0, -1.0]]},
    }
    goal = jax.tree.map(jnp.asarray, target, is_leaf=lambda x: isinstance(x, list))

    def distance(params, hparams):
        parts = jax.tree.map(lambda p, h: jnp.sum((p - h) ** 2), params, hparams)
        return sum(jax.tree.leaves(parts))

    problem = BilevelProblem(
        lambda params, hparams, batch: 0.5 * distance(params, hparams),
        lambda params, hparams, batch: distance(params, goal),
    )

    def make(config):
        return Training(problem, jax.tree.map(jnp.zeros_like, goal))

    # One gradient step solves the inner problem, and a product or two the linear system.
    exactly = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(1.0), steps=1), CG(max_steps=3), error_estimate=False
    )
    made = LamarckianTrial(space, make, Alternating(exactly, optax.adam(0.03)), steps=60)
    told = made(space.default())
    assert told.value < 0.1 * told.info["start_value"]
    off = jax.tree.map(
        lambda x, t: np.asarray(x) - np.asarray(t),
        told.config,
        target,
        is_leaf=lambda x: isinstance(x, list),
    )
    squares = sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(off))
    assert told.value == pytest.approx(squares, rel=1e-6)
    # The gradient says in unit coordinates what the true one says.
    ours = space.pull_back(told.config, told.gradient)
    true = space.pull_back(told.config, jax.tree.map(lambda leaf: 2 * leaf, off))
    np.testing.assert_allclose(ours, true, rtol=1e-5, atol=1e-6)


TREE = SearchSpace(
    {"kind": Choice({"tuned": {"l2": Float(1e-3, 1.0, shape=(SIZE,))}, "plain": {}})}
)


def test_a_configuration_with_nothing_to_tune_is_trained():
    def loss(params, hparams, batch):
        x, y = batch
        l2 = hparams["kind"]["tuned"]["l2"] if hparams else jnp.full(SIZE, 0.5)
        return jnp.mean((x @ params - y) ** 2) + params @ (l2 * params)

    problem = BilevelProblem(loss, outer)

    def make(config):
        return build({"scaling": "none"})._replace(problem=problem)

    made = LamarckianTrial(TREE, make, Alternating(ESTIMATOR, optax.adam(0.1)), steps=2)
    plain = made({"kind": {"kind": "plain"}})
    value, _ = exact({"scaling": "none", "l2": [0.5] * SIZE})
    assert plain.value == pytest.approx(float(value), rel=1e-6)
    assert plain.config is None
    assert plain.gradient is None
    assert list(made({"kind": {"kind": "tuned", "tuned": {"l2": [1.0] * SIZE}}}).gradient) == [
        "kind/tuned/l2"
    ]


def test_a_training_that_diverges_is_a_failed_observation():
    def broken(params, hparams, batch):
        return outer(params, hparams, batch) * jnp.nan

    problem = BilevelProblem(inner, broken)
    made = LamarckianTrial(
        SPACE,
        lambda config: build(config)._replace(problem=problem),
        Alternating(ESTIMATOR, optax.adam(0.1)),
    )
    result = minimize(made, SPACE, trials=2)
    assert [item.status for item in result.history] == ["failed", "failed"]


def test_bad_arguments():
    adam = Alternating(ESTIMATOR, optax.adam(0.1))
    with pytest.raises(ValueError, match="'steps': expected an integer >= 1, received 0"):
        trial(steps=0)
    with pytest.raises(ValueError, match=r"'tune': expected paths of .*received 'scaling'"):
        trial(tune=["scaling"])
    bounded = Alternating(ESTIMATOR, optax.adam(0.1), constraint=Box(0.0, 1.0))
    with pytest.raises(ValueError, match="'algorithm': expected one without a constraint"):
        LamarckianTrial(SPACE, build, bounded)
    with pytest.raises(ValueError, match="'scaling': expected one of"):
        LamarckianTrial(SPACE, build, adam)({**SPACE.default(), "scaling": "loud"})


# Searchers: every one of them learns from the tuned configuration.


BOWL = SearchSpace({"x": Float(0, 1, shape=(2,)), "n": Int(0, 9)})


def acquired(number, suggestion):
    """What a trial reports that has tuned `x` to its best for every `n`: 0.25."""
    config = {"x": [0.25, 0.25], "n": suggestion.config["n"]}
    return Observation(
        config,
        (config["n"] - 6) ** 2,
        {"x": [0.0, 0.0]},
        cost=1.0,
        number=number,
        note=suggestion.note,
    )


@pytest.mark.parametrize("name", ["hypergradient", "bayes", "evolution"])
def test_searchers_inherit_what_was_acquired(name):
    make = {
        "hypergradient": HypergradientSearcher,
        "bayes": BayesSearcher,
        "evolution": lambda space: EvolutionSearcher(space, population=4, contest=4),
    }[name]
    ledger = Ledger(make(BOWL))
    asked = []
    for number in range(14):
        suggestion = ledger.ask()
        asked.append(suggestion.config)
        ledger.tell(acquired(number, suggestion))
    assert all(item.config["x"] == [0.25, 0.25] for item in ledger.history)
    # The default has been tried although no observation is of it.
    assert asked.count(BOWL.default()) <= 1
    if name == "evolution":
        # Children start from the acquired values, whatever had been suggested.
        assert sum(config["x"] == [0.25, 0.25] for config in asked) >= 4
    assert ledger.best.config["n"] == 6


# The engines: the same trial, and the searcher learns from what it reported.


def check(history):
    for item in history:
        value, gradient = exact(item.config)
        assert item.value == pytest.approx(float(value), rel=1e-5)
        np.testing.assert_allclose(item.gradient["l2"], gradient, rtol=1e-3, atol=1e-6)
    assert {item.config["scaling"] for item in history} == {"none", "standard"}


def test_on_the_embedded_engine(tmp_path):
    result = minimize(trial(), SPACE, trials=5, state_path=tmp_path / "state.json")
    check(result.history)
    assert result.trials[0].info["start_value"] > result.history[0].value
    assert result.history[0].config != SPACE.default()
    again = Ledger(AutoSearcher(SPACE))
    again.restore(tmp_path / "state.json")
    assert again.history == result.history


def test_a_tuned_configuration_may_be_partial_on_the_embedded_engine():
    from strategies import report

    result = minimize(lambda config: report(1.0, config={"rate": 0.5}), SPACE, trials=1)
    assert result.history[0].config == {**SPACE.default(), "rate": 0.5}


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_on_optuna(tmp_path, store):
    import optuna

    from strategies.optuna import HypergradSampler, objective

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None if store == "memory" else f"sqlite:///{tmp_path}/study.db"
    sampler = HypergradSampler(searcher=Spied, space=SPACE)
    study = optuna.create_study(storage=storage, sampler=sampler)
    study.optimize(objective(trial(), SPACE), n_trials=5)
    assert sampler._searcher is not None
    check(sampler._searcher.shown)
    assert len(sampler._searcher.shown) == 4


@pytest.fixture
def _cluster():
    import ray

    from strategies.ray import worker_environment

    environment = worker_environment(2)
    environment["env_vars"]["JAX_ENABLE_X64"] = "1"
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env=environment,
    )
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_on_ray(tmp_path):
    from ray import tune

    from strategies.ray import HypergradSearch, trainable

    search = HypergradSearch(space=SPACE, metric="loss", mode="min")
    tuner = tune.Tuner(
        trainable(trial(steps=3), metric="loss"),
        tune_config=tune.TuneConfig(
            num_samples=2, max_concurrent_trials=1, reuse_actors=True, search_alg=search
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    found = results.get_best_result(metric="loss", mode="min").metrics
    assert found["hypergrad"]["config"]["scaling"] in ("none", "standard")
    assert found["hypergrad"]["info"]["start_value"] > found["loss"]
    tuned = [item.config for item in search.ledger.history]
    assert len(tuned) == 2
    check(search.ledger.history)
