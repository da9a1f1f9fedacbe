"""Spaces of scikit-learn, ConfigSpace, Ray and Optuna and ours, and what is refused."""

import subprocess
import sys
from dataclasses import replace

import ConfigSpace
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, ParameterGrid, ParameterSampler
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.svm import SVC

from strategies.optuna import (
    HypergradSampler,
    report,
    space_from_optuna,
    space_from_trials,
    space_to_optuna,
    suggest,
)
from strategies.space import (
    Categorical,
    Choice,
    Constant,
    Float,
    Int,
    Ordered,
    Ordinal,
    SearchSpace,
    Simplex,
)
from strategies.space.configspace import Forbidden, space_from_configspace, space_to_configspace
from strategies.space.sklearn import sklearn_params, space_from_sklearn, space_to_sklearn

optuna.logging.set_verbosity(optuna.logging.ERROR)

# Domains of every kind that the others can express, and spaces of them.

NAMES = st.text("abcxyz_0123456789", min_size=1, max_size=6)
SCALARS = st.one_of(
    st.integers(-9, 9), st.sampled_from(["a", "b", "relu", "tanh"]), st.floats(-5, 5, width=32)
)


@st.composite
def floats(draw, log=None, spread=False):
    log = draw(st.booleans()) if log is None else log
    low = draw(st.floats(1e-6, 1e3) if log else st.floats(-1e3, 1e3))
    width = draw(st.floats(1e-2, 1e3))
    domain = Float(low, low * (1 + width) if log else low + width, log=log)
    if spread:
        middle = domain.decode(np.array(draw(st.floats(0.1, 0.9))))
        domain = replace(domain, default=middle, spread=draw(st.floats(0.05, 2.0)))
    return domain


@st.composite
def integers(draw, log=False):
    low = draw(st.integers(1, 100) if log else st.integers(-100, 100))
    return Int(low, low + draw(st.integers(1, 300)), log=log)


@st.composite
def categoricals(draw, weighted=False):
    choices = draw(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=2, unique=True))
    if not weighted:
        return Categorical(choices)
    counts = st.lists(st.integers(1, 4), min_size=len(choices), max_size=len(choices))
    weights = draw(counts.filter(lambda w: max(w) > 1))
    return Categorical(choices, weights=weights)


ORDINALS = st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True).map(
    lambda values: Ordinal(sorted(values))
)
CONSTANTS = st.one_of(st.integers(-9, 9), st.sampled_from(["a", "b"])).map(Constant)


def spaces(*domains):
    """Spaces with nested groups, of which at least one hyperparameter can be tuned."""
    flat = st.dictionaries(NAMES, st.one_of(*domains), min_size=1, max_size=4)
    trees = st.builds(
        lambda top, inside: {**top, **({"group": inside} if "group" not in top else {})},
        flat,
        st.dictionaries(NAMES, st.one_of(*domains), min_size=1, max_size=2),
    )
    return trees.filter(
        lambda tree: any(d.tunable for d in tree.values() if not isinstance(d, dict))
    ).map(SearchSpace)


def close(a, b):
    """Equal domains, up to rounding of the bounds, whose ends others compute anew."""
    assert type(a) is type(b), (a, b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, float) and other is not None:
            assert other == pytest.approx(value, rel=1e-9, abs=1e-12), (name, a, b)
        elif name == "weights" and value is not None:
            np.testing.assert_allclose(np.array(other) / np.sum(other), value / np.sum(value))
        else:
            assert other == value, (name, a, b)


# scikit-learn


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        NAMES,
        st.one_of(
            floats(),
            floats(log=False, spread=True),
            integers(),
            categoricals(),
            categoricals(weighted=True),
            ORDINALS,
            CONSTANTS,
        ),
        min_size=1,
        max_size=5,
    ).filter(lambda tree: any(domain.tunable for domain in tree.values()))
)
def test_round_trip_through_scikit_learn(tree):
    space = SearchSpace(tree)
    again = space_from_sklearn(space_to_sklearn(space))
    assert list(again.domains) == list(space.domains)
    for path, domain in space.domains.items():
        close(domain, again.domains[path])


def test_scikit_learn_samples_what_we_allow():
    params = {
        "C": stats.loguniform(1e-3, 1e3),
        "degree": stats.randint(2, 5),
        "coef0": stats.uniform(-1, 2),
        "gamma": stats.truncnorm(-1, 3, loc=0.5, scale=0.1),
        "kernel": ["poly", "rbf", "rbf"],
        "tol": [1e-4, 1e-3, 1e-2],
        "shrinking": [True],
    }
    space = space_from_sklearn(params)
    assert space.domains["C"] == Float(1e-3, 1e3, log=True)
    assert space.domains["degree"] == Int(2, 4)
    assert space.domains["coef0"] == Float(-1, 1)
    assert space.domains["gamma"].default == 0.5
    assert space.domains["kernel"] == Categorical(["poly", "rbf"], weights=[1, 2])
    assert space.domains["tol"] == Ordinal([1e-4, 1e-3, 1e-2])
    assert space.domains["shrinking"] == Constant(True)
    degrees = set()
    for draw in ParameterSampler(params, 100, random_state=0):
        degrees.add(space.validate(draw)["degree"])
    assert degrees == {2, 3, 4}
    rng = np.random.default_rng(0)
    for _ in range(20):
        SVC().set_params(**sklearn_params(space.sample(rng)))


def test_a_list_of_grids_is_a_choice():
    grids = [
        {"kernel": ["linear"], "C": [1, 10, 100]},
        {"kernel": ["rbf"], "C": [1, 10], "gamma": stats.loguniform(1e-3, 1)},
    ]
    space = space_from_sklearn(grids)
    seen = set()
    for config in (space.sample(np.random.default_rng(seed)) for seed in range(40)):
        params = sklearn_params(config)
        SVC().set_params(**params)
        assert set(params) == {"kernel", "C"} | ({"gamma"} if params["kernel"] == "rbf" else set())
        seen.add((params["kernel"], params["C"]))
    assert seen == {("linear", 1), ("linear", 10), ("linear", 100), ("rbf", 1), ("rbf", 10)}
    back = space_to_sklearn(space)
    assert [list(grid) for grid in back] == [["kernel", "C"], ["kernel", "C", "gamma"]]
    assert space_from_sklearn(back) == space


def test_conditions_become_a_list_of_grids():
    space = SearchSpace(
        {
            "poly__degree": Int(1, 3),
            "model": Choice({"ridge": {"alpha": Categorical([0.1, 1.0, 0.5])}, "plain": {}}),
            "extra": Float(0, 1, when={"poly__degree": [2, 3]}),
        }
    )
    grids = space_to_sklearn(space)
    assert len(grids) == 6
    for grid in grids:
        assert ("extra" in grid) == (grid["poly__degree"] != [1])
        assert ("model__ridge__alpha" in grid) == (grid["model__kind"] == ["ridge"])
    assert (
        sum(len(ParameterGrid({k: v for k, v in g.items() if k != "extra"})) for g in grids) == 12
    )


def test_nested_names_reach_a_pipeline():
    space = SearchSpace(
        {"polynomialfeatures": {"degree": Ordinal([1, 2])}, "ridge": {"alpha": Ordinal([0.1, 1.0])}}
    )
    x, y = np.random.default_rng(0).random((30, 2)), np.arange(30.0)
    model = make_pipeline(PolynomialFeatures(), Ridge())
    found = GridSearchCV(model, space_to_sklearn(space), cv=2).fit(x, y)
    assert len(found.cv_results_["params"]) == 4
    model.set_params(**sklearn_params(space.default()))


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"a": stats.norm()}, "'a': expected uniform.*norm on"),
        ({"a": stats.truncnorm(1, 2)}, "'a': expected uniform"),
        ({"a": stats.loguniform(1, 2, loc=1)}, "'a': expected uniform"),
        ({"a": []}, "'a': expected at least one value"),
        ({"a": "rbf"}, "'a': expected a list of values or a distribution"),
        ({"a/b": [1, 2]}, "'a/b'.*without '/'"),
        ([{"a": [1, 2]}, {"b": 3}], "'1/b': expected a list of values"),
        ([], "'params': expected a dict, or a list of dicts"),
        ({"a": [1]}, "at least one hyperparameter to tune"),
    ],
)
def test_what_cannot_be_read_from_scikit_learn_is_named(params, named):
    with pytest.raises(ValueError, match=named):
        space_from_sklearn(params)


@pytest.mark.parametrize(
    "domain",
    [
        Float(0, 1, shape=(2,)),
        Float(1e-3, 1, log=True, step=0.01),
        Float(1e-3, 1, log=True, default=0.1, spread=0.2),
        Int(1, 100, log=True),
        Simplex(3),
        Ordered(0, 1, 2),
        Categorical(["a", "b"], weights=[0.5, 1.5]),
        Ordinal([1, 2], default=1, spread=0.5),
    ],
    ids=str,
)
def test_what_scikit_learn_cannot_express_is_named(domain):
    with pytest.raises(ValueError, match="'group/a': expected"):
        space_to_sklearn(SearchSpace({"group": {"a": domain}, "b": Float(0, 1)}))


def test_constraints_are_refused_by_scikit_learn():
    space = SearchSpace({"a": Float(0, 1)}, constraints={"half": lambda c: c["a"] < 0.5})
    with pytest.raises(ValueError, match="'constraints': expected none"):
        space_to_sklearn(space)


# ConfigSpace


@settings(max_examples=60, deadline=None)
@given(
    spaces(
        floats(),
        floats(log=False, spread=True),
        integers(),
        integers(log=True),
        categoricals(),
        categoricals(weighted=True),
        ORDINALS,
        CONSTANTS,
    )
)
def test_round_trip_through_configspace(space):
    again = space_from_configspace(space_to_configspace(space))
    assert set(again.domains) == set(space.domains)
    for path, domain in space.domains.items():
        # ConfigSpace has a default for everything.
        if not isinstance(domain, Constant):
            domain = replace(domain, default=domain.middle())
        close(domain, again.domains[path])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4), st.booleans())
def test_conditions_survive_configspace(seed, width, either):
    space = SearchSpace(
        {
            "n": Int(1, width),
            "model": Choice(
                {
                    "a": {"x": Float(0, 1), "deep": Choice({"p": {"w": Float(0, 1)}, "q": {}})},
                    "b": {"y": Int(0, 9, when={"n": [1, 2] if either else 2})},
                }
            ),
        }
    )
    made = space_to_configspace(space, seed=seed % 2**31)
    again = space_from_configspace(made)
    assert {p: dict(d.when) for p, d in again.domains.items()} == {
        p: dict(d.when) for p, d in space.domains.items()
    }
    for drawn in made.sample_configuration(5):
        assert space.flatten(dict(drawn)).keys() == dict(drawn).keys()


def configspace():
    made = ConfigSpace.ConfigurationSpace(seed=0)
    kind = ConfigSpace.CategoricalHyperparameter("kind", ["x", "y", "z"], weights=[1, 2, 3])
    rate = ConfigSpace.UniformFloatHyperparameter("opt/rate", 1e-3, 1.0, log=True)
    near = ConfigSpace.NormalFloatHyperparameter("near", mu=2, sigma=1, lower=0, upper=5)
    depth = ConfigSpace.UniformIntegerHyperparameter("depth", 1, 8)
    size = ConfigSpace.OrdinalHyperparameter("size", ["s", "m", "l"])
    width = ConfigSpace.UniformIntegerHyperparameter("width", 1, 8)
    made.add([kind, rate, near, depth, size, width, ConfigSpace.Constant("fixed", 3)])
    made.add(ConfigSpace.NotEqualsCondition(rate, kind, "z"))
    made.add(
        ConfigSpace.AndConjunction(
            ConfigSpace.GreaterThanCondition(near, size, "s"),
            ConfigSpace.GreaterThanCondition(near, depth, 3),
        )
    )
    made.add(
        [
            ConfigSpace.ForbiddenAndConjunction(
                ConfigSpace.ForbiddenEqualsClause(depth, 3),
                ConfigSpace.ForbiddenInClause(size, ["s", "l"]),
            ),
            ConfigSpace.ForbiddenLessThanRelation(depth, width),
            ConfigSpace.ForbiddenGreaterThanClause(width, 6),
        ]
    )
    return made


def test_conditions_and_forbidden_clauses_hold_here_as_there():
    made = configspace()
    space = space_from_configspace(made)
    assert space.domains["opt/rate"].when == {"kind": ("x", "y")}
    assert space.domains["near"].when == {"size": ("m", "l"), "depth": (4, 5, 6, 7, 8)}
    assert space.domains["near"].spread == pytest.approx(0.2)
    for drawn in made.sample_configuration(60):
        assert space.validate(dict(drawn))
    rng = np.random.default_rng(0)
    for _ in range(60):
        flat = space.flatten(space.sample(rng))
        ConfigSpace.Configuration(made, values=flat).check_valid_configuration()
    allowed = {"depth": 1, "width": 1, "size": "m", "kind": "z", "fixed": 3}
    for broken in (
        {"depth": 3, "width": 2, "size": "s"},
        {"depth": 4, "width": 5},
        {"width": 7, "depth": 8},
    ):
        config = {**allowed, **broken}
        if config["depth"] > 3 and config["size"] != "s":
            config["near"] = 2.0
        with pytest.raises(ValueError, match=r"constraint .*Forbidden"):
            space.validate(config)


def test_forbidden_clauses_round_trip():
    made = configspace()
    again = space_to_configspace(space_from_configspace(made))
    assert {str(c) for c in again.forbidden_clauses} == {str(c) for c in made.forbidden_clauses}
    assert dict(again) == {
        # A normal hyperparameter's weights are kept up to rounding; the rest exactly.
        name: again[name] if name == "near" else parameter
        for name, parameter in made.items()
    }
    space = space_from_configspace(made)
    assert space_from_configspace(again).constraints == space.constraints
    clause = next(iter(space.constraints.values()))
    assert isinstance(clause, Forbidden)


def test_conditions_on_one_parent_may_be_joined_by_or():
    made = ConfigSpace.ConfigurationSpace()
    a = ConfigSpace.CategoricalHyperparameter("a", ["x", "y", "z"])
    b, c = (
        ConfigSpace.UniformFloatHyperparameter("b", 0, 1),
        ConfigSpace.UniformIntegerHyperparameter("c", 0, 9),
    )
    made.add([a, b, c])
    made.add(
        ConfigSpace.OrConjunction(
            ConfigSpace.EqualsCondition(b, a, "x"), ConfigSpace.EqualsCondition(b, a, "z")
        )
    )
    assert space_from_configspace(made).domains["b"].when == {"a": ("x", "z")}
    other = ConfigSpace.ConfigurationSpace()
    other.add([a, b, c])
    other.add(
        ConfigSpace.OrConjunction(
            ConfigSpace.EqualsCondition(b, a, "x"), ConfigSpace.LessThanCondition(b, c, 3)
        )
    )
    with pytest.raises(ValueError, match="'b': expected conditions that must all hold"):
        space_from_configspace(other)


@pytest.mark.parametrize(
    "parameter",
    [
        ConfigSpace.BetaFloatHyperparameter("a", 2, 3, 0, 1),
        ConfigSpace.BetaIntegerHyperparameter("a", 2, 3, 0, 10),
        ConfigSpace.NormalIntegerHyperparameter("a", 5, 1, 0, 10),
        ConfigSpace.NormalFloatHyperparameter("a", 0.1, 0.5, 1e-3, 1, log=True),
    ],
    ids=lambda parameter: type(parameter).__name__,
)
def test_what_cannot_be_read_from_configspace_is_named(parameter):
    made = ConfigSpace.ConfigurationSpace()
    made.add([parameter, ConfigSpace.UniformFloatHyperparameter("b", 0, 1)])
    with pytest.raises(ValueError, match="'a': expected a constant, categorical"):
        space_from_configspace(made)


def test_a_condition_on_a_continuous_parent_is_named():
    made = ConfigSpace.ConfigurationSpace()
    a, b = (
        ConfigSpace.UniformFloatHyperparameter("a", 0, 1),
        ConfigSpace.UniformFloatHyperparameter("b", 0, 1),
    )
    made.add([a, b])
    made.add(ConfigSpace.GreaterThanCondition(b, a, 0.5))
    with pytest.raises(ValueError, match="'b': expected a condition on a discrete"):
        space_from_configspace(made)


@pytest.mark.parametrize(
    "domain",
    [
        Float(0, 1, shape=(2,)),
        Float(0, 1, step=0.1),
        Float(1e-3, 1, log=True, default=0.1, spread=0.2),
        Int(1, 99, step=2),
        Constant([1, 2]),
        Simplex(3),
    ],
    ids=str,
)
def test_what_configspace_cannot_express_is_named(domain):
    with pytest.raises(ValueError, match="'a': expected a domain that ConfigSpace can express"):
        space_to_configspace(SearchSpace({"a": domain, "b": Float(0, 1)}))
    plain = SearchSpace({"b": Float(0, 1)}, constraints={"half": lambda c: c["b"] < 0.5})
    with pytest.raises(ValueError, match="'constraint half': expected a forbidden clause"):
        space_to_configspace(plain)


def test_without_configspace_the_line_to_install_it_is_given():
    code = (
        "import sys; sys.modules['ConfigSpace'] = None\n"
        "from strategies.space.configspace import space_from_configspace\n"
        "space_from_configspace(None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'needs ConfigSpace: pip install "hypergrad-engine[configspace]"' in run.stderr


# Ray and Optuna


@settings(max_examples=60, deadline=None)
@given(
    spaces(
        floats(),
        integers(),
        integers(log=True),
        categoricals(),
        categoricals(weighted=True),
        CONSTANTS,
        st.integers(1, 3).map(lambda n: Float(0, 1, shape=(n, 2))),
    )
)
def test_round_trip_through_ray(space):
    from strategies.ray import space_from_ray, space_to_ray

    weighted = {p for p, d in space.domains.items() if getattr(d, "weights", None) is not None}
    if weighted:
        with pytest.raises(ValueError, match="has no weights"):
            space_to_ray(space)
        return
    assert space_from_ray(space_to_ray(space)) == space


@settings(max_examples=60, deadline=None)
@given(
    spaces(
        floats(),
        integers(),
        integers(log=True),
        categoricals(),
        st.integers(1, 3).map(lambda n: Float(0, 1, shape=(n, 2))),
    )
)
def test_round_trip_through_optuna(space):
    again = space_from_optuna(space_to_optuna(space))
    assert again.domains == space.domains


TREE = SearchSpace(
    {
        "x": Float(1e-3, 1, log=True),
        "n": Int(1, 3),
        "model": Choice(
            {
                "svm": {"C": Float(0.1, 10, log=True)},
                "mlp": {
                    "depth": Int(1, 2),
                    "width": Int(8, 64, log=True, when={"model/mlp/depth": 2}),
                },
            }
        ),
    }
)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_a_define_by_run_history_gives_the_space_and_its_conditions(seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    study.optimize(lambda trial: float(suggest(trial, TREE)["x"]), n_trials=40)
    space = space_from_trials(study.trials)
    assert {p: dict(d.when) for p, d in space.domains.items()} == {
        p: {parent: tuple(v) for parent, v in d.when.items()} for p, d in TREE.domains.items()
    }
    for trial in study.trials:
        assert space.validate(trial.params)


def test_a_history_is_searched_on():
    def objective(trial):
        kind = trial.suggest_categorical("kind", ["a", "b"])
        if kind == "a":
            return 1 + trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1)
        return report(trial, (y - 0.4) ** 2, {"y": 2 * (y - 0.4)})

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=8)
    study.sampler = HypergradSampler(space=space_from_trials(study.trials), seed=0)
    study.optimize(objective, n_trials=6)
    assert study.best_value < 1e-6


def test_histories_that_no_space_explains_are_named():
    def moving(trial):
        return trial.suggest_float("x", 0, 1 + trial.number)

    def whimsical(trial):
        trial.suggest_int("n", 0, 3)
        return trial.suggest_float("x", 0, 1) if trial.number % 2 else 0.0

    for objective, message in [
        (moving, "'x': expected one range in all trials"),
        (whimsical, "'x': expected a parameter that all trials have"),
    ]:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=20)
        with pytest.raises(ValueError, match=message):
            space_from_trials(study.trials)
    with pytest.raises(ValueError, match="at least one complete trial"):
        space_from_trials([])
