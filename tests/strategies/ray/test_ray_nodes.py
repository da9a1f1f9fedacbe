"""The job template of the documentation, on two nodes that are started as such."""

import os
import re
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "engines" / "cluster.md"
RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    # As the page tells: without it the head may want a token that the job does not send.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray's workers are modest (15): beside other work on the machine they would take minutes.
    "RAY_worker_niceness": "0",
}


STEP = "        self.portions += 1\n"
# A step that takes as long as real ones: until the other node's worker is up. Ray gives the next
# trial to whichever is free first, and these would be over before.
WAIT = """\
        import time
        seen, limit = pathlib.Path({folder!r}), time.monotonic() + 60
        (seen / str(os.getpid())).touch()
        while len(list(seen.iterdir())) < 2 and time.monotonic() < limit:
            time.sleep(0.1)
"""


@pytest.fixture
def nodes(tmp_path):
    """A function that starts a node and waits until it runs; all of them end with the test."""
    started = []

    def start(*arguments):
        command = [RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
        log = tmp_path / f"node-{len(started)}.log"
        with log.open("w") as file:
            node = subprocess.Popen(
                [*command, *arguments], env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
            )
        started.append(node)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert node.poll() is None, log.read_text()
            time.sleep(0.1)

    yield start
    for node in reversed(started):
        node.terminate()
    for node in started:
        node.wait(30)


@pytest.mark.slow
def test_job_template_on_a_head_and_a_worker(nodes, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    nodes("--head", f"--port={address.split(':')[1]}", "--include-dashboard=false")
    nodes(f"--address={address}")
    (job,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert job.count(STEP) == 1
    (tmp_path / "seen").mkdir()
    job = job.replace(STEP, STEP + WAIT.format(folder=str(tmp_path / "seen")))
    (tmp_path / "job.py").write_text(job)
    environment = {
        **ENVIRONMENT,
        "RAY_ADDRESS": address,
        "STORAGE": str(tmp_path / "results"),
    }
    outputs = []
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "job.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        outputs.append(ended.stdout.splitlines()[-1])
    assert outputs[0].endswith("nodes: 2"), ended.stderr + ended.stdout
    # Started again, it finds its work done.
    assert outputs[1] == outputs[0]
