"""A scheduled search under Ray's own limiter, with progress printed."""

import functools
import os
import pathlib
import time

import pytest
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter

from strategies.ray import BracketProgress, ScheduledSearch, result
from strategies.schedulers import Hyperband, run
from strategies.searchers import BayesSearcher
from strategies.space import Float, SearchSpace


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Three CPUs, one more than the limit."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


class Steps(tune.Trainable):
    """Writes down when each of its steps began and ended."""

    def setup(self, config):
        self.x, self.log, self.steps = config["x"], config["log"], 0

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        began = time.time()
        time.sleep(0.03)
        self.steps += 1
        with open(self.log, "a") as log:
            log.write(f"{began} {time.time()}\n")
        return result((self.x - 0.3) ** 2 + 1 / self.steps, metric="loss")

    def save_checkpoint(self, checkpoint_dir):
        pathlib.Path(checkpoint_dir, "steps").write_text(str(self.steps))

    def load_checkpoint(self, checkpoint):
        self.steps = int(pathlib.Path(checkpoint, "steps").read_text())


def test_limited_hyperband_with_a_model_fills_its_rungs_and_says_so(tmp_path, capsys):
    log = tmp_path / "log"
    search = ScheduledSearch(
        functools.partial(Hyperband, max_resource=4, eta=2), BayesSearcher, seed=3
    )
    tune.Tuner(
        Steps,
        param_space={"x": tune.uniform(0, 1), "log": str(log)},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=-1,
            search_alg=ConcurrencyLimiter(search, max_concurrent=2),
            scheduler=search.trial_scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[BracketProgress(search, seconds=0.0)],
        ),
    ).fit()
    schedule = search.schedule
    assert schedule.finished
    alone = run(
        lambda job: (job.config["x"] - 0.3) ** 2 + 1 / job.resource,
        Hyperband(BayesSearcher(SearchSpace({"x": Float(0, 1)}), seed=3), 4, eta=2),
    )
    # As much was trained as without a limit, each step once, and never three at a time.
    assert schedule.spent == alone.spent
    steps = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert len(steps) == schedule.spent_resumed == alone.spent_resumed
    assert max(sum(a <= t < b for a, b in steps) for t, _ in steps) <= 2
    # The first rung is drawn before there is a model: the same configurations.
    first = next(alone.brackets()).numbers
    assert [schedule.candidates[n].config["x"] for n in first] == [
        alone.candidates[n].config["x"] for n in first
    ]
    assert {c.note["origin"] for c in schedule.candidates.values()} == {"startup", "model"}
    # A bracket of four, one of three and one of three: said while it ran, and at the end.
    printed = capsys.readouterr().out
    assert printed.count("iteration 0, bracket from 1: ") > 3
    last = printed.rstrip().splitlines()[-3:]
    assert last[0] == "iteration 0, bracket from 1: 1: 4/4, 2: 2/2, 4: 1/1"
    assert last[2] == "iteration 0, bracket from 4: 4: 3/3"


def test_rung_that_ray_saved_before_its_search_did_is_not_reported_again():
    """A kill between the two saves; the trial goes on behind the rung, from its checkpoint."""
    schedule = functools.partial(Hyperband, max_resource=4, eta=2)
    search = ScheduledSearch(schedule, seed=3)
    search.set_search_properties("loss", "min", {"x": tune.uniform(0, 1)})
    search.suggest("a")
    older = search.get_state()
    report = {"loss": 0.2, "training_iteration": 1}
    assert search.reached("a", report) == "PAUSE"

    restored = ScheduledSearch(schedule, seed=3)
    restored.set_state(older)
    trial = Trial("stub", stub=True, trial_id="a")
    trial.run_metadata.last_result = report
    restored.trial_scheduler.on_trial_add(None, trial)
    assert trial.status == Trial.PAUSED
    assert restored.get_state() == search.get_state()
    assert restored.schedule.candidates[0].results[0].value == 0.2
