"""Outcome constraints, from the report to the suggestion."""

import json
import math

import numpy as np
import pytest

from strategies import (
    AutoSearcher,
    BayesSearcher,
    EvolutionSearcher,
    Float,
    HypergradientSearcher,
    Ledger,
    Observation,
    RandomSearcher,
    Report,
    SearchSpace,
    report,
)
from strategies.feasibility import feasible_first
from strategies.intake import Intake
from strategies.local import minimize
from strategies.space import Categorical
from strategies.surrogates.derivative_rows import derivative_rows
from strategies.surrogates.feasibility import feasibility
from strategies.surrogates.gaussian_process import Prior
from strategies.surrogates.geometry import geometry
from strategies.surrogates.lagrangian import has_all_slopes, lagrangian

SPACE = SearchSpace({"x": Float(-5.0, 5.0), "y": Float(-5.0, 5.0)})


def bowl(config, *, slopes=True, wall_slope=True):
    """The least of x² + y² with x + y ≥ 1 is a half, at (1/2, 1/2)."""
    x, y = config["x"], config["y"]
    return report(
        x * x + y * y,
        {"x": 2 * x, "y": 2 * y} if slopes else None,
        constraints={"wall": 1 - x - y},
        constraint_gradients={"wall": {"x": -1.0, "y": -1.0}} if wall_slope else None,
    )


def observation(value, constraints, x=0.0, **fields):
    return Observation({"x": x, "y": 0.0}, value, constraints=constraints, **fields)


def test_a_report_names_its_constraints():
    given = report(
        1.0, constraints=[np.float32(2.0), None], constraint_gradients=[{"x": 1.0}, None]
    )
    assert given.constraints["0"] == 2.0
    assert math.isnan(given.constraints["1"])
    assert given.constraint_gradients == {"0": {"x": 1.0}}
    assert Report.from_json(json.loads(json.dumps(given.to_json()))).constraints["0"] == 2.0
    with pytest.raises(ValueError, match=r"'constraint_gradients': expected one of \['a'\]"):
        report(1.0, constraints={"a": 1.0}, constraint_gradients={"b": {}})
    with pytest.raises(ValueError, match="'constraints': expected a list or a mapping"):
        report(1.0, constraints=3.0)
    with pytest.raises(ValueError, match=r"'constraints\[a\]': expected a number"):
        report(1.0, constraints={"a": "far"})


@pytest.mark.parametrize(
    ("constraints", "violation"),
    [({}, 0.0), ({"a": 0.0, "b": -1.0}, 0.0), ({"a": 2.0, "b": 1.0, "c": -5.0}, 3.0)],
)
def test_violation_is_the_sum_of_what_is_above_zero(constraints, violation):
    item = observation(1.0, constraints)
    assert (item.violation, item.feasible) == (violation, violation == 0)


def test_nan_is_violated_by_nobody_knows_how_much():
    assert observation(1.0, {"a": math.nan}).violation == math.inf
    assert observation(1.0, {"a": -math.inf}).feasible


def test_feasible_before_infeasible():
    history = [
        observation(9.0, {"a": -1.0}),
        observation(0.0, {"a": 2.0}, gradient={"x": 1.0}),
        observation(-7.0, {"a": 1.0}),
        observation(-8.0, {"a": math.nan}),
        observation(3.0, {}),
        observation(None, {"a": 1.0}),
    ]
    ranked = feasible_first(history)
    assert [item.value for item in ranked] == [9.0, 11.0, 10.0, 13.0, 3.0, None]
    assert ranked[1].gradient is None
    assert not any(item.constraints for item in ranked)
    assert feasible_first(history[4:5]) == history[4:5]


@pytest.mark.parametrize("kind", [EvolutionSearcher, RandomSearcher])
def test_who_knows_values_only_sees_a_ranking(kind):
    seen = kind(SPACE).seen([observation(0.0, {"a": 1.0}), observation(5.0, {"a": -1.0})])
    assert [item.value for item in seen] == [6.0, 5.0]


def test_the_incumbent_is_feasible_if_one_is():
    ledger = Ledger(RandomSearcher(SPACE))
    ledger.tell(observation(0.0, {"a": 2.0}, 0.0))
    ledger.tell(observation(3.0, {"a": 1.0}, 1.0))
    assert ledger.best.value == 3.0  # the least violation
    ledger.tell(observation(7.0, {"a": 0.0}, 2.0))
    ledger.tell(observation(8.0, {"a": -1.0}, 3.0))
    assert ledger.best.value == 7.0


@pytest.mark.parametrize("strict", [True, False])
def test_bad_constraints(strict):
    intake = Intake(SPACE, strict=strict)
    config = {"x": 0.0, "y": 0.0}
    assert intake(config, Report(1.0, constraints={"a": math.nan})).violation == math.inf
    bad = Report(1.0, constraints={"a": "far", "b": 1.0})
    unknown = Report(1.0, constraints={"a": 1.0}, constraint_gradients={"b": {"x": 1.0}})
    key = Report(1.0, constraints={"a": 1.0}, constraint_gradients={"a": {"z": 1.0, "x": 2.0}})
    if strict:
        with pytest.raises(ValueError, match=r"'constraints\[a\]': expected a number"):
            intake(config, bad)
        with pytest.raises(ValueError, match=r"expected one of \['a'\], received 'b'"):
            intake(config, unknown)
        with pytest.raises(ValueError, match="'z'"):
            intake(config, key)
        return
    found = intake(config, bad).constraints
    assert math.isnan(found["a"])
    assert found["b"] == 1.0
    assert intake(config, unknown).constraint_gradients == {}
    assert intake(config, key).constraint_gradients == {"a": {"x": 2.0}}


def test_states_keep_constraints_and_older_ones_have_none(tmp_path):
    ledger = Ledger(RandomSearcher(SPACE))
    for constraints in ({"a": math.nan, "b": -math.inf}, {"a": 1.5}, {}):
        suggestion = ledger.ask()
        made = Report(1.0, constraints=constraints, constraint_gradients={"a": {"x": 2.0}})
        if constraints.get("a") != 1.5:
            made = Report(1.0, constraints=constraints)
        ledger.record(ledger.intake(suggestion.point, made, number=suggestion.number))
    ledger.save(tmp_path / "state.json")
    fresh = Ledger(RandomSearcher(SPACE))
    fresh.restore(tmp_path / "state.json")
    assert repr(fresh.history) == repr(ledger.history)
    assert fresh.history[1].constraint_slopes["a"] == pytest.approx([20.0, np.nan], nan_ok=True)
    # What has no constraints is written as before.
    assert "constraints" not in ledger.state_dict()["history"][2]


def test_the_probability_and_its_slope():
    rng = np.random.default_rng(0)
    intake, (groups, stretch) = Intake(SPACE), geometry(SPACE)
    points = [{"x": float(x), "y": float(y)} for x, y in rng.uniform(-5, 5, (25, 2))]
    history = [intake(point, bowl(point)) for point in points]
    found = feasibility(history, stretch, groups, Prior(), rng, derivative_rows)
    inside, outside = SPACE.point({"x": 3.0, "y": 3.0}), SPACE.point({"x": -3.0, "y": -3.0})
    wall = SPACE.point({"x": 0.7, "y": 0.3})
    log = found.log_probability(np.stack([inside.unit, outside.unit, wall.unit]))
    assert np.exp(log[0]) > 0.99
    assert np.exp(log[1]) < 0.01
    assert found.found
    at, coordinates, step = np.array([0.52, 0.57]), np.array([0, 1]), 1e-6
    value, slope = found.log_probability_slopes(at, coordinates)
    assert value == pytest.approx(found.log_probability(at[None])[0])
    for i in range(2):
        up, down = at + step * np.eye(2)[i], at - step * np.eye(2)[i]
        numeric = (found.log_probability(up[None]) - found.log_probability(down[None])) / (2 * step)
        assert slope[i] == pytest.approx(numeric[0], rel=1e-4, abs=1e-6)
    nowhere = [item for item in history if not item.feasible]
    assert not feasibility(nowhere, stretch, groups, Prior(), rng).found
    assert feasibility([observation(1.0, {})], stretch, groups, Prior(), rng) is None


def test_the_first_violation_of_a_constraint_that_few_trials_have_is_not_believed_everywhere():
    """Each branch of a program may have limits of its own; each trial here has one of two."""

    def two_limits(config):
        x, y = config["x"], config["y"]
        limits = {"above": x} if y > 0 else {"below": y}
        return report((x - 1) ** 2 + (y + 2) ** 2, constraints=limits)

    for kind in (BayesSearcher, AutoSearcher):
        found = minimize(two_limits, SPACE, searcher=kind(SPACE, seed=0), trials=20)
        assert found.best_value < 0.05
    groups, stretch = geometry(SPACE)
    intake = Intake(SPACE)
    fine, bad = ({"x": x, "y": 0.0} for x in (-4.0, 4.0))
    history = [
        intake(fine, report(1.0, constraints={"below": -1.0})),
        intake(bad, report(0.0, constraints={"above": 2.0})),
    ]
    limits = feasibility(history, stretch, groups, Prior(), np.random.default_rng(0))
    near, far = limits.log_probability(np.stack([SPACE.point(c).unit for c in (bad, fine)]))
    assert near < np.log(0.1) < far


def test_the_lagrangian_is_stationary_at_the_constrained_minimum():
    intake = Intake(SPACE)
    points = [(0.5, 0.5), (0.5, 0.6), (0.4, 0.5), (2.0, 1.0), (-1.0, -1.0), (0.0, 3.0)]
    history = [intake({"x": x, "y": y}, bowl({"x": x, "y": y})) for x, y in points]
    folded = lagrangian(history)
    assert not any(item.constraints for item in folded)
    assert np.argmin([item.value for item in folded]) == 0
    # Its multiplier is 1; the margin is what is left.
    assert np.abs(folded[0].slope).max() < 0.05 * np.abs(history[0].slope).max()
    # Values and gradients belong together.
    x, y, step = -0.3, 0.4, 1e-5
    ends = [intake({"x": x + s, "y": y}, bowl({"x": x + s, "y": y})) for s in (-step, step, 0.0)]
    low, high, middle = lagrangian([*history, *ends])[-3:]
    numeric = (high.value - low.value) / (2 * step)
    assert middle.gradient["x"] == pytest.approx(numeric, rel=1e-5)


def test_a_violated_constraint_without_gradient_is_modelled():
    intake = Intake(SPACE)
    far = {"x": -1.0, "y": -1.0}
    assert has_all_slopes([intake(far, bowl(far))])
    assert not has_all_slopes([intake(far, bowl(far, wall_slope=False))])
    searcher = HypergradientSearcher(SPACE)
    result = minimize(
        lambda config: bowl(config, wall_slope=False), SPACE, trials=8, searcher=searcher
    )
    assert {trial.note["move"] for trial in result.trials} <= {"start", "model"}


@pytest.mark.parametrize(
    ("kind", "options", "bound", "feasible"),
    [
        (HypergradientSearcher, {}, 0.503, 11),
        (AutoSearcher, {}, 0.503, 11),
        (BayesSearcher, {"slopes": False, "wall_slope": False}, 0.6, 6),
    ],
)
def test_the_constrained_minimum_is_found(kind, options, bound, feasible):
    """With the slopes of both, most trials are feasible, too."""
    trials = 20
    result = minimize(
        lambda config: bowl(config, **options), SPACE, trials=trials, searcher=kind(SPACE, seed=0)
    )
    assert 0.5 <= result.best_value < bound
    assert sum(item.feasible for item in result.history) >= feasible
    assert result.ledger.best.feasible


def test_two_constraints_of_an_array_and_a_choice():
    space = SearchSpace(
        {"w": Float(-2.0, 2.0, shape=(3,)), "kind": Categorical(["plain", "shifted"])}
    )

    def task(config):
        w, shift = np.array(config["w"]), 1.0 if config["kind"] == "shifted" else 0.0
        return report(
            float(np.sum((w - 1.0) ** 2) + shift),
            {"w": 2 * (w - 1.0)},
            constraints={"ball": float(w @ w - 1.0), "first": float(w[0] - 0.2)},
            constraint_gradients={"ball": {"w": 2 * w}, "first": {"w": [1.0, 0.0, 0.0]}},
        )

    result = minimize(task, space, trials=30, searcher=HypergradientSearcher(space, seed=0))
    # On both bounds: the rest of the ball is shared by the other two.
    other = math.sqrt((1.0 - 0.2**2) / 2)
    assert result.best_value == pytest.approx(0.64 + 2 * (1 - other) ** 2, abs=0.02)
    assert result.best_config["kind"] == "plain"


def test_the_table_has_constraints():
    result = minimize(bowl, SPACE, trials=2)
    row = result.table()[0]
    assert row["constraints[wall]"] == result.history[0].constraints["wall"]
    assert result.trials[0].constraints == result.history[0].constraints
    assert np.isnan(result.best_so_far()[0]) == (not result.history[0].feasible)
