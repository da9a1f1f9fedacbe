"""The embedded engine under `kill -9`: searches and schedulers lose nothing and repeat nothing."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from strategies.local import minimize
from strategies.observation import Report
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import HypergradientSearcher
from strategies.space import Float, SearchSpace

ROOT = pathlib.Path(__file__).parents[3]
SPACE = SearchSpace({"x": Float(0, 1), "y": Float(1e-3, 1, log=True)})


def bowl(config, resource=1.0):
    x, y = config["x"], config["y"]
    gradient = {"x": 2 * (x - 0.3), "y": 2 * (y - 0.1)}
    return Report((x - 0.3) ** 2 + (y - 0.1) ** 2 + 1 / resource, gradient, cost=1.0)


def search(state_path, seconds=0.0):
    """Twenty trials; returns what was tried, and what came of it."""

    def objective(config):
        time.sleep(seconds)
        return bowl(config)

    found = minimize(
        objective,
        SPACE,
        trials=20,
        searcher=HypergradientSearcher(SPACE, seed=2),
        state_path=state_path,
    )
    return [[o.number, o.config, o.value] for o in found.history]


def schedule(state_path, seconds=0.0):
    """A Hyperband that grows; returns what was tried, and what came of it."""

    def objective(job):
        time.sleep(seconds)
        return bowl(job.config, job.resource)

    scheduler = IterativeDeepeningHyperband(HypergradientSearcher(SPACE, seed=2), 4, eta=2)
    run(objective, scheduler, state_path=state_path)
    scheduler.deepen(8)
    run(objective, scheduler, state_path=state_path)
    return [
        [c.number, level, c.config, o.value]
        for c in scheduler.candidates.values()
        for level, o in c.results.items()
    ]


DRIVER = """
import json, sys
from tests.strategies.local import test_local_kills
print("ready", flush=True)
found = getattr(test_local_kills, sys.argv[1])(sys.argv[2], 0.02)
print(json.dumps(found), flush=True)
"""


def killed(kind, path, times, rng):
    """What the run finds in the end, and how many kills it has survived."""
    survived = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, kind, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        if survived < times:
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            if process.wait(60) == -signal.SIGKILL:
                survived += 1
                continue
        # Not `communicate`: it would miss what the first line's buffer holds of the second.
        out, error = process.stdout.read(), process.stderr.read()
        assert process.wait(120) == 0, error
        return json.loads(out), survived


def check(kind, tmp_path, times):
    """As many runs as it takes to be killed so often."""
    alone = json.loads(json.dumps(globals()[kind](tmp_path / "alone.json")))
    rng = random.Random(0)
    kills = runs = lost = repeated = 0
    while kills < times:
        found, survived = killed(kind, tmp_path / f"{runs}.json", times - kills, rng)
        kills, runs = kills + survived, runs + 1
        keys = [json.dumps(row[:-1]) for row in found]
        lost += len({json.dumps(row[:-1]) for row in alone} - set(keys))
        repeated += len(keys) - len(set(keys))
        assert found == alone
    print(
        f"\nembedded, {kind}: {kills} kills in {runs} runs: "
        f"{lost} observations lost, {repeated} counted twice"
    )


@pytest.mark.parametrize("kind", ["search", "schedule"])
def test_killed_run_decides_as_the_uninterrupted_one(kind, tmp_path):
    check(kind, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["search", "schedule"])
def test_run_killed_twenty_times_decides_as_the_uninterrupted_one(kind, tmp_path):
    check(kind, tmp_path, 20)
