"""`HypergradSearch` under every order of calls that Ray makes, without a cluster.

Real clusters: `test_ray_cluster.py` (experiments), `test_ray_kills.py` (killed drivers),
`test_ray_failures.py` (all else that fails), `test_ray_nodes.py`, `test_ray_stock.py`.
"""

import copy
import functools
import json
import logging
import math
import os
import re
from types import SimpleNamespace

import cloudpickle
import jax.numpy as jnp
import numpy as np
import pytest
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Repeater, SearchGenerator

from strategies.observation import Suggestion
from strategies.ray import MAX_NUMBERS, HypergradSearch, result, space_from_ray
from strategies.ray.grid import seen_by
from strategies.searchers import RandomSearcher, Searcher, SobolSearcher
from strategies.space import Float, SearchSpace

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "n": {"depth": tune.randint(1, 5)}}


class Descent(Searcher):
    """A searcher that needs what it is told: a step from the best point along its gradient."""

    def _propose(self, number, history, pending):
        known = [o for o in history if o.status == "complete" and o.gradient]
        if not known:
            return Suggestion(number, self.space.sample(self.rng(number)), {"origin": "start"})
        best = min(known, key=lambda o: o.value)
        unit = self.space.encode(best.config)
        step = np.nan_to_num(self.space.pull_back(best.config, best.gradient))
        return Suggestion(number, self.space.decode(unit - 0.1 * np.sign(step)), {"origin": "step"})


def flat(row, **more):
    """A result dict as searchers see it: flattened with `/`."""
    from ray._private.dict import flatten_dict

    return flatten_dict({**row, "training_iteration": 1, "time_total_s": 2.0, **more})


def started(searcher=RandomSearcher, param_space=SPACE, mode="min", **options):
    search = HypergradSearch(searcher, **options)
    assert search.set_search_properties("loss", mode, copy.deepcopy(param_space), num_samples=3)
    return search


def test_value_gradient_cost_and_resource_reach_the_searcher():
    search = started()
    config = search.suggest("a")
    search.on_trial_result("a", flat({"loss": 9.0}))
    row = result(jnp.float32(0.5), {"lr": jnp.asarray(2.0)}, metric="loss", gradient_error=0.1)
    search.on_trial_complete("a", flat(row, training_iteration=7))
    (seen,) = search.ledger.history
    assert seen.config["lr"] == pytest.approx(config["lr"])
    assert (seen.value, seen.cost, seen.resource, seen.status) == (0.5, 2.0, 7.0, "complete")
    assert seen.gradient == {"lr": 2.0}
    assert seen.gradient_error == 0.1


def test_maximising_flips_value_and_gradient():
    search = started(mode="max")
    search.suggest("a")
    search.on_trial_complete("a", flat(result(0.5, {"lr": 2.0}, metric="loss")))
    (seen,) = search.ledger.history
    assert seen.value == -0.5
    assert seen.gradient == {"lr": -2.0}


def test_gradients_of_arrays_lists_and_options():
    param_space = {
        "l2": [tune.loguniform(1e-3, 1)] * 3,
        "row": [tune.uniform(0, 1), 5, tune.uniform(0, 1)],
        "opt": tune.choice([{"lr": tune.uniform(0, 1)}, {"lr": tune.uniform(1, 2)}]),
    }
    search = started(param_space=param_space)
    for i in range(8):
        config = search.suggest(f"{i}")
        gradient = {"l2": np.arange(3.0), "row": [None, None, 4.0], "opt": {"lr": 6.0}}
        search.on_trial_complete(f"{i}", flat(result(1.0, gradient, metric="loss")))
        seen = search.ledger.history[i]
        option = str(int(config["opt"]["lr"] >= 1))
        assert seen.gradient == {"l2": [0.0, 1.0, 2.0], "row/2": 4.0, f"opt/{option}/lr": 6.0}
    assert {o.config["opt"]["kind"] for o in search.ledger.history} == {"0", "1"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "oops", None, [1.0, 2.0]])
def test_values_that_are_no_numbers_are_failures(value):
    search = started()
    search.suggest("a")
    search.on_trial_result("a", flat({"loss": value}))
    search.on_trial_complete("a", flat({"loss": value, "hypergrad": {"gradient": {"lr": 1.0}}}))
    (seen,) = search.ledger.history
    assert seen.status == "failed"
    assert seen.value is None
    assert seen.gradient is None


def test_a_metric_that_never_came_is_a_failure_and_one_that_came_once_counts():
    search = started()
    search.suggest("a")
    search.on_trial_complete("a", flat({"other": 1.0}))
    assert search.ledger.history[0].status == "failed"
    search.suggest("b")
    search.on_trial_result("b", flat({"loss": 3.0}))
    search.on_trial_complete("b", flat({"other": 1.0}))
    assert search.ledger.history[1].value == 3.0


def test_trial_that_raised_is_a_failure():
    search = started()
    search.suggest("a")
    search.on_trial_complete("a", error=True)
    assert search.ledger.history[0].status == "failed"


def test_complete_without_result_uses_the_last_report():
    """Hyperband ends its paused trials like that, the best ones among them."""
    search = started()
    search.suggest("a")
    search.on_trial_result("a", flat(result(0.7, {"lr": 1.0}, metric="loss"), training_iteration=3))
    search.on_trial_complete("a", result=None, error=False)
    (seen,) = search.ledger.history
    assert (seen.value, seen.resource, seen.gradient) == (0.7, 3.0, {"lr": 1.0})


def test_trial_that_never_ran_is_forgotten():
    search = started()
    search.suggest("a")
    search.on_trial_complete("a")
    assert search.ledger.history == []
    assert search.ledger.pending == []


def test_unknown_repeated_and_late_calls_change_nothing():
    search = started()
    search.suggest("a")
    search.on_trial_result("who", flat({"loss": 1.0}))
    search.on_trial_complete("who", None)
    search.on_trial_complete("a", flat({"loss": 1.0}))
    search.on_trial_complete("a", flat({"loss": 5.0}))
    search.on_trial_complete("a", error=True)
    search.on_trial_result("a", flat({"loss": 7.0}))
    assert [o.value for o in search.ledger.history] == [1.0]


def test_restarted_trial_with_a_new_id_is_adopted_once():
    """`restart_errored` brings results of ids that the searcher never issued."""
    search = started()
    row = flat({"loss": 1.5, "config": {"lr": 0.01, "n": {"depth": 2}}})
    search.on_trial_complete("new", row)
    search.on_trial_complete("new", row)
    (seen,) = search.ledger.history
    assert (seen.value, seen.number) == (1.5, None)
    assert seen.config == {"lr": 0.01, "n": {"depth": 2}}


@pytest.mark.parametrize(
    ("gradient", "kept", "named"),
    [
        ({"lr": [1.0, 2.0]}, None, "shape"),
        ({"lr": 1.0, "nowhere": 2.0}, {"lr": 1.0}, "nowhere"),
        ({"lr": 1.0, "n": {"depth": 3.0}}, {"lr": 1.0}, "n/depth"),
        ({"lr": math.nan}, None, None),
    ],
)
def test_gradient_that_does_not_fit_is_dropped_and_named(gradient, kept, named, caplog):
    search = started()
    search.suggest("a")
    with caplog.at_level(logging.WARNING):
        search.on_trial_complete("a", flat(result(1.0, gradient, metric="loss")))
    (seen,) = search.ledger.history
    assert seen.value == 1.0
    assert seen.gradient == kept
    assert (named in caplog.text) if named else not caplog.records


def test_tuned_configuration_replaces_the_suggested_one():
    search = started()
    config = search.suggest("a")
    search.on_trial_complete(
        "a", flat(result(1.0, {"lr": 3.0}, metric="loss", config={"lr": 0.05}))
    )
    search.suggest("b")
    search.on_trial_complete("b", flat(result(1.0, metric="loss", config={"lr": 50.0})))
    tuned, refused = search.ledger.history
    assert tuned.config == {"lr": 0.05, "n": config["n"]}
    assert refused.config["lr"] <= 0.1


def test_report_of_a_hypergradient_object_and_its_limit():
    class Info:
        __dataclass_fields__ = ("inner_residual", "error")
        inner_residual = jnp.float32(0.25)
        error = jnp.float32(0.5)

    class Given:
        value, grad, info = jnp.float32(1.5), {"lr": jnp.float32(2.0)}, Info()

    row = result(Given(), metric="loss", metrics={"accuracy": 0.9})
    assert row["loss"] == 1.5
    assert row["accuracy"] == 0.9
    assert row["hypergrad"]["gradient"] == {"lr": 2.0}
    assert row["hypergrad"]["gradient_error"] == 0.5
    assert row["hypergrad"]["info"]["inner_residual"] == 0.25
    assert json.dumps(row)
    with pytest.raises(ValueError, match=f"at most {MAX_NUMBERS}"):
        result(1.0, {"lr": np.zeros(MAX_NUMBERS + 1)})
    assert result(None, metric="loss")["loss"] != result(None, metric="loss")["loss"]


def test_concurrency_counts_running_trials_only():
    search = started(max_concurrent=2)
    assert search.suggest("a")
    assert search.suggest("b")
    assert search.suggest("c") is None
    search.on_pause("a")
    assert search.suggest("c")
    search.on_unpause("a")
    assert search.suggest("d") is None
    search.on_trial_complete("b", flat({"loss": 1.0}))
    assert search.suggest("d") is None
    search.on_trial_complete("c", error=True)
    assert search.suggest("d")


def test_concurrency_limiter_hands_its_limit_over():
    search = started()
    limited = ConcurrencyLimiter(search, max_concurrent=1)
    assert limited.suggest("a")
    assert limited.suggest("b") is None
    search.on_pause("a")
    assert limited.suggest("b")


def test_repeater_passes_averages():
    search = started()
    repeated = Repeater(search, repeat=2)
    first, second = repeated.suggest("a"), repeated.suggest("b")
    assert first["lr"] == second["lr"]
    repeated.on_trial_complete("a", flat({"loss": 1.0}))
    repeated.on_trial_complete("b", flat({"loss": 3.0}))
    assert [o.value for o in search.ledger.history] == [2.0]


def test_points_to_evaluate_nested_flat_and_partial():
    points = [{"lr": 0.01, "n": {"depth": 2}}, {"lr": 0.02, "n/depth": 3}, {"n": {"depth": 4}}]
    search = started(points_to_evaluate=points)
    configs = [search.suggest(f"{i}") for i in range(4)]
    assert configs[0] == {"lr": 0.01, "n": {"depth": 2}}
    assert configs[1] == {"lr": 0.02, "n": {"depth": 3}}
    assert configs[2]["n"] == {"depth": 4}
    with pytest.raises(ValueError, match=r"'lr'.*received 5"):
        started(points_to_evaluate=[{"lr": 5.0}])


def test_points_that_were_evaluated_elsewhere():
    search = started(mode="max")
    search.add_evaluated_point({"lr": 0.01, "n": {"depth": 2}, "constant": 3}, 0.9)
    search.add_evaluated_point({"lr": 0.02, "n/depth": 3}, math.nan)
    search.add_evaluated_point({"lr": 0.03, "n/depth": 3}, 0.1, error=True)
    search.add_evaluated_point({"lr": 0.04, "n/depth": 3}, 0.1, pruned=True)
    assert [o.value for o in search.ledger.history] == [-0.9, None, None, -0.1]
    assert [o.status for o in search.ledger.history] == [
        "complete",
        "failed",
        "failed",
        "pruned",
    ]
    with pytest.raises(ValueError, match="'n/depth'"):
        search.add_evaluated_point({"lr": 0.01}, 1.0)
    with pytest.raises(ValueError, match="needs the space"):
        HypergradSearch(RandomSearcher).add_evaluated_point({}, 1.0)


def test_mistakes_in_the_set_up_are_named():
    with pytest.raises(ValueError, match="expected 'min' or 'max'"):
        HypergradSearch(mode="up")
    with pytest.raises(ValueError, match="expected the name of a metric"):
        HypergradSearch(metric=3)
    with pytest.raises(ValueError, match="expected different metrics"):
        HypergradSearch(metric=["a", "a"])
    with pytest.raises(ValueError, match="param_space"):
        HypergradSearch(RandomSearcher, metric="loss", mode="min").suggest("a")
    search = HypergradSearch(RandomSearcher, space=SPACE)
    with pytest.raises(ValueError, match="metric"):
        search.suggest("a")
    with pytest.raises(ValueError, match="points_to_evaluate"):
        HypergradSearch(RandomSearcher(space_from_ray(SPACE)), points_to_evaluate=[{}])
    with pytest.raises(ValueError, match="'space'"):
        HypergradSearch(RandomSearcher(space_from_ray(SPACE)), space=SPACE)
    with pytest.raises(ValueError, match="another space"):
        started().set_search_properties("loss", "min", {"x": tune.uniform(0, 1)})


def test_space_in_the_constructor_refuses_another_but_takes_the_metric():
    space = SearchSpace({"a": {"x": Float(0, 1)}, "l2": Float(0, 1, shape=(2,))})
    search = HypergradSearch(RandomSearcher, space=space)
    assert not search.set_search_properties("loss", "max", {"constant": 3})
    config = search.suggest("t")
    assert set(config) == {"a", "l2"}
    assert len(config["l2"]) == 2
    search.on_trial_complete("t", flat(result(1.0, {"a/x": 1.0, "l2": [1.0, 2.0]}, metric="loss")))
    assert search.ledger.history[0].gradient == {"a/x": -1.0, "l2": [-1.0, -2.0]}


def test_second_experiment_forgets_the_trials_that_never_ended():
    search = started(max_concurrent=1)
    search.suggest("lost")
    assert search.set_search_properties("loss", "min", copy.deepcopy(SPACE))
    assert search.suggest("new")


def drive(search, first, last):
    """Trials `first..last`, each told before the next but one is asked: one is always pending."""
    configs = []
    for i in range(first, last):
        configs.append(search.suggest(f"t{i}"))
        if i > 0:
            done = search.ledger.pending[0].config
            row = result(done["lr"], {"lr": 1.0}, metric="loss")
            search.on_trial_complete(f"t{i - 1}", flat(row))
    return configs


@pytest.mark.parametrize("route", ["state", "file", "directory", "pickle"])
def test_restored_search_continues_like_the_uninterrupted_one(route, tmp_path):
    param_space = {**SPACE, "hook": ("__ref_ph", "abc"), "l2": [tune.loguniform(1e-3, 1)] * 2}
    whole = drive(started(Descent, param_space, seed=3), 0, 12)
    fresh = HypergradSearch(Descent, seed=3)
    pickled = cloudpickle.dumps(fresh)  # as Ray does, before it knows the space
    fresh.set_search_properties("loss", "min", copy.deepcopy(param_space))
    begun = drive(fresh, 0, 7)
    other = cloudpickle.loads(pickled)
    if route == "state":
        other.set_state(json.loads(json.dumps(fresh.get_state())))
    elif route == "file":
        fresh.save(str(tmp_path / "state"))
        other.restore(str(tmp_path / "state"))
    elif route == "directory":
        fresh.save_to_dir(str(tmp_path), "1")
        fresh.save_to_dir(str(tmp_path), "2")
        other.restore_from_dir(str(tmp_path))
    else:
        other = cloudpickle.loads(cloudpickle.dumps(fresh))
    assert begun + drive(other, 7, 12) == whole
    assert (other.metric, other.mode) == ("loss", "min")


def test_truncated_state_is_refused_and_the_backup_used(tmp_path, caplog):
    search = started(seed=5)
    drive(search, 0, 3)
    search.save_to_dir(str(tmp_path), "s")
    drive(search, 3, 4)
    search.save_to_dir(str(tmp_path), "s")
    path = tmp_path / "searcher-state-s.pkl"
    path.write_text(path.read_text()[:100])
    other = HypergradSearch(RandomSearcher, seed=5)
    with pytest.raises(ValueError, match="truncated or damaged"):
        other.restore(str(path))
    other.restore_from_dir(str(tmp_path))
    assert len(other.ledger.history) == 2
    assert "truncated" in caplog.text
    os.remove(tmp_path / "searcher-backup-s.pkl")
    lost = HypergradSearch(RandomSearcher, space=SPACE, seed=5)
    lost.restore_from_dir(str(tmp_path))
    assert lost.ledger.history == []
    assert "begins anew" in caplog.text


def test_state_of_another_search_is_refused(tmp_path):
    state = started(seed=1).get_state()
    with pytest.raises(ValueError, match="seed"):
        started(seed=2).set_state(state)
    with pytest.raises(ValueError, match="'lr'"):
        started(param_space={"lr": tune.uniform(0, 1)}, seed=1).set_state(state)
    with pytest.raises(ValueError, match="version"):
        started().set_state({**state, "version": 99})


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"mode": "max"},
        {"metric": "accuracy"},
        {"constraints": ["memory"]},
        {"searcher": SobolSearcher},
    ],
)
def test_a_folder_of_another_search_is_refused_and_its_trials_are_not_taken(other, tmp_path):
    options = {"searcher": RandomSearcher, "seed": 1, "metric": "loss", "mode": "min"}
    search = HypergradSearch(space=SPACE, **options)
    drive(search, 0, 3)
    search.save_to_dir(str(tmp_path), "s")
    (tmp_path / "experiment_state-s.json").write_text(json.dumps({"trial_data": []}))
    again = HypergradSearch(space=SPACE, **options | other)
    before = again.get_state()
    with pytest.raises(ValueError, match=f"state: '{next(iter(other))}'"):
        again.restore_from_dir(str(tmp_path))
    assert again.get_state() == before


def test_a_search_and_a_scheduled_search_do_not_take_each_others_states():
    plain, schedule = started(seed=3), scheduled()
    for one, other in ((plain, schedule), (schedule, plain)):
        before = one.get_state()
        with pytest.raises(ValueError, match="'scheduled'"):
            one.set_state(other.get_state())
        assert one.get_state() == before
    with pytest.raises(ValueError, match="'resource'"):
        scheduled().set_state(schedule.get_state() | {"resource": "epochs"})


@pytest.mark.parametrize("kind", ["search", "schedule"])
def test_trial_that_ray_does_not_know_any_more_is_made_again(kind, tmp_path):
    """A kill left a newer state of ours beside an older one of Ray's."""

    def make():
        if kind == "search":
            return started(seed=3, max_concurrent=1)
        return scheduled(max_concurrent=1)

    search = make()
    config = search.suggest("lost")
    search.save_to_dir(str(tmp_path), "s")
    (tmp_path / "experiment_state-s.json").write_text(json.dumps({"trial_data": []}))
    other = make()
    other.restore_from_dir(str(tmp_path))
    assert other.suggest("again") == config
    assert other.suggest("next") is None
    other.on_trial_complete("again", flat({"loss": 1.0}))
    assert other.suggest("next") != config


def test_save_on_a_full_disk_is_logged_and_keeps_the_old_file(tmp_path, caplog, monkeypatch):
    search = started()
    drive(search, 0, 3)
    search.save_to_dir(str(tmp_path), "s")
    before = (tmp_path / "searcher-state-s.pkl").read_text()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    search.save_to_dir(str(tmp_path), "s")
    assert (tmp_path / "searcher-state-s.pkl").read_text() == before
    assert "not saved" in caplog.text


def test_ray_finds_and_restores_it_through_its_own_wrappers(tmp_path):
    generator = SearchGenerator(ConcurrencyLimiter(started(Descent, seed=3), max_concurrent=2))
    generator.searcher.suggest("t0")
    generator.save_to_dir(str(tmp_path), "s")
    other = SearchGenerator(ConcurrencyLimiter(HypergradSearch(Descent, seed=3), max_concurrent=2))
    other.restore_from_dir(str(tmp_path))
    assert other.searcher.suggest("t1") == generator.searcher.suggest("t1")
    assert other.searcher.suggest("t2") is None


def test_exceptions_in_callbacks_stay_inside(caplog):
    search = started()
    search.suggest("a")
    search.on_trial_result("a", None)
    search.ledger.record = functools.partial(exec, "raise RuntimeError('inside')")
    search.on_trial_complete("a", flat({"loss": 1.0}))
    assert "not passed to the searcher" in caplog.text


def scheduled(top=4, **options):
    from strategies.ray import ScheduledSearch
    from strategies.schedulers import IterativeDeepeningHyperband

    schedule = functools.partial(IterativeDeepeningHyperband, max_resource=top, eta=2)
    search = ScheduledSearch(schedule, RandomSearcher, seed=1, **options)
    assert search.set_search_properties("loss", "max", copy.deepcopy(SPACE))
    return search


def test_scheduled_trials_pause_at_their_rung_and_their_values_are_turned_around():
    search = scheduled()
    config = search.suggest("a")
    row = flat(result(0.5, {"lr": 2.0}, metric="loss"), training_iteration=1)
    assert search.trial_scheduler.on_trial_result(None, Spy("b"), row) == "STOP"
    assert search.reached("a", row) == "PAUSE"
    (seen,) = search.schedule.candidates[search.number_of("a")].results.values()
    assert (seen.value, seen.gradient, seen.resource) == (-0.5, {"lr": -2.0}, 1)
    assert seen.config["lr"] == pytest.approx(config["lr"])
    # The same report again, as after a retry, changes nothing.
    assert search.reached("a", row) == "PAUSE"


class Spy:
    def __init__(self, trial_id):
        self.trial_id = trial_id


def test_trial_that_ended_early_is_not_waited_for():
    """Its last value stands for the rungs that it will not reach; one on its rung is not ended."""
    search = scheduled(top=2)
    for trial_id, loss, iteration in [("a", 1.0, 1), ("b", 0.5, 1)]:
        search.suggest(trial_id)
        row = flat({"loss": loss}, training_iteration=iteration)
        search.on_trial_complete(trial_id, row)
    # The better one is promoted; its trial is gone, so another one continues it.
    assert search._ended == {}
    config = search.suggest("c")
    assert search.number_of("c") == search.number_of("a")
    assert search.schedule.job(search.number_of("c")).resource == 2
    search.on_trial_complete("c", flat({"loss": 1.5}, training_iteration=1))
    assert search.schedule.candidates[search.number_of("a")].value(1) == -1.5
    assert config["lr"] > 0


def test_scheduled_search_survives_a_restore():
    search = scheduled(max_concurrent=2)
    search.suggest("a")
    search.suggest("b")
    search.on_trial_result("a", flat({"loss": 0.1}))
    assert search.reached("a", flat({"loss": 0.1}, training_iteration=1)) == "PAUSE"
    state = json.loads(json.dumps(search.get_state()))
    other = cloudpickle.loads(cloudpickle.dumps(scheduled()))
    other.set_state(state)
    assert other.trial_scheduler._search is other
    assert other.schedule.state_dict() == search.schedule.state_dict()
    assert other.suggest("c") == search.suggest("c")
    assert other.suggest("d") is None  # b and c run, a is paused
    with pytest.raises(ValueError, match="function of the searcher"):
        scheduled().__class__(schedule=3)


@pytest.mark.parametrize(
    ("points", "named"),
    [
        ([{"learning_rate": 0.3}], "'learning_rate': expected one of the keys"),
        ([{"lr": 0.3, "epochs": 50}], "'epochs': expected the constant 5, received 50"),
        ([{"opt": {"kind": "rmsprop"}}], "'opt': expected one of its options"),
        ([{"opt": {"kind": "sgd", "momentum": 1}}], "'opt': expected one of its options"),
        ([{"lr": None}], "'lr': expected a value, received None"),
        ([{"lr": 2.0}], "'lr': expected a number in"),
        ([("lr", 0.1)], "expected a mapping"),
        ({"lr": 0.1}, "expected a list of configurations"),
    ],
)
def test_a_point_that_cannot_be_meant_is_refused(points, named):
    space = {
        "lr": tune.loguniform(1e-4, 1),
        "epochs": 5,
        "norm": tune.choice([None, "batch"]),
        "opt": tune.choice(
            [{"kind": "sgd", "m": tune.uniform(0, 1)}, {"kind": "adam", "b": tune.uniform(0, 1)}]
        ),
    }
    with pytest.raises(ValueError, match=re.escape(named)):
        HypergradSearch(RandomSearcher, space=space, points_to_evaluate=points)
    point = {"lr": 0.12345678901234567, "opt/kind": "adam", "epochs": 5, "norm": None}
    search = HypergradSearch(
        RandomSearcher, space=space, metric="loss", mode="min", points_to_evaluate=[point]
    )
    given = search.suggest("0")
    assert (given["lr"], given["opt"]["kind"], given["norm"]) == (point["lr"], "adam", None)


def test_a_space_of_its_own_brings_its_constants_along():
    # Ray gives a trial what the search suggests, and the constants of its own `param_space`.
    space = {"x": tune.uniform(0, 1), "epochs": 5, "opt": {"name": "sgd", "lr": tune.uniform(0, 1)}}
    given = HypergradSearch(RandomSearcher, space=space, metric="loss", mode="min").suggest("0")
    assert given["epochs"] == 5
    assert given["opt"].keys() == {"name", "lr"}


def test_results_in_one_direction_are_not_continued_in_another(tmp_path):
    def make(**options):
        return HypergradSearch(RandomSearcher, space={"x": tune.uniform(0, 1)}, **options)

    old = make(metric="accuracy", mode="min")
    old.suggest("0")
    old.on_trial_complete("0", {"accuracy": 0.1, "training_iteration": 1})
    old.save(str(tmp_path / "state"))
    new = make()
    new.restore(str(tmp_path / "state"))
    with pytest.raises(ValueError, match="'mode': expected 'min'"):
        new.set_search_properties("accuracy", "max", {})
    assert new.mode == "min"
    for options in ({"metric": "loss", "mode": "min"}, {"metric": "accuracy", "mode": "max"}):
        other = make(**options)
        with pytest.raises(ValueError, match="expected"):
            other.restore(str(tmp_path / "state"))
        assert other.ledger.history == []
        assert {"metric": other.metric, "mode": other.mode} == options


def test_numpy_numbers_in_a_param_space_can_be_saved(tmp_path):
    space = {
        "k": tune.randint(1, np.int64(64)),
        "x": tune.uniform(np.float32(0), np.float32(1)),
        "c": tune.choice([np.int64(1), np.float32(0.5)]),
        "q": tune.quniform(0, 1, np.float32(0.25)),
    }
    search = started(param_space=space)
    search.suggest("a")
    search.on_trial_complete("a", flat(result(np.float32(1.0), metric="loss", cost=np.float32(1))))
    search.save(str(tmp_path / "state"))
    again = HypergradSearch(RandomSearcher)
    again.restore(str(tmp_path / "state"))
    assert again.ledger.history == search.ledger.history
    assert again.suggest("b") == search.suggest("b")


def test_failed_trials_of_a_grid_are_seen():
    class Grid(list):
        _experiment_analysis = SimpleNamespace(default_metric="loss", default_mode="max")

    grid = Grid(
        SimpleNamespace(metrics={"loss": loss}, config={"x": x}, error=error)
        for loss, x, error in [
            (0.5, 0.1, None),
            (0.7, 0.2, RuntimeError("it broke")),
            (None, 0.3, RuntimeError("it broke at once")),
            (0.4, 7.0, RuntimeError("it is not in the space")),
        ]
    )
    seen = seen_by(grid, SearchSpace({"x": Float(0.0, 1.0)}))
    assert [(item.config["x"], item.value, item.status) for item in seen.history] == [
        (0.1, -0.5, "complete"),
        (0.2, None, "failed"),
        (0.3, None, "failed"),
    ]
