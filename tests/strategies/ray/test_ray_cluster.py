"""`HypergradSearch` in real experiments on a local Ray cluster."""

import functools
import json
import math
import os
import pathlib

import pytest
import ray
from ray import tune
from ray.tune.schedulers import HyperBandScheduler

from strategies.ray import (
    HypergradSearch,
    ScheduledSearch,
    report,
    result,
    worker_environment,
)
from strategies.schedulers import ASHA, IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher
from strategies.space import Float, SearchSpace
from strategies.state import seal


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Two CPUs, no dashboard, a compilation cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env=worker_environment(2, compilation_cache=str(folder)),
    )
    yield folder
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


def test_one_experiment_with_all_that_may_happen_in_it(tmp_path, cluster):
    """Nested space, placeholders, gradients, arrays, a trial that raises, one that reports NaN."""

    def train(config):
        import jax.numpy as jnp

        assert config["helper"](2) == 4
        assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
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
    history = {o.number: o for o in search.ledger.history}
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
    assert search.ledger.pending == []
    assert any(cluster.iterdir())  # trials keep what they compiled for each other
    logged = json.loads((pathlib.Path(results[0].path) / "result.json").read_text().splitlines()[0])
    assert logged["hypergrad"]["info"]["inner_residual"] == pytest.approx(1e-3)

    # A state that is older than Ray's trials, as a kill between its files leaves it, catches up.
    older = search.get_state()
    older["numbers"] = {i: n for i, n in older["numbers"].items() if n < 2}
    (lost,) = (i for i, n in older["numbers"].items() if n == 1)
    told = {o["number"]: o for o in older["searcher"]["history"]}
    older["searcher"] |= {
        "history": [told[0]],
        "pending": [{"number": 1, "config": told[1]["config"], "note": {}}],
        "next": 2,
    }
    older["live"] = {lost: {}}
    (tmp_path / "older").mkdir()
    newest = max((tmp_path / "run").glob("experiment_state-*.json"))
    (tmp_path / "older" / newest.name).write_bytes(newest.read_bytes())
    (tmp_path / "older" / "searcher-state-s.pkl").write_text(seal(json.dumps(older)))
    again = HypergradSearch(
        RandomSearcher, points_to_evaluate=[{"n": {"kind": kind}} for kind in kinds]
    )
    again.restore_from_dir(str(tmp_path / "older"))
    assert [(o.number, o.config, o.value) for o in again.ledger.history] == [
        (o.number, o.config, o.value) for o in search.ledger.history
    ]
    assert again.ledger.pending == []


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
    assert [o.status for o in search.ledger.history] == ["complete"] * 4
    best = max(r.metrics["loss"] for r in results)
    assert -search.ledger.best.value == pytest.approx(best)


class Steps(tune.Trainable):
    """Counts its own steps, in its checkpoint; the value is better the longer and the smaller x."""

    def setup(self, config):
        self.x, self.log, self.steps = config["x"], config["log"], 0

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        self.steps += 1
        with open(self.log, "a") as log:
            log.write(".")
        value = self.x + 1 / self.steps
        if self.x > 0.9:
            value = math.nan
        return result(value, {"x": 1.0}, metric="loss", metrics={"steps": self.steps})

    def save_checkpoint(self, checkpoint_dir):
        pathlib.Path(checkpoint_dir, "steps").write_text(str(self.steps))

    def load_checkpoint(self, checkpoint):
        self.steps = int(pathlib.Path(checkpoint, "steps").read_text())


def expected(top, deepened=0):
    """What the same scheduler decides in this process."""
    scheduler = IterativeDeepeningHyperband(
        RandomSearcher(SearchSpace({"x": Float(0, 1)}), seed=5), top, eta=2
    )

    def objective(job):
        x = job.config["x"]
        return math.nan if x > 0.9 else x + 1 / job.resource

    run(objective, scheduler)
    for _ in range(deepened):
        scheduler.deepen()
        run(objective, scheduler)
    return scheduler


def values(scheduler):
    return {
        (c.number, level): o.value
        for c in scheduler.candidates.values()
        for level, o in c.results.items()
    }


def test_hyperband_pauses_resumes_and_grows(tmp_path):
    """The decisions of the scheduler by itself, with every step trained once, under a limit."""

    def experiment(search, name):
        return tune.Tuner(
            Steps,
            param_space={"x": tune.uniform(0, 1), "log": str(log)},
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=-1,
                search_alg=search,
                scheduler=search.trial_scheduler,
                reuse_actors=True,
                max_concurrent_trials=2,
            ),
            run_config=tune.RunConfig(name=name, storage_path=str(tmp_path), verbose=0),
        ).fit()

    def make():
        schedule = functools.partial(IterativeDeepeningHyperband, max_resource=2, eta=2)
        return ScheduledSearch(schedule, RandomSearcher, seed=5)

    log = tmp_path / "log"
    search = make()
    experiment(search, "first")
    alone = expected(2)
    assert search.schedule.finished
    assert values(search.schedule) == values(alone)
    assert search.schedule.incumbent.gradient == {"x": 1.0}
    assert len(log.read_text()) == alone.spent_resumed
    again = make()
    again.restore_from_dir(str(tmp_path / "first"))
    assert values(again.schedule) == values(alone)
    again.schedule.deepen()
    more = experiment(again, "second")
    assert again.schedule.finished
    assert values(again.schedule) == values(expected(2, deepened=1))
    # Continued from the checkpoints of the first experiment: no step is trained twice.
    assert max(r.metrics["steps"] for r in more) == 4
    assert len(log.read_text()) == again.schedule.spent_resumed


def test_asha_with_functions_that_end_early_and_save_nothing(tmp_path, caplog):
    def train(config):
        for step in range(2 if config["x"] < 0.5 else 20):
            report(config["x"] + 1 / (step + 1), metric="loss")

    search = ScheduledSearch(
        functools.partial(ASHA, max_resource=4, eta=2, configurations=6), RandomSearcher, seed=2
    )
    results = tuner(
        train,
        tmp_path,
        search,
        {"x": tune.uniform(0, 1)},
        samples=-1,
        scheduler=search.trial_scheduler,
    ).fit()
    assert results.num_errors == 0
    assert search.schedule.finished
    assert len(search.schedule.candidates) == 6
    assert "without a checkpoint" in caplog.text
    best = search.schedule.incumbent
    assert best.config["x"] == min(c.config["x"] for c in search.schedule.candidates.values())
