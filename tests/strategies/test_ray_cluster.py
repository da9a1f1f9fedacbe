"""`HypergradSearch` in real experiments on a local Ray cluster."""

import json
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
from ray.tune.schedulers import HyperBandScheduler

from strategies.ray import HypergradSearch, report, result
from strategies.searchers import RandomSearcher

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two CPUs, no dashboard."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


def tuner(trainable, tmp_path, search, param_space, *, samples, mode="min", **options):
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode=mode,
            num_samples=samples,
            search_alg=search,
            reuse_actors=True,
            **options,
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(tmp_path), verbose=0),
    )


def test_one_experiment_with_all_that_may_happen_in_it(tmp_path):
    """Nested space, placeholders, gradients, arrays, a trial that raises, one that reports NaN."""

    def train(config):
        import jax.numpy as jnp

        assert config["helper"](2) == 4
        kind = config["n"]["kind"]
        if kind == "raise":
            raise RuntimeError("on purpose")
        l2 = jnp.asarray(config["n"]["l2"])
        loss = jnp.sum(l2**2)
        gradient = {"n": {"l2": 2 * l2}}
        report(
            math.nan if kind == "nan" else loss,
            gradient if kind == "gradient" else None,
            metric="loss",
            info={"inner_residual": jnp.float32(1e-3)},
        )

    param_space = {
        "n": {
            "l2": [tune.uniform(0.1, 1)] * 3,
            "kind": tune.choice(["gradient", "none", "nan", "raise"]),
        },
        "helper": lambda x: 2 * x,
    }
    kinds = ["gradient", "none", "nan", "raise", "gradient"]
    search = HypergradSearch(
        RandomSearcher, points_to_evaluate=[{"n": {"kind": kind}} for kind in kinds]
    )
    results = tuner(train, tmp_path, search, param_space, samples=5, max_concurrent_trials=2).fit()
    assert len(results) == 5
    assert results.num_errors == 1
    history = {o.number: o for o in search.searcher_.history}
    assert [history[i].status for i in range(5)] == [
        "complete",
        "complete",
        "failed",
        "failed",
        "complete",
    ]
    assert history[0].gradient["n/l2"] == pytest.approx([1.1] * 3, rel=1e-6)
    assert history[1].gradient is None
    assert history[0].cost > 0
    assert search.searcher_.pending == []
    logged = json.loads((pathlib.Path(results[0].path) / "result.json").read_text().splitlines()[0])
    assert logged["hypergrad"]["info"]["inner_residual"] == pytest.approx(1e-3)


def test_the_best_trials_of_a_stock_hyperband_are_seen(tmp_path):
    """Ray ends paused trials without their result; we keep the last report."""

    class Train(tune.Trainable):
        def setup(self, config):
            self.x = config["x"]

        def reset_config(self, new_config):
            self.x = new_config["x"]
            return True

        def step(self):
            return result(-self.x / self.iteration if self.iteration else -self.x, metric="loss")

        def save_checkpoint(self, checkpoint_dir):
            pathlib.Path(checkpoint_dir, "x").write_text(str(self.x))

        def load_checkpoint(self, checkpoint):
            self.x = float(pathlib.Path(checkpoint, "x").read_text())

    search = HypergradSearch(RandomSearcher)
    results = tuner(
        Train,
        tmp_path,
        search,
        {"x": tune.uniform(0, 1)},
        samples=4,
        scheduler=HyperBandScheduler(max_t=4, reduction_factor=2),
        mode="max",
    ).fit()
    assert results.num_errors == 0
    assert [o.status for o in search.searcher_.history] == ["complete"] * 4
    best = max(r.metrics["loss"] for r in results)
    assert -search.searcher_.best.value == pytest.approx(best)


DRIVER = """
import sys, time, json, os
import ray
from ray import tune
from strategies.ray import HypergradSearch, report
from tests.strategies.test_ray_search import Descent

folder, mode = sys.argv[1:]

def train(config):
    time.sleep(0.3)
    report((config["x"] - 0.3) ** 2, {"x": 2 * (config["x"] - 0.3)}, metric="loss")

if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False,
             object_store_memory=100 * 2**20)
    if mode == "restore":
        tuner = tune.Tuner.restore(folder + "/run", train)
    else:
        tuner = tune.Tuner(
            train,
            param_space={"x": tune.uniform(0, 1), "hook": print},
            tune_config=tune.TuneConfig(
                metric="loss", mode="min", num_samples=8, reuse_actors=True,
                search_alg=HypergradSearch(Descent, seed=1, max_concurrent=1),
            ),
            run_config=tune.RunConfig(name="run", storage_path=folder, verbose=0),
        )
    results = tuner.fit()
    trials = results._experiment_analysis.trials
    trials = sorted(trials, key=lambda t: int(t.experiment_tag.split("_")[0]))
    json.dump([t.config["x"] for t in trials], open(folder + "/" + mode + ".json", "w"))
"""


def run_driver(folder, mode):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TUNE_GLOBAL_CHECKPOINT_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), mode],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{mode}.log").open("w"),
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_driver_is_restored_and_decides_as_if_nothing_had_happened(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert run_driver(tmp_path / "whole", "whole").wait(240) == 0
    process = run_driver(tmp_path / "killed", "killed")
    deadline = time.time() + 120
    while len(list((tmp_path / "killed").glob("run/train_*/result.json"))) < 4:
        assert time.time() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert run_driver(tmp_path / "killed", "restore").wait(240) == 0
    whole = json.loads((tmp_path / "whole" / "whole.json").read_text())
    restored = json.loads((tmp_path / "killed" / "restore.json").read_text())
    assert len(whole) == 8
    assert restored == whole
