"""The ledger around a pure searcher: order, state on disk, bad input."""

import json
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from strategies import (
    BayesSearcher,
    Categorical,
    Float,
    HypergradientSearcher,
    Int,
    Observation,
    RandomSearcher,
    SearchSpace,
    TPESearcher,
    report,
)
from strategies.ledger import Ledger

SPACE = SearchSpace(
    {
        "l2": Float(1e-6, 1e2, log=True, shape=(4,)),
        "model": {"width": Int(8, 256, log=True)},
        "scale": Categorical(["none", ("a", 1)]),
    }
)


def filled(count=6):
    ledger = Ledger(RandomSearcher(SPACE, seed=7))
    for _ in range(count):
        suggestion = ledger.ask()
        if suggestion.number in (1, 4):
            continue
        ledger.tell(
            Observation(
                suggestion.config,
                value=math.nan if suggestion.number == 2 else float(suggestion.number),
                gradient={"l2": [1.0, math.nan, 3.0, 4.0]},
                gradient_error=math.inf,
                number=suggestion.number,
            )
        )
    return ledger


def test_a_suggestion_depends_on_seed_and_number_only():
    a, b = Ledger(RandomSearcher(SPACE, seed=7)), RandomSearcher(SPACE, seed=7)
    asked = [a.ask() for _ in range(5)]
    history = []
    for number in (3, 0, 4):
        assert b.propose(number, history, []) == asked[number]
        history.append(Observation(asked[number].config, 1.0, number=number))
    assert Ledger(RandomSearcher(SPACE, seed=8)).ask().config != asked[0].config


def test_failed_observations_are_kept_without_value_and_gradient():
    ledger = filled()
    failed = ledger.history[1]
    assert (failed.number, failed.status, failed.value, failed.gradient) == (
        2,
        "failed",
        None,
        None,
    )
    assert ledger.best.number == 0
    ledger.tell(Observation(SPACE.default(), None))
    assert ledger.history[0].status == "failed"


def test_save_and_restore_lose_nothing(tmp_path):
    ledger = filled()
    ledger.tell(Observation(SPACE.default(), -1.0))
    ledger.save(tmp_path / "state.json")
    again = Ledger(RandomSearcher(SPACE, seed=7))
    again.restore(tmp_path / "state.json")
    assert repr(again.history) == repr(ledger.history)
    assert again.pending == ledger.pending
    assert [item.number for item in again.pending] == [1, 4]
    assert again.ask() == ledger.ask()
    assert again.best.value == -1.0
    assert sorted(os.listdir(tmp_path)) == ["state.json"]


def test_a_truncated_file_is_refused_and_the_backup_used(tmp_path):
    path = tmp_path / "state.json"
    ledger = filled(5)
    ledger.save(path)
    kept = repr(ledger.history)
    ledger.ask()
    ledger.save(path)
    path.write_text(path.read_text()[:-40])
    again = Ledger(RandomSearcher(SPACE, seed=7))
    with pytest.warns(
        UserWarning, match="state.json is truncated or damaged.*restored from .*backup"
    ):
        again.restore(path)
    assert repr(again.history) == kept
    (tmp_path / "state.json.backup").write_text("{")
    with pytest.raises(ValueError, match=r"expected a saved state, but .* truncated"):
        Ledger(RandomSearcher(SPACE, seed=7)).restore(path)
    with pytest.raises(FileNotFoundError):
        Ledger(RandomSearcher(SPACE, seed=7)).restore(tmp_path / "none.json")


def test_a_state_of_another_search_is_refused(tmp_path):
    path = tmp_path / "state.json"
    filled().save(path)
    with pytest.raises(ValueError, match="'seed': expected 8, received 7"):
        Ledger(RandomSearcher(SPACE, seed=8)).restore(path)
    other = SearchSpace({"l2": Float(1e-6, 1e3, log=True, shape=(4,))})
    with pytest.raises(ValueError, match="space 'l2': expected 'float: "):
        Ledger(RandomSearcher(other, seed=7)).restore(path)
    path.write_text(json.dumps({"format": "else"}))
    with pytest.raises(ValueError, match=r"received a damaged one|no checksum"):
        Ledger(RandomSearcher(SPACE, seed=7)).restore(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": {"l2": [1.0, 2.0]}}, r"'l2': expected a gradient .*of shape \(4,\)"),
        ({"gradient": {"scale": 1.0}}, "'scale': expected no gradient"),
        ({"gradient": {"l3": 1.0}}, "'l3': expected one of the keys"),
        ({"config": {"l2": [1.0] * 4}}, "'model/width': expected Int"),
    ],
)
def test_bad_observations_are_refused_and_nothing_is_lost(changes, message):
    ledger = Ledger(RandomSearcher(SPACE))
    asked = ledger.ask()
    fields = {"config": asked.config, "value": 1.0, "number": asked.number}
    with pytest.raises(ValueError, match=message):
        ledger.tell(Observation(**{**fields, **changes}))
    assert ledger.pending == [asked]
    ledger.tell(Observation(**fields))
    assert ledger.pending == []
    assert ledger.best.value == 1.0


def test_observations_in_any_order_and_numbers_nobody_asked_for():
    ledger = Ledger(RandomSearcher(SPACE))
    asked = [ledger.ask() for _ in range(3)]
    for suggestion in reversed(asked):
        ledger.tell(Observation(suggestion.config, 1.0, number=suggestion.number))
    ledger.tell(Observation(asked[0].config, 0.5, number=9))
    ledger.tell(Observation(asked[0].config, 0.25, number=9))
    assert [item.number for item in ledger.history] == [0, 1, 2, 9]
    assert ledger.best.value == 0.25
    assert ledger.ask().number == 10
    ledger.forget(10)
    ledger.forget(77)
    assert ledger.pending == []


def test_points_to_try_first():
    ledger = Ledger(RandomSearcher(SPACE, first=[{"model/width": 9}, {"l2": np.ones(4)}]))
    first, second, third = ledger.ask(), ledger.ask(), ledger.ask()
    assert first.config == {**SPACE.default(), "model": {"width": 9}}
    assert second.config["l2"] == [1.0] * 4
    assert first.note["origin"] == "first"
    assert "origin" not in third.note
    with pytest.raises(ValueError, match="'model/width'"):
        RandomSearcher(SPACE, first=[{"model": {"width": 1}}])


def test_duplicates_in_a_discrete_space():
    ledger = Ledger(
        RandomSearcher(SearchSpace({"a": Int(0, 3), "b": Categorical(["x", "y"])}), seed=1)
    )
    configs = []
    for _ in range(8):
        asked = ledger.ask()
        configs.append(repr(asked.config))
        ledger.tell(Observation(asked.config, 0.0, number=asked.number))
    assert len(set(configs)) == 8
    assert ledger.ask().config  # all are used up, and it still answers


DISCRETE = [RandomSearcher, BayesSearcher, HypergradientSearcher, TPESearcher]


@pytest.mark.parametrize("kind", DISCRETE)
def test_all_that_is_left_of_a_discrete_space_is_found(kind):
    ledger = Ledger(kind(SearchSpace({"n": Int(0, 149)}), seed=1))
    for n in range(140):
        ledger.tell(Observation({"n": n}, float((n - 70) ** 2)))
    left = [ledger.ask().config["n"] for _ in range(10)]
    assert sorted(left) == list(range(140, 150))
    assert 0 <= ledger.ask().config["n"] < 150


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("domain", [Int(0, 149), Int(1, 9, log=True), Float(0, 1, step=0.125)])
def test_a_batch_asked_at_once_holds_no_duplicate(kind, domain):
    ledger = Ledger(kind(SearchSpace({"n": domain}), seed=2))
    asked = [ledger.ask().config["n"] for _ in range(8)]
    assert len(set(asked)) == 8


def test_what_is_left_of_a_space_with_conditions_steps_and_constraints():
    def searcher():
        tree = {
            "kind": Categorical(["a", "b"], weights=[1000, 1]),
            "n": Int(1, 3, when={"kind": "b"}),
            "rates": Float(0.1, 0.3, step=0.1, shape=(2,), when={"kind": "b"}),
        }
        return RandomSearcher(
            SearchSpace(tree, constraints={"even": lambda c: c.get("n") != 2}), seed=0
        )

    asked = Ledger(searcher())
    configs = [asked.ask().config for _ in range(19)]
    assert len({repr(config) for config in configs}) == 19
    assert configs.count({"kind": "a"}) == 1
    assert all(config.get("n") != 2 for config in configs)


def test_a_discrete_branch_of_a_mixed_space_is_not_repeated():
    tree = {"kind": Categorical(["a", "b"], weights=[5, 1]), "x": Float(0, 1, when={"kind": "b"})}
    ledger = Ledger(RandomSearcher(SearchSpace(tree), seed=0))
    kinds = [ledger.ask().config["kind"] for _ in range(20)]
    assert kinds.count("a") == 1


def test_suggestions_meet_constraints_by_predicate():
    space = SearchSpace(
        {"x": Float(0, 1, shape=(2,))}, constraints={"sum": lambda c: sum(c["x"]) < 1}
    )

    def objective(config):
        return -3 * config["x"][0] - config["x"][1]

    ledger = Ledger(HypergradientSearcher(space))
    for _ in range(15):
        asked = ledger.ask()
        assert sum(asked.config["x"]) < 1
        gradient = {"x": [-3.0, -1.0]}
        ledger.tell(
            Observation(asked.config, objective(asked.config), gradient, number=asked.number)
        )
    assert ledger.best.value < -2.3
    with pytest.raises(ValueError, match="'constraint sum'"):
        ledger.tell(Observation({"x": [1, 1]}, 0.0))


@pytest.mark.parametrize("seed", [-1, 1.5, True, "a"])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="'seed': expected an integer >= 0"):
        RandomSearcher(SPACE, seed=seed)


def test_report_makes_plain_json_of_arrays():
    made = report(
        jnp.float32(2.0),
        {"l2": jnp.array([1.0, jnp.nan, 3.0, 4.0]), "model": {"width": None}},
        gradient_error=np.float64(np.inf),
        info={"inner_residual": jnp.asarray(1e-3), "ok": np.bool_(True)},
    )
    stored = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert stored["value"] == 2.0
    assert stored["gradient"] == {"l2": [1.0, None, 3.0, 4.0], "model": {"width": None}}
    back = type(made).from_json(stored)
    assert np.isnan(back.gradient["l2"][1])
    assert back.gradient_error == math.inf
    assert back.info == pytest.approx({"inner_residual": 1e-3, "ok": True})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0],), "'value': expected a number"),
        ((1.0, [1.0]), "'gradient': expected a mapping"),
        (("a",), "'value': expected a number"),
    ],
)
def test_bad_reports(arguments, message):
    with pytest.raises(ValueError, match=message):
        report(*arguments)


SUGGESTING = """
import threading
from threadpoolctl import threadpool_info
from strategies import Float, RandomSearcher

meet = threading.Barrier(2, timeout=60)

def counts():
    libraries = [one for one in threadpool_info() if one["user_api"] == "blas"]
    return {one["num_threads"] for one in libraries}

class Meeting(RandomSearcher):
    # The second comes while the first is at it, and stays when it has gone.
    def _propose(self, number, history, pending):
        if not number:
            print("during", counts(), flush=True)
        meet.wait()
        if number:
            first.join()
        return super()._propose(number, history, pending)

searcher = Meeting({"x": Float(0, 1)})
print("before", counts())
first, second = (
    threading.Thread(target=searcher.propose, args=(number, [], [])) for number in (0, 1)
)
first.start()
second.start()
second.join()
print("after", counts())
"""


def test_linear_algebra_has_one_thread_while_a_suggestion_is_made():
    # Of its own, because the tests may have been given one thread already.
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", SUGGESTING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    before, during, after = done.stdout.splitlines()
    assert during == "during {1}"
    assert after.removeprefix("after") == before.removeprefix("before")
