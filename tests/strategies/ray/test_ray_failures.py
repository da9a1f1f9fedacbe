"""Ray Tune when workers die, nodes are lost, disks are full, and trials misbehave."""

import functools
import json
import os
import pathlib
import signal
import sys
import time

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune.search import ConcurrencyLimiter, Repeater

from strategies.ray import HypergradSearch, ScheduledSearch, can_restore, report, restore, result
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher
from strategies.space import Float, SearchSpace

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
SPACE = SearchSpace({"x": Float(0, 1)})


@pytest.fixture(scope="module")
def cluster():
    """A head with two CPUs that notices within seconds when a node is gone."""
    started = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": 2**27,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_failure_threshold": 3,
            },
        },
    )
    ray.init(address=started.address, logging_level="error", log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def experiment(trainable, folder, search, *, samples=-1, param_space=None, retries=0, **options):
    if isinstance(search, ScheduledSearch):
        options["scheduler"] = search.trial_scheduler
    return tune.Tuner(
        trainable,
        param_space={"x": tune.uniform(0, 1), **(param_space or {})},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=samples,
            search_alg=search,
            reuse_actors=True,
            **options,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=retries),
            verbose=0,
        ),
    )


def deepening(top=4):
    schedule = functools.partial(IterativeDeepeningHyperband, max_resource=top, eta=2)
    return ScheduledSearch(schedule, RandomSearcher, seed=5)


def table(scheduler):
    return {
        (c.number, level): o.value
        for c in scheduler.candidates.values()
        for level, o in c.results.items()
    }


def expected(top=4):
    scheduler = IterativeDeepeningHyperband(RandomSearcher(SPACE, seed=5), top, eta=2)
    return table(run(lambda job: job.config["x"] + 1 / job.resource, scheduler))


class Steps(tune.Trainable):
    """Counts its steps, in its checkpoint; with a log, kills itself once at the second step."""

    def setup(self, config):
        self.x, self.log, self.steps = config["x"], config.get("log"), 0

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        self.steps += 1
        if self.log and self.steps == 2 and not os.path.exists(f"{self.log}-{self.x}"):
            pathlib.Path(f"{self.log}-{self.x}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.result()

    def result(self):
        node = ray.get_runtime_context().get_node_id()
        return result(self.x + 1 / self.steps, metric="loss", metrics={"node": node})

    def save_checkpoint(self, checkpoint_dir):
        pathlib.Path(checkpoint_dir, "steps").write_text(str(self.steps))

    def load_checkpoint(self, checkpoint):
        self.steps = int(pathlib.Path(checkpoint, "steps").read_text())


def test_workers_that_are_killed_are_replaced_and_nothing_is_counted_twice(cluster, tmp_path):
    """Every configuration's process dies at its second step, once."""
    search = deepening(2)
    log = str(tmp_path / "log")
    results = experiment(Steps, tmp_path, search, param_space={"log": log}, retries=1).fit()
    kills = len(list(tmp_path.glob("log-*")))
    assert kills >= 2
    assert results.num_errors == 0
    found = table(search.schedule)
    lost = len(expected(2).keys() - found.keys())
    print(f"\nRay Tune, {kills} workers killed: {lost} observations lost")
    assert found == expected(2)


@pytest.mark.slow
def test_worker_that_is_killed_without_a_retry_is_a_failure(cluster, tmp_path):
    def train(config):
        if config["x"] < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        report(config["x"], metric="loss")

    search = HypergradSearch(
        RandomSearcher, points_to_evaluate=[{"x": 0.2}, {"x": 0.7}], max_concurrent=1
    )
    results = experiment(train, tmp_path, search, samples=2).fit()
    assert results.num_errors == 1
    assert [o.status for o in search.ledger.history] == ["failed", "complete"]


class OnBothNodes(Steps):
    """Its steps wait until there are workers on two nodes; Ray takes whichever are up first."""

    def step(self):
        seen, limit = pathlib.Path(self.log), time.monotonic() + 60
        (seen / ray.get_runtime_context().get_node_id()).touch()
        while len(list(seen.iterdir())) < 2 and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(0.3)
        self.steps += 1
        return self.result()


@pytest.mark.slow
def test_node_that_is_lost_costs_no_observation(cluster, tmp_path):
    """A second node is killed as soon as trials have reported from it."""
    node = cluster.add_node(num_cpus=2)
    seen = tmp_path / "seen"
    seen.mkdir()

    class Killer(tune.Callback):
        killed = False

        def on_trial_result(self, iteration, trials, trial, result, **_):
            if result["node"] == node.node_id and not self.killed:
                self.killed = True
                cluster.remove_node(node, allow_graceful=False)

    killer = Killer()
    search = deepening()
    tuner = experiment(OnBothNodes, tmp_path, search, param_space={"log": str(seen)}, retries=3)
    tuner._local_tuner._run_config.callbacks = [killer]
    results = tuner.fit()
    assert killer.killed
    assert results.num_errors == 0
    found = table(search.schedule)
    lost = len(expected().keys() - found.keys())
    print(f"\nRay Tune, 1 node lost: {lost} observations lost")
    assert found == expected()


@pytest.mark.slow
def test_errored_trials_that_are_restarted_take_the_place_of_their_failures(cluster, tmp_path):
    """Once with a new id (restart), once with the old one (resume)."""

    def train(config):
        if config["x"] < 0.5 and not os.path.exists(config["repaired"]):
            raise RuntimeError("on purpose")
        report(config["x"], {"x": 1.0}, metric="loss")

    points = [{"x": 0.2}, {"x": 0.7}, {"x": 0.3}]
    repaired = tmp_path / "repaired"
    for how in ("restart_errored", "resume_errored"):
        search = HypergradSearch(RandomSearcher, points_to_evaluate=points)
        folder = tmp_path / how
        space = {"repaired": str(repaired)}
        results = experiment(train, folder, search, samples=3, param_space=space).fit()
        assert results.num_errors == 2
        repaired.touch()
        results = restore(folder / "run", train, **{how: True}).fit()
        repaired.unlink()
        again = HypergradSearch(RandomSearcher, points_to_evaluate=points)
        again.restore_from_dir(str(folder / "run"))
        history = again.ledger.history
        assert [(o.number, o.value) for o in history] == [(0, 0.2), (1, 0.7), (2, 0.3)], how
        assert history[0].gradient == {"x": 1.0}


@pytest.mark.slow
def test_limiter_and_repeater_around_the_search(cluster, tmp_path):
    def train(config):
        report(config["x"] + config["__trial_index__"], metric="loss")

    # The limiter in between does not pass on the metric of `TuneConfig`.
    search = HypergradSearch(RandomSearcher, seed=1, metric="loss", mode="min")
    wrapped = Repeater(ConcurrencyLimiter(search, max_concurrent=4), repeat=2)
    results = experiment(train, tmp_path, wrapped, samples=6).fit()
    assert len(results) == 6
    history = search.ledger.history
    assert [o.number for o in history] == [0, 1, 2]
    for o in history:
        assert o.value == pytest.approx(o.config["x"] + 0.5)


@pytest.mark.slow
def test_trials_that_hang_hold_up_nobody_else(cluster, tmp_path):
    """The run is stopped when only they are left; restored, they run again."""

    def train(config):
        if config["x"] == 0.25 and not os.path.exists(config["go"]):
            time.sleep(600)
        report(config["x"], metric="loss")

    class Watch(tune.Callback):
        ended = 0

        def on_trial_complete(self, iteration, trials, trial, **_):
            Watch.ended += 1

    class Stop(tune.Stopper):
        def __call__(self, trial_id, result):
            return False

        def stop_all(self):
            return Watch.ended >= 3

    points = [{"x": 0.5}, {"x": 0.25}, {"x": 0.75}, {"x": 0.1}]
    space = {"go": str(tmp_path / "go")}
    search = HypergradSearch(RandomSearcher, points_to_evaluate=points)
    tuner = experiment(train, tmp_path, search, samples=4, param_space=space, time_budget_s=100)
    tuner._local_tuner._run_config.callbacks = [Watch()]
    tuner._local_tuner._run_config.stop = Stop()
    tuner.fit()
    told = {o.number: o.value for o in search.ledger.history}
    assert told == {0: 0.5, 2: 0.75, 3: 0.1}
    assert [s.number for s in search.ledger.pending] == [1]


FULL = 60_000


def full_disk(folder, address):
    """Run on a disk on which no file may become larger than so much."""
    import resource

    ray.init(address=address, logging_level="error", log_to_driver=False)
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0"
    search = HypergradSearch(RandomSearcher, seed=2, max_concurrent=1)
    tuner = experiment(simple, folder, search, samples=12)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))
    tuner.fit()


def simple(config):
    """A trial."""
    report(config["x"], metric="loss")


@pytest.mark.slow
def test_disk_that_is_full_at_save_ends_the_run_and_costs_nothing(cluster, tmp_path):
    """Ray ends it, because it cannot write its own state; with space again it goes on."""
    import subprocess

    root = pathlib.Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, __file__, str(tmp_path), cluster.address],
        env={**os.environ, "PYTHONPATH": str(root), "TUNE_GLOBAL_CHECKPOINT_S": "0"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr[-2000:]
    assert "File too large" in ended.stderr
    assert can_restore(tmp_path / "run")
    restore(tmp_path / "run", simple).fit()
    search = HypergradSearch(RandomSearcher, space=SPACE, seed=2)
    search.restore_from_dir(str(tmp_path / "run"))
    found = [(o.number, o.config, o.value) for o in search.ledger.history]
    alone = RandomSearcher(SPACE, seed=2)
    configs = [alone.propose(i, [], []).config for i in range(12)]
    assert found == [(i, config, config["x"]) for i, config in enumerate(configs)]


def test_files_that_are_cut_short_are_put_back(cluster, tmp_path, caplog):
    """Each of Ray's files, and ours; without the copy a clear error, and no second beginning."""
    search = HypergradSearch(RandomSearcher, seed=2)
    experiment(simple, tmp_path, search, samples=3).fit()
    folder = tmp_path / "run"
    for pattern in ("tuner.pkl", "experiment_state-*", "search_gen_state-*", "searcher-state-*"):
        file = max(folder.glob(pattern))
        file.write_bytes(file.read_bytes()[:40])
        assert can_restore(folder), pattern
        assert len(file.read_bytes()) == 40, "a question changes nothing"
        tuner = restore(folder, simple)
        assert len(file.read_bytes()) > 40, pattern
        if pattern.startswith("experiment"):
            assert len(tuner.fit()) == 3
        again = HypergradSearch(RandomSearcher, seed=2)
        again.restore_from_dir(str(folder))
        assert len(again.ledger.history) == 3, pattern
    assert "experiment_state" in caplog.text
    assert "put back from hypergrad-snapshot.zip" in caplog.text
    for file in [*folder.glob("experiment_state-*"), folder / "hypergrad-snapshot.zip"]:
        file.write_bytes(file.read_bytes()[:40])
    assert not can_restore(folder)
    with pytest.raises(ValueError, match=r"'path': .*experiment_state.* is truncated or damaged"):
        restore(folder, simple)
    for file in folder.glob("experiment_state-*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"there is no experiment_state"):
        restore(folder, simple)


def test_driver_of_ray_loads_no_jax(tmp_path):
    """It would take three quarters of the head node's GPU. Only `population_trainable` needs it."""
    import subprocess

    script = "import sys; from strategies import ray; from strategies.searchers import *; "
    script += "[getattr(ray, n) for n in ray.__all__ if n != 'population_trainable']; ray."
    script += "HypergradSearch(BayesSearcher); print(json.dumps('jax' in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", "import json; " + script],
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout) is False


if __name__ == "__main__":
    full_disk(sys.argv[1], sys.argv[2])
