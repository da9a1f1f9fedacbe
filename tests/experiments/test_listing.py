"""What can be run is listed, and the quick path of each experiment runs and holds its claims."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.harness.command import listing
from tests.compiling import optimised

ROOT = Path(__file__).parents[2]
KEYS = {"name", "paper", "settings", "versions", "seconds", "plots", "tables", "claims"}


def run(*arguments):
    flags = optimised(os.environ.get("XLA_FLAGS", ""))
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "Agg", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # at which it says where each thread is
        printed, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


def test_every_experiment_is_listed_with_a_line():
    printed = run("experiments").stdout
    for name, line in listing("experiments").items():
        assert line.endswith(".")
        assert f"{name} " in printed
        assert line in printed


@pytest.mark.parametrize("name", listing("experiments"))
def test_the_quick_path_runs_and_its_claims_hold(name, tmp_path):
    done = run(f"experiments.{name}", "--quick", "--out", str(tmp_path))
    if "is not on this machine" in done.stderr:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() >= KEYS
    assert results["name"] == name
    assert results["plots"] or results["tables"]
    assert all(claim["holds"] for claim in results["claims"])
    assert "data:image/png" in (tmp_path / "index.html").read_text()
