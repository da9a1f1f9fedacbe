"""The record of a run: one JSON form for experiments and benchmarks, kept under `records/`.

    {"kind": "experiments", "name": ..., "title": ..., "paper": ..., "command": ..., "settings": {},
     "date": ..., "commit": ..., "machine": ..., "versions": {}, "seconds": ..., "plots": {},
     "pictures": [], "tables": {}, "findings": [], "claims": [], "sources": {}}

`plots` are drawn from their numbers whenever the site is built, `pictures` are PNG files beside the
record. `sources` are fingerprints of the files whose code the run depends on.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness.sources import ROOT, fingerprints
from strategies.page import write_atomically

RECORDS = ROOT / "records"
KINDS = ("experiments", "benchmarks")

DISTRIBUTIONS = (
    "hypergrad-engine",
    "jax",
    "numpy",
    "scipy",
    "equinox",
    "optax",
    "scikit-learn",
    "optuna",
    "ray",
    # What benchmarks compare with.
    "jaxopt",
    "optimistix",
    "torch",
    "torchopt",
    "betty-ml",
)

# A committed curve is a picture a few hundred pixels wide, and its numbers have that precision.
POINTS = 200
DIGITS = 6


def new(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    """A record of the run that ends now, `parts` added to what every record says.

    Numbers that are not finite become null.

    **Arguments:**

    - `kind`: `"experiments"` or `"benchmarks"`, the package that `name` is a module of.
    """
    about = {
        "kind": kind,
        "name": name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "sources": fingerprints(ROOT / kind / f"{name}.py"),
    }
    return plain({**about, **parts})


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Write `folder/results.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def read(kind: str, name: str) -> dict[str, Any]:
    """The record under `records/`.

    **Raises:** `FileNotFoundError` that names the command which makes it.
    """
    path = RECORDS / kind / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"No record {path}: run `python -m {kind} record {name}`.")
    return json.loads(path.read_text(encoding="utf-8"))


def kept(kind: str) -> list[str]:
    """Names of the records of a kind."""
    return sorted(path.stem for path in (RECORDS / kind).glob("*.json"))


def keep(folder: Path) -> Path:
    """Take the run that `folder` holds into `records/`: its numbers shortened, its pictures."""
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    record["settings"].pop("out", None)
    for plot in record["plots"].values():
        plot["curves"] = {label: thinned(curve) for label, curve in plot["curves"].items()}
    target = RECORDS / record["kind"]
    pictures = target / record["name"]
    shutil.rmtree(pictures, ignore_errors=True)
    if record["pictures"]:
        pictures.mkdir(parents=True)
    for picture in record["pictures"]:
        shutil.copy(folder / picture, pictures / picture)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{record['name']}.json"
    write_atomically(path, json.dumps(rounded(record), indent=1) + "\n")
    return path


def refresh(kind: str, name: str, arguments: Sequence[str] = ()) -> int:
    """Run `python -m KIND.NAME ARGUMENTS` and keep its record, whether or not its claims hold.

    **Returns:** The exit status of the run.

    **Raises:** `FileNotFoundError` if the run left none.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"{kind}.{name}", *arguments, "--out", folder]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not (Path(folder) / "results.json").exists():
            raise FileNotFoundError(f"{kind}.{name} left no results.json (status {status}).")
        print(f"Record: {keep(Path(folder)).relative_to(ROOT)}")
        return status


def stale(kind: str, name: str) -> list[str]:
    """Files that the module imports whose code is not the one that the record was made with."""
    now, then = fingerprints(ROOT / kind / f"{name}.py"), read(kind, name)["sources"]
    return sorted(path for path in now.keys() | then.keys() if now.get(path) != then.get(path))


def thinned(curve: Mapping[str, list]) -> dict[str, list]:
    """At most `POINTS` points of a curve, first and last among them."""
    count = len(curve["x"])
    if count <= POINTS:
        return dict(curve)
    chosen = np.unique(np.linspace(0, count - 1, POINTS).astype(int))
    return {key: [series[i] for i in chosen] for key, series in curve.items()}


def rounded(value: Any) -> Any:
    """Nested values with floats of `DIGITS` significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def commit() -> str | None:
    """The commit that is checked out, with a `+` if tracked files differ; `None` without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> str:
    """Processor, cores that this process may use, and memory, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [platform.machine(), f"{cores} cores"]
    if (cpu := Path("/proc/cpuinfo")).exists():
        named = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
        words[0] = named[0].partition(":")[2].strip() if named else words[0]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        words.append(f"{gigabytes:.0f} GB of memory")
    return ", ".join(words)


def versions() -> dict[str, str]:
    """Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Nested values as JSON knows them: lists for arrays, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
