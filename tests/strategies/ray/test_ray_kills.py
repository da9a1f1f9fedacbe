"""Ray Tune under `kill -9` of its driver: nothing is lost, nothing counted twice.

The cluster is started by the test and survives; the driver is this file, run as a program.
"""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster

from strategies.local import minimize
from strategies.observation import Report
from strategies.ray import HypergradSearch, ScheduledSearch, can_restore, report, restore, result
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import HypergradientSearcher, RandomSearcher
from strategies.space import Float, SearchSpace

ROOT = pathlib.Path(__file__).parents[3]
SPACE = SearchSpace({"x": Float(0, 1), "y": Float(1e-3, 1, log=True)})
RAY_SPACE = {"x": tune.uniform(0, 1), "y": tune.loguniform(1e-3, 1)}
TRIALS = 30


def bowl(config, resource=1):
    x, y = config["x"], config["y"]
    value = (x - 0.3) ** 2 + (y - 0.1) ** 2 + 1 / resource
    return value, {"x": 2 * (x - 0.3), "y": 2 * (y - 0.1)}


#: By kind of experiment: its searcher, and how many trials run at once.
KINDS = {
    "search": (HypergradientSearcher, 1),
    "schedule": (HypergradientSearcher, 1),
    "parallel": (RandomSearcher, 2),
}


def make(kind, seed, top):
    """The search of an experiment."""
    searcher, concurrent = KINDS[kind]
    if kind == "search":
        return HypergradSearch(searcher, seed=seed, max_concurrent=concurrent)
    schedule = functools.partial(IterativeDeepeningHyperband, max_resource=top, eta=2)
    return ScheduledSearch(schedule, searcher, seed=seed, max_concurrent=concurrent)


def rows(search):
    """What was tried, how far, and what came of it."""
    if isinstance(search, ScheduledSearch):
        return table(search.schedule)
    return [[o.number, 0, o.config, o.value] for o in search.ledger.history]


def table(schedule):
    return [
        [c.number, level, c.config, o.value]
        for c in schedule.candidates.values()
        for level, o in sorted(c.results.items())
    ]


def alone(kind, seed, size):
    """The same run in this process, with no engine at all and never interrupted."""
    searcher = KINDS[kind][0](SPACE, seed=seed)
    if kind == "search":
        found = minimize(
            lambda config: Report(*bowl(config)), SPACE, trials=size, searcher=searcher
        )
        return [[o.number, 0, o.config, o.value] for o in found.history]
    schedule = IterativeDeepeningHyperband(searcher, size, eta=2)
    return table(run(lambda job: Report(*bowl(job.config, job.resource)), schedule))


def function(config):
    """A trial of the search."""
    time.sleep(0.3)
    report(*bowl(config), metric="loss")


class Steps(tune.Trainable):
    """A trial of the schedules: it counts its steps, and knows them from its checkpoint only."""

    def setup(self, config):
        self.config, self.steps = config, 0

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        time.sleep(0.1)
        self.steps += 1
        return result(*bowl(self.config, self.steps), metric="loss")

    def save_checkpoint(self, checkpoint_dir):
        pathlib.Path(checkpoint_dir, "steps").write_text(str(self.steps))

    def load_checkpoint(self, checkpoint):
        self.steps = int(pathlib.Path(checkpoint, "steps").read_text())


def drive(kind, seed, size, folder, address):
    """The driver: starts the experiment, or restores it, and writes down what came of it."""
    ray.init(address=address, logging_level="error", log_to_driver=False)
    trainable = function if kind == "search" else Steps
    experiment = os.path.join(folder, "run")
    print("ready", flush=True)
    if can_restore(experiment):
        tuner = restore(experiment, trainable)
    else:
        search = make(kind, seed, size)
        tuner = tune.Tuner(
            trainable,
            param_space=RAY_SPACE,
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=size if kind == "search" else -1,
                search_alg=search,
                scheduler=None if kind == "search" else search.trial_scheduler,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="run", storage_path=folder, verbose=0),
        )
    results = tuner.fit()
    search = make(kind, seed, size)
    search.restore_from_dir(experiment)
    found = {"rows": rows(search), "errors": results.num_errors}
    pathlib.Path(folder, "found.json").write_text(json.dumps(found))


def start(kind, seed, size, folder, address):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TUNE_GLOBAL_CHECKPOINT_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    return subprocess.Popen(
        [sys.executable, __file__, kind, str(seed), str(size), str(folder), address],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("a"),
        text=True,
    )


def reports(folder):
    """How many reports the trials have made so far."""
    return sum(len(f.read_text().splitlines()) for f in folder.glob("run/*/result.json"))


def wait_for_a_moment(process, folder, rate, rng):
    """Return at a random moment: while it starts or restores, or some reports later."""
    wanted = rng.choice([0, 1, 1, 2, 3])
    if wanted == 0:
        time.sleep(rng.uniform(0.0, 4.0))
        return
    deadline = time.monotonic() + 200  # Ray may wait long for workers of a driver that is dead
    before = reports(folder)
    while reports(folder) < before + rate * wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.4))


def killed(kind, seed, size, folder, address, times, rng):
    """One experiment, killed up to so often; returns what came of it and how often it was."""
    folder.mkdir()
    survived = 0
    while True:
        process = start(kind, seed, size, folder, address)
        try:
            assert process.stdout.readline() == "ready\n", (folder / "log").read_text()[-3000:]
            if survived < times:
                wait_for_a_moment(process, folder, 1 if kind == "search" else 3, rng)
                process.send_signal(signal.SIGKILL)
            code = process.wait(300)
        finally:
            process.kill()
            process.wait()
        if code == -signal.SIGKILL:
            survived += 1
            continue
        assert code == 0, (folder / "log").read_text()[-3000:]
        return json.loads((folder / "found.json").read_text()), survived


def check(kind, size, folder, address, times):
    """As many experiments as it takes to be killed so often."""
    rng = random.Random(0)
    kills = experiments = lost = twice = 0
    while kills < times:
        found, more = killed(
            kind, experiments, size, folder / f"{experiments}", address, times - kills, rng
        )
        expected = json.loads(json.dumps(alone(kind, experiments, size)))
        keys = [tuple(row[:2]) for row in found["rows"]]
        lost += len({tuple(row[:2]) for row in expected} - set(keys))
        twice += len(keys) - len(set(keys))
        kills, experiments = kills + more, experiments + 1
        assert found["errors"] == 0
        assert sorted(found["rows"], key=key) == sorted(expected, key=key)
        text = (folder / f"{experiments - 1}" / "log").read_text()
        print(
            f"\n{kind}, experiment {experiments}: {more} kills, {len(keys)} observations; "
            f"{text.count('put back from')} times a damaged file was put back"
        )
    print(
        f"\nRay Tune, {kind}: {kills} kills of the driver in {experiments} experiments: "
        f"{lost} observations lost, {twice} counted twice"
    )
    assert lost == twice == 0


def key(row):
    return row[0], row[1]


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs; it outlives its drivers."""
    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**27},
    )
    yield started.address
    started.shutdown()


def test_killed_search_decides_as_the_uninterrupted_one(cluster, tmp_path):
    check("search", 6, tmp_path, cluster, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("search", TRIALS), ("schedule", 8), ("parallel", 8)])
def test_driver_killed_twenty_times(kind, size, cluster, tmp_path):
    check(kind, size, tmp_path, cluster, 20)


if __name__ == "__main__":
    drive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
