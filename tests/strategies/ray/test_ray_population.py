"""Trials of Ray Tune in one program: each has its own id, results and checkpoints."""

import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import ray
from ray import tune

from strategies import RandomSearcher
from strategies.population import Population
from strategies.ray import HypergradSearch, ScheduledSearch, population_trainable
from strategies.schedulers import Hyperband
from tests.strategies.population.problem import SPACE, alone, batch, evaluate, init, step


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One processor: the trials take none."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"JAX_ENABLE_X64": "1"}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def population():
    # More than Ray sends along with a call: it has to be there when the actor is started again.
    large = np.zeros(50_000)

    def judged(state, config):
        return evaluate(state, config) + large[0]

    return Population(init, step, judged, 3, space=SPACE, batch=batch)


def tuner(trainable, folder, population, samples, **options):
    search = HypergradSearch(
        RandomSearcher(SPACE, seed=4), metric="value", mode="min", number_key="member"
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=samples,
            max_concurrent_trials=population.size,
            search_alg=search,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name="run", verbose=0, **options),
    )


def values(results):
    return {row.config["member"]: row.metrics["value"] for row in results}


def test_members_are_trials_whose_actor_may_die(population, tmp_path):
    trainable = population_trainable(population, steps=2, iterations=3)
    killed = []

    class Kill(tune.Callback):
        """Ends the actor once, in the middle of the second iterations."""

        def on_trial_result(self, iteration, trials, trial, result, **info):
            if not killed and result["training_iteration"] == 2:
                traces, process = ray.get(trainable.holder.compiled.remote())
                killed.append((traces, process))
                os.kill(process, signal.SIGKILL)

    results = tuner(
        trainable,
        tmp_path,
        population,
        5,
        callbacks=[Kill()],
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
    ).fit()
    assert not results.errors
    assert killed[0][0] == 1
    traces, process = ray.get(trainable.holder.compiled.remote())
    assert traces == 1
    assert process != killed[0][1]
    assert len({row.metrics["trial_id"] for row in results}) == 5
    assert all(row.metrics["training_iteration"] == 3 for row in results)
    assert all(row.checkpoint is not None for row in results)
    local = population.run(RandomSearcher(SPACE, seed=4), trials=5, steps=6)
    assert values(results) == {o.number: o.value for o in local.history}


@pytest.mark.slow
def test_the_trials_of_a_scheduler_that_stops_some(population, tmp_path):
    trainable = population_trainable(population, steps=1, iterations=4)
    scheduler = tune.schedulers.ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2)
    results = tune.Tuner(
        trainable,
        param_space={
            "rate": tune.loguniform(1e-3, 0.3),
            "inner": {"decay": tune.uniform(0, 0.1)},
            "power": 1,
            "member": tune.grid_search([0, 1, 2, 3]),
        },
        tune_config=tune.TuneConfig(
            metric="value", mode="min", scheduler=scheduler, max_concurrent_trials=3
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="run", verbose=0),
    ).fit()
    assert not results.errors
    for row in results:
        config = {k: v for k, v in row.config.items() if k != "member"}
        _, expected = alone(config, row.config["member"], row.metrics["steps"])
        assert row.metrics["value"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"population": 3}, "'population': expected a Population, received 3"),
        ({"steps": 0}, "'steps'"),
        ({"patience": -1.0}, "'patience'"),
    ],
)
def test_options_that_do_not_fit(population, change, words):
    with pytest.raises(ValueError, match=words):
        population_trainable(**{"population": population, "steps": 1, **change})


def test_a_key_that_the_space_has():
    search = HypergradSearch(
        RandomSearcher(SPACE, seed=4), metric="value", mode="min", number_key="rate"
    )
    with pytest.raises(ValueError, match="'number_key': expected a key that the space does not"):
        search.suggest("trial")


@pytest.mark.slow
def test_rungs_pause_and_go_on_from_their_checkpoints(population, tmp_path):
    search = ScheduledSearch(
        functools.partial(Hyperband, max_resource=4, eta=2),
        RandomSearcher(SPACE, seed=4),
        metric="value",
        mode="min",
        number_key="member",
    )
    tune.Tuner(
        population_trainable(population, steps=2, iterations=4),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            max_concurrent_trials=population.size,
            search_alg=search,
            scheduler=search.trial_scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="run", verbose=0),
    ).fit()
    local = population.run(Hyperband(RandomSearcher(SPACE, seed=4), 4, eta=2), steps=2)
    found = {
        (number, search.schedule.resources[level], o.value)
        for number, candidate in search.schedule.candidates.items()
        for level, o in candidate.results.items()
    }
    assert found == {(o.number, o.resource, o.value) for o in local.history}


_DRIVER = """
import json, os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
import ray
from ray import tune
from strategies.population import Population
from strategies.ray import can_restore, population_trainable, restore
from tests.strategies.population.problem import SPACE, batch, evaluate, init, step
from tests.strategies.ray.test_ray_population import tuner, values

ray.init(
    "local", num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False,
    runtime_env={"env_vars": {"JAX_ENABLE_X64": "1"}},
)
folder = sys.argv[1]
seen = []


class Kill(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        seen.append(result)
        # Read when it is needed: a restored run has the callbacks of the run before.
        if len(seen) == int(os.environ["LAST"]):
            os.kill(os.getpid(), signal.SIGKILL)


population = Population(init, step, evaluate, 3, space=SPACE, batch=batch)
trainable = population_trainable(population, steps=2, iterations=3)
path = os.path.join(folder, "run")
if can_restore(path):
    results = restore(path, trainable).fit()
else:
    results = tuner(
        trainable, folder, population, 5, callbacks=[Kill()],
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
    ).fit()
print(json.dumps(values(results)))
"""


@pytest.mark.slow
def test_a_killed_driver_is_restored(population, tmp_path):
    def drive(last):
        return subprocess.run(
            [sys.executable, "-c", _DRIVER, str(tmp_path)],
            env=os.environ | {"TUNE_GLOBAL_CHECKPOINT_S": "0", "LAST": str(last)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert drive(8).returncode == -signal.SIGKILL
    done = drive(-1)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().rpartition("\n")[2])
    local = population.run(RandomSearcher(SPACE, seed=4), trials=5, steps=6)
    assert found == {str(o.number): o.value for o in local.history}
