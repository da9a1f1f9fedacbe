"""Ray's own Hyperband beside ours: what the documentation says of both, seen.

Each test fails when Ray has repaired the fault: then the documentation has to change.
"""

import functools
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.schedulers import HyperBandScheduler
from ray.tune.search import Searcher

from strategies.ray import ScheduledSearch, can_restore, restore
from strategies.schedulers import Hyperband
from strategies.searchers import RandomSearcher

pytestmark = pytest.mark.slow
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
ROOT = pathlib.Path(__file__).parents[3]


class Steps(tune.Trainable):
    """The value is the configuration's; NaN for those that say so."""

    seconds = 0.0

    def setup(self, config):
        self.config, self.steps = config, 0

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        self.steps += 1
        time.sleep(self.seconds)
        value = math.nan if self.config["i"] in self.config.get("nan", ()) else self.config["i"]
        return {"loss": value, "steps": self.steps}

    def save_checkpoint(self, checkpoint_dir):
        pathlib.Path(checkpoint_dir, "steps").write_text(str(self.steps))

    def load_checkpoint(self, checkpoint):
        self.steps = int(pathlib.Path(checkpoint, "steps").read_text())


class Slow(Steps):
    seconds = 0.3


class Listening(Searcher):
    """Any search algorithm of Ray: counts upwards, and notes what it is told at the end."""

    def __init__(self):
        super().__init__(metric="loss", mode="min")
        self.ids, self.told = {}, {}

    def suggest(self, trial_id):
        self.ids[trial_id] = len(self.ids)
        return {"i": self.ids[trial_id]}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told[self.ids[trial_id]] = result

    def save(self, checkpoint_path):
        pathlib.Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path):
        pass


def stock(trainable, folder, limit=None, samples=9, **space):
    search = Listening()
    return search, tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=samples,
            max_concurrent_trials=limit,
            search_alg=search,
            reuse_actors=True,
            scheduler=HyperBandScheduler(max_t=9, reduction_factor=3),
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(folder), verbose=0),
    )


def ours(trainable, folder, limit=None, **space):
    search = ScheduledSearch(functools.partial(Hyperband, max_resource=9, eta=3), RandomSearcher)
    return search, tune.Tuner(
        trainable,
        param_space={"i": tune.randint(0, 1000), **space},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=-1,
            max_concurrent_trials=limit,
            search_alg=search,
            reuse_actors=True,
            scheduler=search.trial_scheduler,
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(folder), verbose=0),
    )


@pytest.fixture(scope="module")
def cluster():
    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**27},
    )
    ray.init(address=started.address, logging_level="error", log_to_driver=False)
    yield started.address
    ray.shutdown()
    started.shutdown()


def test_best_trials_of_a_bracket(cluster, tmp_path):
    """Ray ends the trials that wait without their results, those at the full resource too."""
    search, tuner = stock(Steps, tmp_path / "stock")
    results = tuner.fit()
    full = [r.config["i"] for r in results if r.metrics["steps"] >= 3]
    hidden = [i for i in full if search.told.get(i) is None]
    print(f"\nRay's Hyperband: {len(hidden)} of {len(full)} promoted trials end without a result")
    search, tuner = ours(Steps, tmp_path / "ours")
    tuner.fit()
    promoted = [c for c in search.schedule.candidates.values() if len(c.results) > 1]
    print(f"ours: 0 of {len(promoted)}; every result of every rung is known")
    assert hidden
    assert promoted
    assert search.schedule.finished


def test_nan_is_promoted(cluster, tmp_path):
    search, tuner = stock(Steps, tmp_path / "stock", nan=list(range(9))[::2])
    results = tuner.fit()
    promoted = [r for r in results if r.config["i"] % 2 == 0 and r.metrics["steps"] > 1]
    print(f"\nRay's Hyperband: {len(promoted)} trials that report NaN are promoted")
    search, tuner = ours(Steps, tmp_path / "ours", nan=list(range(0, 1000, 2)))
    tuner.fit()
    nan = [c for c in search.schedule.candidates.values() if c.config["i"] % 2 == 0]
    ours_promoted = [c for c in nan if len(c.results) > 1]
    print(f"ours: {len(ours_promoted)} of {len(nan)}")
    assert promoted
    assert nan
    assert not ours_promoted


def test_limited_concurrency(cluster, tmp_path):
    """Ray's opens its second bracket only while the first one's trials live, paused ones too."""
    _, tuner = stock(Steps, tmp_path / "stock", limit=2, samples=12)
    steps = [r.metrics["steps"] for r in tuner.fit()]
    print(
        f"\nRay's Hyperband, two at a time: {steps.count(9)} of {len(steps)} trials run to the end"
    )
    tables = []
    for limit in (None, 2):
        search, tuner = ours(Steps, tmp_path / f"ours-{limit}", limit=limit)
        tuner.fit()
        candidates = search.schedule.candidates.items()
        tables.append({n: {r.resource: r.value for r in c.results.values()} for n, c in candidates})
    ended = sum(9 in results for results in tables[1].values())
    print(f"ours: {ended} of {len(tables[1])}, as without a limit")
    assert steps.count(9) == len(steps)
    assert ended < len(tables[1])
    assert tables[0] == tables[1]


def drive(kind, folder, address):
    ray.init(address=address, logging_level="error", log_to_driver=False)
    experiment = os.path.join(folder, "run")
    print("ready", flush=True)
    if can_restore(experiment):
        tuner = restore(experiment, Slow)
    else:
        _, tuner = globals()[kind](Slow, folder)
    tuner.fit()


def finishes_after_a_kill(kind, folder, address, seconds):
    """Kill the driver after ten reports, and restore it once."""
    folder.mkdir()

    def start():
        return subprocess.Popen(
            [sys.executable, __file__, kind, str(folder), address],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TUNE_GLOBAL_CHECKPOINT_S": "0"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("a"),
        )

    def reports():
        return sum(len(f.read_text().splitlines()) for f in folder.glob("run/*/result.json"))

    process = start()
    deadline = time.monotonic() + 120
    while reports() < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start()
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.kill()
        process.wait()


def test_restored_hyperband(cluster, tmp_path):
    """Ray does not save its schedulers: the restored one waits for reports that never come."""
    began = time.monotonic()
    assert finishes_after_a_kill("ours", tmp_path / "ours", cluster, 240)
    needed = time.monotonic() - began
    limit = max(60.0, 2 * needed)
    finished = finishes_after_a_kill("stock", tmp_path / "stock", cluster, limit)
    print(f"\nrestored after a kill: ours finishes, {needed:.0f} s in all; Ray's own Hyperband has")
    print("finished too" if finished else f"not finished {limit:.0f} s after the restore")
    assert not finished


if __name__ == "__main__":
    drive(*sys.argv[1:])
