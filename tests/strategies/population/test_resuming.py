"""Whatever a population was doing when it was killed, it ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from strategies import Ledger, RandomSearcher, TPESearcher
from strategies.population import PBT, FollowGradient, Population, checkpoint
from strategies.schedulers import ASHA, Hyperband
from tests.compiling import quick_to_compile
from tests.strategies.population.problem import SPACE, batch, evaluate, init, step

SEARCHES = {
    "trials": (lambda: TPESearcher(SPACE, seed=1), {"trials": 12, "steps": 4}),
    "hyperband": (lambda: Hyperband(RandomSearcher(SPACE, seed=1), 9), {}),
    "asha": (lambda: ASHA(TPESearcher(SPACE, seed=1), 9, configurations=9), {}),
    "pbt": (lambda: PBT(RandomSearcher(SPACE, seed=1), 20, 4, explore=FollowGradient()), {}),
}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def population():
    return Population(init, step, evaluate, 4, space=SPACE, batch=batch)


def exact(result):
    """All that must be the same to the last bit."""
    state = {k: np.asarray(v) for k, v in result.best_state.items() if k != "key"}
    rows = [
        (o.number, o.resource, o.config, o.value, str(o.gradient), dict(o.note))
        for o in result.history
    ]
    return sorted(map(str, rows)), {k: v.tobytes() for k, v in state.items()}


@pytest.mark.parametrize("every", [0.0, 1e6], ids=["checkpoint", "no checkpoint"])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_killed_run_is_resumed_bit_for_bit(population, tmp_path, name, every):
    search, options = SEARCHES[name]
    whole = population.run(search(), **options)
    path = tmp_path / "state"
    for kill_at in (2, 7, 9):
        seen = []

        def die(trial, seen=seen, kill_at=kill_at):
            seen.append(trial)
            if len(seen) == kill_at:
                raise Killed

        try:
            population.run(
                search(), state_path=path, checkpoint_seconds=every, callbacks=[die], **options
            )
        except Killed:
            continue
    resumed = population.run(search(), state_path=path, **options)
    if resumed.best_state is None:  # found before, and in no checkpoint
        assert every
        assert exact_history(resumed) == exact_history(whole)
    else:
        assert exact(resumed) == exact(whole)
    assert resumed.best_value == whole.best_value


@pytest.mark.parametrize("name", SEARCHES)
def test_a_callback_ends_a_run_and_the_same_call_goes_on(population, tmp_path, name):
    search, options = SEARCHES[name]
    path = tmp_path / "state"
    stopped = population.run(
        search(), state_path=path, callbacks=[lambda trial: trial.number >= 4], **options
    )
    resumed = population.run(search(), state_path=path, **options)
    whole = population.run(search(), **options)
    assert len(stopped.trials) < len(whole.trials)
    assert exact(resumed) == exact(whole)


@pytest.mark.parametrize("name", ["trials", "pbt"])
def test_members_of_another_seed_are_refused(population, tmp_path, name):
    search, options = SEARCHES[name]
    path = tmp_path / "state"
    population.run(search(), state_path=path, callbacks=[lambda trial: True], **options)
    with pytest.raises(ValueError, match=r"'seed': expected 0, .* received 1"):
        population.with_seed(1).run(search(), state_path=path, **options)


@pytest.mark.parametrize("name", SEARCHES)
def test_ctrl_c_ends_a_run_with_what_it_has(population, tmp_path, name):
    search, options = SEARCHES[name]
    path, told = tmp_path / "state", []

    def interrupt(trial):
        told.append(trial)
        if len(told) == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # the signal comes before this is over

    found = population.run(search(), state_path=path, callbacks=[interrupt], **options)
    assert found.stopped == "it was interrupted"
    assert len(found.history) >= len(found.trials) >= 5
    resumed = population.run(search(), state_path=path, **options)
    assert resumed.stopped is None
    assert exact_history(resumed) == exact_history(population.run(search(), **options))


def exact_history(result):
    return sorted(str((o.number, o.resource, o.config, o.value)) for o in result.history)


def test_states_are_taken_up_and_not_trained_again(population, tmp_path):
    """With a checkpoint a resumed rung trains only the steps that are missing."""
    path, steps = tmp_path / "state", []

    def die(trial):
        raise Killed

    scheduler = ASHA(RandomSearcher(SPACE, seed=1), 9, min_resource=9, configurations=4)
    with pytest.raises(Killed):
        population.run(scheduler, state_path=path, checkpoint_seconds=0.0, callbacks=[die])
    scheduler = Hyperband(RandomSearcher(SPACE, seed=1), 9)
    with pytest.raises(ValueError, match="expected one of Hyperband"):
        population.run(scheduler, state_path=path)
    path = tmp_path / "other"
    with pytest.raises(Killed):
        population.run(
            Hyperband(RandomSearcher(SPACE, seed=1), 9), state_path=path, checkpoint_seconds=0.0,
            callbacks=[lambda trial: (_ for _ in ()).throw(Killed) if trial.number == 3 else None],
        )  # fmt: skip
    population.run(
        Hyperband(RandomSearcher(SPACE, seed=1), 9),
        state_path=path,
        progress=lambda p: steps.append(p.steps),
    )
    whole = Hyperband(RandomSearcher(SPACE, seed=1), 9)
    population.run(whole)
    assert steps[-1] < whole.spent_resumed


def test_states_whose_results_are_gone_are_not_taken_up(population, tmp_path):
    """Someone removed the results and began another search, which was killed at once."""
    path = tmp_path / "state"

    def die(trial):
        raise Killed

    for seed, every in ((1, 0.0), (2, 1e6)):
        scheduler = Hyperband(RandomSearcher(SPACE, seed=seed), 9)
        with pytest.raises(Killed):
            population.run(scheduler, state_path=path, checkpoint_seconds=every, callbacks=[die])
        if seed == 1:
            path.unlink()
    resumed = population.run(Hyperband(RandomSearcher(SPACE, seed=2), 9), state_path=path)
    whole = population.run(Hyperband(RandomSearcher(SPACE, seed=2), 9))
    assert exact_history(resumed) == exact_history(whole)


def test_a_damaged_checkpoint_is_a_warning_and_changes_nothing(population, tmp_path):
    search, _ = SEARCHES["pbt"]
    path = tmp_path / "state"
    whole = population.run(search())
    population.run(search(), state_path=path)
    members = tmp_path / "state.members"
    members.write_bytes(members.read_bytes()[:-400])
    with pytest.warns(UserWarning, match="is damaged"):
        again = population.run(search(), state_path=path)
    assert exact(again) == exact(whole)


def test_every_flipped_bit_of_the_members_is_noticed(tmp_path):
    path = str(tmp_path / "members")
    members = {str(i): checkpoint.Stored(i, [np.arange(3.0) + i]) for i in range(2)}
    checkpoint.write(path, members, {"seed": 3})
    read, note = checkpoint.read(path)
    assert [(m.age, *m.leaves[0]) for m in read.values()] == [(0, 0, 1, 2), (1, 1, 2, 3)]
    assert note == {"seed": 3}
    whole = Path(path).read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), 200):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        Path(path).write_bytes(flipped)
        with pytest.warns(UserWarning, match="checksum"):
            assert checkpoint.read(path) == ({}, {})


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from strategies import RandomSearcher
from strategies.population import Population
from tests.compiling import quick_to_compile
from tests.strategies.population.problem import SPACE, batch, evaluate, init, step

def told(trial):
    print(trial.number, repr(trial.value), flush=True)
    time.sleep(0.02)

population = Population(init, step, evaluate, 4, space=SPACE, batch=batch)
population.run(
    RandomSearcher(SPACE, seed=1), trials=400, steps=3, state_path={path!r},
    checkpoint_seconds=0.0, callbacks=[told],
)
"""


def test_kill_9_loses_no_reported_observation(tmp_path):
    path = str(tmp_path / "state")
    script = SCRIPT.format(root=os.getcwd(), path=path)
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    lines = [run.stdout.readline() for _ in range(9)]
    time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    lines += run.stdout.readlines()
    run.wait()
    ledger = Ledger(RandomSearcher(SPACE, seed=1))
    ledger.restore(path)
    told = {o.number: o.value for o in ledger.history}
    for line in lines:
        if line.endswith("\n"):
            number, value = line.split()
            assert told[int(number)] == float(value)
    assert 9 <= len(told) < 400


DEVICES = """
import sys
sys.path.insert(0, {root!r})
import jax
jax.config.update("jax_enable_x64", True)
from strategies import RandomSearcher
from strategies.population import PBT, Population
from strategies.schedulers import Hyperband
from tests.compiling import quick_to_compile
from tests.strategies.population.problem import SPACE, batch, evaluate, init, step

assert len(jax.devices()) == 2
population = Population(
    init, step, evaluate, 4, space=SPACE, batch=batch, devices=jax.devices()
)
searcher = RandomSearcher(SPACE, seed=1)
for search in (Hyperband(searcher, 9), PBT(searcher, 8, 2)):
    for told in population.run(search).history:
        print(told.number, repr(told.value))
try:
    Population(init, step, evaluate, 3, space=SPACE, devices=jax.devices())
except ValueError as error:
    print(error)
"""


def test_devices_share_the_lanes():
    flags = quick_to_compile("--xla_force_host_platform_device_count=2")
    environment = {**os.environ, "XLA_FLAGS": flags}
    run = subprocess.run(
        [sys.executable, "-c", DEVICES.format(root=os.getcwd())],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    *lines, refusal = run.stdout.splitlines()
    assert "expected lanes that 2 devices can share equally, received 3" in refusal
    population = Population(init, step, evaluate, 4, space=SPACE, batch=batch)
    expected = []
    for search in (
        Hyperband(RandomSearcher(SPACE, seed=1), 9),
        PBT(RandomSearcher(SPACE, seed=1), 8, 2),
    ):
        expected += population.run(search).history
    assert [int(line.split()[0]) for line in lines] == [o.number for o in expected]
    values = [float(line.split()[1]) for line in lines]
    np.testing.assert_allclose(values, [o.value for o in expected], rtol=1e-10)


def test_states_of_all_types_survive_the_disk(tmp_path):
    """Among them types that NumPy's files have no name for, and both sorts of keys."""
    import jax.numpy as jnp

    def begin(key, config):
        return {
            "half": jnp.full(3, config["rate"], jnp.bfloat16),
            "new": key,
            "old": jax.random.key_data(key),
            "count": 0,
            "flag": True,
        }

    def move(state, config, batch, key):
        count = state["count"] + 1
        return {**state, "new": key, "count": count, "flag": count % 2 == 0}, {}

    def value(state, config):
        return jnp.sum(state["half"].astype(float)) + state["count"]

    population = Population(begin, move, value, 4, space=SPACE)
    path = tmp_path / "state"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for trials in (8, 9):
            result = population.run(RandomSearcher(SPACE), trials=trials, steps=3, state_path=path)
    kept = result.best_state
    assert kept["half"].dtype == jnp.bfloat16
    assert jax.dtypes.issubdtype(kept["new"].dtype, jax.dtypes.prng_key)
    assert int(kept["count"]) == 3
