"""Constraints, several metrics, and an end, on Ray Tune: by hand, without a cluster."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
from ray import tune
from ray.tune.utils.util import flatten_dict

from strategies import (
    BayesSearcher,
    Int,
    Ledger,
    MultiObjectiveSearcher,
    Observation,
    RandomSearcher,
    SearchSpace,
    Stop,
)
from strategies.importance import importance
from strategies.ray import HypergradSearch, SearchStopper, result, space_from_ray
from strategies.searched import searched

PARAMS = {"x": tune.uniform(-5.0, 5.0)}


def search(**options):
    made = HypergradSearch(seed=0, **options)
    made.set_search_properties(None, None, PARAMS)
    return made


def complete(made, name, row):
    made.on_trial_complete(name, flatten_dict({"training_iteration": 1, **row}))


def test_metrics_by_name_and_by_bound():
    made = search(metric="loss", mode="max", constraints={"latency": 100.0})
    for i, latency in enumerate([90.0, 130.0, math.nan, None]):
        made.suggest(f"t{i}")
        row = {"loss": float(i)} | ({} if latency is None else {"latency": latency})
        missing = pytest.warns(UserWarning, match="expected a metric 'latency' in every result")
        with missing if latency is None else contextlib.nullcontext():
            complete(made, f"t{i}", row)
    history = made.ledger.history
    assert [item.violation for item in history] == [0.0, 30.0, math.inf, math.inf]
    assert made.ledger.best.number == 0
    assert search(metric="a", mode="min", constraints=["b"])._bounds == {"b": 0.0}
    for wrong in ("b", {"b": math.nan}, [1]):
        with pytest.raises(ValueError, match="'constraints': expected names"):
            HypergradSearch(constraints=wrong)


def test_a_report_with_constraints():
    made = search(metric="loss", mode="min")
    config = made.suggest("t")
    slopes = {"a/b": {"x": 2.0}, "c": {"y": 1.0}}
    row = result(
        1.0, metric="loss", constraints={"a/b": config["x"], "c": -1.0}, constraint_gradients=slopes
    )
    complete(made, "t", row)
    told = made.ledger.history[0]
    assert told.constraints == {"a/b": config["x"], "c": -1.0}
    # What is no hyperparameter is left out, with a warning.
    assert told.constraint_gradients == {"a/b": {"x": 2.0}}


def test_several_metrics(tmp_path):
    made = search(metric=["a", "b"], mode=["min", "max"])
    assert isinstance(made.ledger.searcher, MultiObjectiveSearcher)
    config = made.suggest("t0")
    values, slopes = [1.0, 2.0], [{"x": 3.0}, {"x": 4.0}]
    complete(made, "t0", result(values=values, gradients=slopes, metric=["a", "b"]))
    made.suggest("t1")
    complete(made, "t1", {"a": 1.0})
    told, failed = made.ledger.history
    assert (told.values, told.gradients) == ((1.0, -2.0), ({"x": 3.0}, {"x": -4.0}))
    assert failed.status == "failed"
    assert told.config == config
    made.suggest("t2")
    made.on_trial_result("t2", {"a": 5.0, "b": 6.0, "training_iteration": 1})
    made.save(str(tmp_path / "state"))
    fresh = search(metric=["a", "b"], mode=["min", "max"])
    fresh.restore(str(tmp_path / "state"))
    assert fresh.ledger.history == made.ledger.history
    assert fresh._live["t2"].values == [5.0, 6.0]
    with pytest.raises(ValueError, match="'metric': expected 2 names"):
        result(values=[1.0, 2.0], metric="a")
    with pytest.raises(ValueError, match="'mode': expected one for each of 2 metrics"):
        HypergradSearch(metric=["a", "b"], mode=["min"])


def test_a_search_ends():
    made = search(metric="loss", mode="min", searcher=RandomSearcher)
    stopper = SearchStopper(made, Stop(patience=2))
    assert not stopper("t", {})
    for i, loss in enumerate([1.0, 0.5, 0.6, 0.7]):
        assert not stopper.stop_all()
        made.suggest(f"t{i}")
        complete(made, f"t{i}", {"loss": loss})
    assert stopper.stop_all()
    assert stopper.reason == "2 trials without a better one"
    with pytest.raises(ValueError, match="'stop': expected a Stop"):
        SearchStopper(made, 3)


def test_only_the_task_at_hand_ends_a_search():
    """Trials of earlier tasks are no patience lost in this one."""
    sizes = SearchSpace({"n": Int(1, 9)})
    space = space_from_ray(PARAMS)
    ledger = Ledger(BayesSearcher(space, context=sizes))
    for n, loss in ((1, 0.0), (1, 1.0), (1, 2.0), (2, 3.0)):
        asked = ledger.ask({"n": n})
        ledger.tell(Observation(asked.config, loss, number=asked.number, note=asked.note, cost=1.0))
    made = HypergradSearch(ledger, context={"n": 2}, metric="loss", mode="min")
    assert [item.value for item in made.results()] == [3.0]
    assert made.costs() == 1.0
    assert not SearchStopper(made, Stop(patience=1)).stop_all()


def test_what_mattered_in_a_grid_of_ray():
    """Of any search algorithm: values, and gradients where trials have reported them."""
    space = {"x": tune.uniform(-5.0, 5.0), "idle": tune.uniform(0.0, 1.0)}
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        config = {"x": float(rng.uniform(-5, 5)), "idle": float(rng.uniform())}
        row = {"loss": config["x"] ** 2, "training_iteration": 1, "config": config}
        rows.append(SimpleNamespace(metrics=row, config=config, error=None))
    rows[3].metrics["loss"] = math.nan
    rows[4].config = rows[4].metrics["config"] = {"x": 70.0, "idle": 0.5}
    grid = Grid(rows, default_metric="loss", default_mode="min")
    seen = searched(grid, space)
    assert len(seen.complete) == 18
    found = importance(grid, space)
    assert found["x"].share > 0.9
    assert found["idle"].share < 0.05
    with pytest.raises(ValueError, match="'space': expected that of the grid"):
        importance(grid)
    with pytest.raises(ValueError, match="'metric', 'mode': expected both"):
        importance(Grid(rows, default_metric=None, default_mode=None), space)


class Grid:
    """What is needed of Ray's `ResultGrid`, which only an experiment can make."""

    num_errors = 0

    def __init__(self, rows, **defaults):
        self._rows, self._experiment_analysis = rows, SimpleNamespace(**defaults)

    def __iter__(self):
        return iter(self._rows)

    def get_best_result(self):
        raise NotImplementedError
