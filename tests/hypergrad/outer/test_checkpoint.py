import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad.outer import SOBA, Box, CheckpointError, Minibatches, run
from hypergrad.outer import checkpoint as files
from hypergrad.problem import BilevelProblem

ROOT = Path(__file__).parents[3]
ALGORITHM = SOBA(optax.adam(0.1), step_size=0.3, constraint=Box(-3.0, 1.0))
SAMPLER = Minibatches(6)


class KilledError(Exception):
    """Stands for the death of the process."""


def drive(ridge, path=None, *, steps=9, kill_at=None, callbacks=(), **options):
    def kill(report):
        if report.step == kill_at:
            raise KilledError

    options = {"sampler": SAMPLER, "seed": 3, "holdout_data": ridge.inner, **options}
    options = {"overtuning_margin": 10.0, **options}
    problem = options.pop("problem", ridge.problem)
    algorithm = options.pop("algorithm", ALGORITHM)
    hparams = options.pop("hparams", ridge.hparams)
    return run(
        problem,
        algorithm,
        ridge.params,
        hparams,
        ridge.inner,
        ridge.outer,
        steps=steps,
        callbacks=[kill, *callbacks],
        checkpoint=path,
        checkpoint_seconds=0.0,
        **options,
    )


def assert_identical(one, other):
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(a, b)
    for mine, theirs in ((one.best, other.best), (one.holdout_best, other.holdout_best)):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
    tables = []
    for result in (one, other):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
        tables.append(repr(rows))
    assert tables[0] == tables[1]
    assert one.status == other.status


@pytest.fixture(scope="module")
def uninterrupted(ridge):
    return drive(ridge)


@pytest.mark.parametrize("kill_at", [1, 2, 5, 9])
def test_a_killed_run_resumes_bit_for_bit(ridge, uninterrupted, tmp_path, kill_at):
    with pytest.raises(KilledError):
        drive(ridge, tmp_path / "run", kill_at=kill_at)
    assert_identical(drive(ridge, tmp_path / "run"), uninterrupted)


def test_a_finished_run_is_read_and_can_be_extended(ridge, uninterrupted, tmp_path):
    drive(ridge, tmp_path / "run", steps=4)
    assert len(drive(ridge, tmp_path / "run", steps=4).history) == 4
    assert_identical(drive(ridge, tmp_path / "run"), uninterrupted)


def test_it_stays_stopped(ridge, tmp_path):
    first = drive(ridge, tmp_path / "run", tol=1e9)
    again = drive(ridge, tmp_path / "run", tol=1e9)
    assert (first.status, len(first.history)) == ("stationary", 1)
    assert (again.status, len(again.history)) == ("stationary", 1)


@pytest.mark.parametrize(
    "ended",
    [
        {"callbacks": [lambda report: report.step >= 3]},
        {"tol": 1e9},
        {"patience": 1, "min_delta": 9.0},
    ],
)
def test_what_ended_without_being_finished_can_be_continued(ridge, uninterrupted, tmp_path, ended):
    first = drive(ridge, tmp_path / "run", **ended)
    assert first.status != "steps"
    assert len(first.history) < 9
    assert_identical(drive(ridge, tmp_path / "run"), uninterrupted)


def test_a_damaged_file_is_replaced_by_its_backup(ridge, uninterrupted, tmp_path):
    path = tmp_path / "run"
    drive(ridge, path, steps=5)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="cannot be read; continuing from the backup"):
        result = drive(ridge, path)
    assert_identical(result, uninterrupted)


def test_a_death_between_the_two_renames_loses_nothing(ridge, uninterrupted, tmp_path):
    path = tmp_path / "run"
    drive(ridge, path, steps=5)
    path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_identical(drive(ridge, path), uninterrupted)


def test_two_damaged_files_are_an_error_and_not_a_new_start(ridge, tmp_path):
    path = tmp_path / "run"
    drive(ridge, path, steps=5)
    for file in tmp_path.iterdir():
        file.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="expected a readable file"):
        drive(ridge, path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"hparams": jnp.ones(4)}, "hparams"),
        ({"hparams": jnp.zeros((1, 4))[0, :1]}, "inner_loss, outer_loss, hparams"),
        ({"algorithm": SOBA(optax.adam(0.2), 0.3, constraint=Box(-3.0, 1.0))}, "algorithm"),
        ({"sampler": Minibatches(8)}, "sampler"),
        ({"holdout_data": None}, "holdout_data"),
    ],
)
def test_another_problem_is_refused(ridge, tmp_path, change, named):
    drive(ridge, tmp_path / "run", steps=1)
    with pytest.raises(CheckpointError, match=f"another problem: it differs in {named}\\. Choose"):
        drive(ridge, tmp_path / "run", **change)


def test_another_loss_is_refused_even_if_only_a_constant_differs(ridge, tmp_path):
    def problem(factor):
        table = jnp.full(4, factor)
        return BilevelProblem(
            lambda w, h, b: ridge.problem.inner(w, h, b) + jnp.sum(table * w**2),
            ridge.problem.outer,
        )

    drive(ridge, tmp_path / "run", steps=1, problem=problem(0.1))
    drive(ridge, tmp_path / "run", steps=2, problem=problem(0.1))
    with pytest.raises(CheckpointError, match="differs in inner_loss"):
        drive(ridge, tmp_path / "run", problem=problem(0.2))


class Rate:
    def __init__(self, rate):
        self.rate = rate

    def at(self, step):
        return self.rate


@pytest.mark.parametrize("make", [lambda r: lambda step: r, lambda r: Rate(r).at])
def test_another_function_of_the_same_name_is_refused(ridge, tmp_path, make):
    def algorithm(rate):
        return SOBA(optax.sgd(make(rate)), step_size=0.3)

    path = tmp_path / "run"
    drive(ridge, path, steps=1, algorithm=algorithm(0.1))
    with pytest.raises(CheckpointError, match=r"differs in algorithm\. Choose"):
        drive(ridge, path, steps=2, algorithm=algorithm(0.5))
    assert len(drive(ridge, path, steps=2, algorithm=algorithm(0.1)).history) == 2


def test_every_flipped_bit_is_noticed_and_the_backup_serves(tmp_path):
    path = tmp_path / "state"
    files.save(path, jnp.arange(3.0), {"a": "1"}, {"n": 1})
    files.save(path, jnp.arange(1.0, 4.0), {"a": "1"}, {"n": 2})
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(good), size=300):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.warns(UserWarning, match="continuing from the backup"):
            tree, extra = files.load(path, jnp.zeros(3), {"a": "1"})
        np.testing.assert_array_equal(tree, [0.0, 1.0, 2.0])
        assert extra == {"n": 1}
    (tmp_path / "state.bak").unlink()
    with pytest.raises(CheckpointError, match="it is damaged"):
        files.load(path, jnp.zeros(3), {"a": "1"})


def test_the_format_of_the_first_version_is_named(tmp_path):
    np.savez(tmp_path / "old.npz", header=np.zeros(3))
    with pytest.raises(CheckpointError, match="expected format 2, received 1"):
        files.load(tmp_path / "old.npz", jnp.zeros(3), {})


def test_links_are_followed_and_orphans_overwritten(tmp_path):
    (tmp_path / "disk").mkdir()
    path, link = tmp_path / "disk" / "state", tmp_path / "link"
    link.symlink_to(path)
    (tmp_path / "disk" / ".state.tmp").write_bytes(b"of a process that was killed")
    files.save(link, jnp.zeros(3), {}, {})
    files.save(link, jnp.ones(3), {}, {})
    assert link.is_symlink()
    assert sorted(file.name for file in path.parent.iterdir()) == ["state", "state.bak"]
    np.testing.assert_array_equal(files.load(path, jnp.zeros(3), {})[0], 1.0)


def test_a_failed_save_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "state"
    files.save(path, jnp.arange(3.0), {"a": "1"}, {"n": 1})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        files.save(path, jnp.zeros(3), {"a": "1"}, {"n": 2})
    tree, extra = files.load(path, jnp.zeros(3), {"a": "1"})
    np.testing.assert_array_equal(tree, [0.0, 1.0, 2.0])
    assert extra == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_every_dtype_is_kept_bit_for_bit(tmp_path):
    tree = {
        "bf16": jnp.asarray([1.1, -3.3], jnp.bfloat16),
        "f32": jnp.asarray([0.1, jnp.nan], jnp.float32),
        "int": jnp.asarray(7),
        "flag": jnp.asarray([True, False]),
        "key": jax.random.key(5),
        "function": jnp.tanh,
    }
    files.save(tmp_path / "state", tree, {}, {})
    like = eqx.filter_eval_shape(lambda: tree)
    back, _ = files.load(tmp_path / "state", like, {})
    assert back["function"] is jnp.tanh
    for name in ("bf16", "f32", "int", "flag"):
        assert back[name].dtype == tree[name].dtype
        assert np.asarray(back[name]).tobytes() == np.asarray(tree[name]).tobytes()
    np.testing.assert_array_equal(
        jax.random.normal(back["key"], (2,)), jax.random.normal(tree["key"], (2,))
    )


SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    import jax
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp, numpy as np, optax
    from hypergrad import BilevelProblem
    from hypergrad.outer import SOBA, Minibatches, run

    path, out, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
    data = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)))
    problem = BilevelProblem(
        lambda w, h, b: jnp.mean((b @ w - 1) ** 2) + jnp.sum(jnp.exp(h) * w**2),
        lambda w, h, b: jnp.mean((b @ w - 1) ** 2),
    )

    def kill(report):
        if report.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    result = run(
        problem, SOBA(optax.adam(0.1)), jnp.zeros(3), jnp.zeros(3), data[:20], data[20:],
        steps=8, sampler=Minibatches(5), checkpoint=path, checkpoint_seconds=0.0,
        callbacks=[kill],
    )
    np.savez(out, *jax.tree.leaves(result.state))
    """
)


def test_a_process_killed_by_the_system_resumes_bit_for_bit(tmp_path):
    def launch(path, out, kill_at):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / path), str(tmp_path / out)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.run([*command, str(kill_at)], env=env, check=False).returncode

    assert launch("whole", "whole.npz", -1) == 0
    assert launch("cut", "cut.npz", 5) == -signal.SIGKILL
    assert not (tmp_path / "cut.npz").exists()
    assert launch("cut", "cut.npz", -1) == 0
    whole, cut = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "cut.npz")
    assert whole.files == cut.files
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], cut[name])
