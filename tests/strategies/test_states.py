"""State files: damage is noticed, the state of another search refused, and nothing half done."""

import json
import os
import random
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from functools import lru_cache, partial

import jax
import numpy as np
import optax
import pytest

from strategies import (
    Categorical,
    Constant,
    Float,
    Int,
    Ledger,
    Observation,
    RandomSearcher,
    SearchSpace,
    SobolSearcher,
    report,
)
from strategies.local import minimize
from strategies.schedulers import ASHA, Hyperband, IterativeDeepeningHyperband, run
from strategies.space.identity import content
from strategies.state import OtherSearchError, unseal, write_state

SPACE = SearchSpace({"x": Float(0.0, 1.0), "n": Int(1, 9)})
FLIPS = 600


def objective(config):
    return report(config["x"], {"x": 1.0}, cost=1.0)


def make_ledger():
    return Ledger(RandomSearcher(SPACE))


def make_scheduler():
    return Hyperband(RandomSearcher(SPACE), 9)


def filled(kind, path):
    if kind == "ledger":
        minimize(objective, SPACE, trials=6, searcher=make_ledger(), state_path=path)
    else:
        run(lambda job: objective(job.config), make_scheduler(), jobs=8, state_path=path)


MAKERS = {"ledger": make_ledger, "scheduler": make_scheduler}


@pytest.mark.parametrize("kind", MAKERS)
def test_no_flipped_bit_changes_anything_while_there_is_a_backup(kind, tmp_path):
    path = tmp_path / "state.json"
    filled(kind, path)
    path.with_suffix(".json.backup").write_bytes(path.read_bytes())
    good, truth = path.read_bytes(), MAKERS[kind]()
    truth.restore(path)
    rng, count = random.Random(0), Counter()
    for _ in range(FLIPS):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        again = MAKERS[kind]()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            again.restore(path)
        assert again.state_dict() == truth.state_dict()
        count[bool(heard)] += 1
    assert count == {True: FLIPS}


@pytest.mark.parametrize("kind", MAKERS)
def test_no_damage_raises_anything_but_a_value_error(kind, tmp_path):
    # Version 1 had no checksum: what cannot be understood is damaged, and nothing is taken over.
    path = tmp_path / "state.json"
    filled(kind, path)
    state = json.loads(path.read_text())
    del state["checksum"]
    rng = random.Random(1)
    for _ in range(300):
        broken = json.loads(json.dumps(state))
        at = broken
        while True:
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not at[key] or not isinstance(at[key], dict | list) or rng.random() < 0.2:
                break
            at = at[key]
        if rng.random() < 0.3:
            del at[key]
        else:
            at[key] = rng.choice([None, [], {}, "x", -1, 10**30, 1e400, "1e999999999", [[[]]]])
        again = MAKERS[kind]()
        before = again.state_dict()
        try:
            again.load_state_dict(broken)
        except ValueError:
            assert again.state_dict() == before


def test_nesting_without_end_is_damage(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="damaged"):
        make_ledger().restore(path)


def test_a_sealed_text_is_read_again_and_an_unsealed_one_of_version_1_only(tmp_path):
    path = tmp_path / "state.json"
    write_state(path, '{"version": 2, "a": [1.5, "ü"]}')
    assert unseal(path.read_bytes())["a"] == [1.5, "ü"]
    assert unseal(b'{"version": 1}') == {"version": 1}
    with pytest.raises(ValueError, match="no checksum"):
        unseal(b'{"version": 2}')


def test_links_are_followed_and_orphans_removed(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"real.json.{gone.pid}.tmp", f"real.json.{gone.pid}.old"):
        (tmp_path / name).write_text("half")
    mine = tmp_path / f"real.json.{os.getppid()}.tmp"
    mine.write_text("another process works on it")
    ledger = make_ledger()
    ledger.ask()
    ledger.save(link)
    ledger.save(link)
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["link.json", "real.json", "real.json.backup", mine.name]
    )
    again = make_ledger()
    again.restore(link)
    assert again.pending == ledger.pending


LAYERS = [(64,), (64, 64), (128,), (128, 128), (256,), (256, 256), (512,), (512, 512)]


@pytest.mark.parametrize(
    "other",
    [
        SearchSpace({"layers": Categorical(LAYERS[::-1]), "x": Float(0.0, 1.0)}),
        SearchSpace({"layers": Categorical([*LAYERS[:7], (512, 513)]), "x": Float(0.0, 1.0)}),
        SearchSpace(
            {"layers": Categorical(LAYERS), "x": Float(0.0, 1.0)},
            constraints={"small": lambda c: c["x"] < 0.5},
        ),
    ],
)
def test_a_space_that_differs_after_forty_letters_is_another(other, tmp_path):
    space = SearchSpace(
        {"layers": Categorical(LAYERS), "x": Float(0.0, 1.0)},
        constraints={"small": lambda c: c["x"] < 0.6} if other.constraints else None,
    )
    ledger = Ledger(RandomSearcher(space))
    ledger.ask()
    again = Ledger(RandomSearcher(other))
    with pytest.raises(OtherSearchError, match=r"space '(layers|constraint small)'"):
        again.load_state_dict(ledger.state_dict())
    assert again.pending == []


@pytest.mark.parametrize(
    "other",
    [
        lambda: ASHA(RandomSearcher(SPACE, seed=1), 9),
        lambda: ASHA(SobolSearcher(SPACE), 9),
        lambda: ASHA(RandomSearcher(SearchSpace({"x": Float(0.0, 2.0), "n": Int(1, 9)})), 9),
    ],
    ids=["seed", "searcher", "space"],
)
def test_a_scheduler_with_another_searcher_refuses_the_state(other):
    scheduler = ASHA(RandomSearcher(SPACE), 9)
    scheduler.tell(scheduler.ask().number, 1.0)
    again = other()
    with pytest.raises(OtherSearchError):
        again.load_state_dict(scheduler.state_dict())
    assert again.candidates == {}


@pytest.mark.parametrize("kind", [Hyperband, ASHA, IterativeDeepeningHyperband])
def test_a_state_of_another_maximum_is_refused_unless_it_has_grown(kind):
    state = kind(RandomSearcher(SPACE), 9).state_dict()
    with pytest.raises(OtherSearchError, match="'max_resource': expected '27', received '9'"):
        kind(RandomSearcher(SPACE), 27).load_state_dict(state)
    shorter = kind(RandomSearcher(SPACE), 3)
    if kind is IterativeDeepeningHyperband:
        shorter.load_state_dict(state)
        assert shorter.max_resource == 9
    else:
        with pytest.raises(OtherSearchError, match="'max_resource'"):
            shorter.load_state_dict(state)


def test_functions_as_choices_are_resumed_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import functools, sys
            from strategies import Categorical, Float, RandomSearcher, SearchSpace
            from strategies.local import minimize

            def relu(x): return x
            class Layer:
                def __init__(self, width): self.width = width

            choices = [relu, lambda x: x + 1, functools.partial(relu, x=2), Layer(3), Layer(4)]
            space = SearchSpace({"act": Categorical(choices), "x": Float(0.0, 1.0)})
            found = minimize(lambda c: c["x"], space, trials=int(sys.argv[1]),
                             searcher=RandomSearcher(space), state_path=sys.argv[2])
            print(len(found.history), len(found.trials))
            """
        )
    )
    printed = [
        subprocess.run(
            [sys.executable, str(script), trials, str(tmp_path / "state")],
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for trials in ("3", "5")
    ]  # fmt: skip
    assert printed == [["3", "3"], ["5", "2"]]


def scaled(factor):
    return lambda x: factor * x


def test_an_identity_is_one_of_content():
    assert content(scaled(2)) == content(scaled(2)) != content(scaled(3))
    assert content(lambda x: x < 1) != content(lambda x: x > 1)
    assert content(partial(scaled, 2)) != content(partial(scaled, 3))
    assert content(np.arange(3)) != content(np.arange(4))
    assert content([1, (2,)]) == content((1, [2]))
    assert content(1) != content(1.0) != content(True)


def warmed_up(peak):
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, 3, 10)
    return optax.apply_if_finite(optax.chain(optax.clip(1.0), optax.adamw(schedule)), 3)


@pytest.mark.parametrize(
    "make",
    [
        warmed_up,
        lambda factor: jax.jit(scaled(factor)),
        lambda factor: lru_cache(scaled(factor)),
        lambda factor: partial(jax.jit(scaled(factor)), 1.0),
        lambda factor: optax.masked(optax.sgd(factor), {"x": True}),
    ],
)
def test_what_is_deep_inside_a_choice_counts(make):
    assert content(make(2.0)) == content(make(2.0)) != content(make(3.0))


def test_what_holds_itself_has_an_identity():
    around: list = []
    around.append(around)
    assert content(around) == content(around)

    def again(n):
        return again(n - 1) if n else np.zeros(1)

    assert content(again) != content(scaled(2))


def test_numpy_numbers_become_plain_where_they_enter(tmp_path):
    space = SearchSpace(
        {
            "x": Float(np.float32(0.25), np.float32(1)),
            "n": Int(np.int64(1), np.int64(9)),
            "c": Constant(np.float32(2)),
            "k": Categorical([np.int64(1), np.float32(0.5)]),
        }
    )
    ledger = Ledger(RandomSearcher(space, seed=np.int64(3)))
    asked = ledger.ask()
    ledger.tell(
        Observation(
            asked.config,
            np.float32(1),
            {"x": np.float32(1)},
            np.float32(0.5),
            cost=np.float32(1),
            resource=np.int64(3),
            number=np.int64(0),
        )
    )
    ledger.save(tmp_path / "state")
    again = Ledger(RandomSearcher(space, seed=3))
    again.restore(tmp_path / "state")
    assert repr(again.history) == repr(ledger.history)
    scheduler = ASHA(
        RandomSearcher(space), np.int64(9), eta=np.int64(3), configurations=np.int64(2)
    )
    run(lambda job: np.float32(1), scheduler, state_path=tmp_path / "schedule")


def test_what_cannot_be_saved_is_said_at_once(tmp_path):
    ledger = make_ledger()
    asked = ledger.ask()
    ledger.tell(Observation(asked.config, 1.0, number=0, note={"a": object()}))
    with pytest.raises(ValueError, match="expected what JSON can hold"):
        ledger.save(tmp_path / "state")
