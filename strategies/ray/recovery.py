"""Restoring an experiment whose driver was killed in the middle of a write.

Ray writes the state of an experiment in place, and copies it to the storage path file by file. A
kill at the wrong moment leaves a file cut short; `Tuner.restore` then logs an error and begins the
experiment again, with one sample. So each save also leaves a copy of all that belongs together: one
file, complete at every moment, from which `restore` puts back what is damaged.
"""

import json
import logging
import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ray import cloudpickle, tune
from ray.tune.experiment import Trial

from strategies.state import unseal

logger = logging.getLogger(__name__)

#: Names of files, with a place for a time, and what raises an error for one that is damaged.
_Checks: TypeAlias = Mapping[str, Callable[[bytes], Any]]

#: The copy, in the folder of the experiment.
SNAPSHOT = "hypergrad-snapshot.zip"

#: How the experiment is described: written when it is started, and again at each restore.
TUNER = "tuner.pkl"
EXPERIMENT = "experiment_state-{}.json"
GENERATOR = "search_gen_state-{}.json"
SEARCHER = "searcher-state-{}.pkl"

#: In the generator's state: what belongs to a `Repeater` around the search.
_REPEATER = "name:Repeater"

#: Ray writes the reports of all trials into one file; a copy that is larger is not one of ours.
_LARGEST = 4 * 2**30

#: Why Ray's controller has ended a run; without these it begins with what the tuner says.
_ENDED = ("_stopper", "_has_errored", "_should_stop_experiment")


def restore(path: str | os.PathLike[str], trainable: Any, **options: Any) -> tune.Tuner:
    """`Tuner.restore`, after putting back what a kill in the middle of a write has damaged.

    Trials that ended with the whole run (`time_budget_s`, a stopper's `stop_all`, `fail_fast`) are
    run on, and budget and stopper begin anew; for Ray those trials are finished, and so would be
    the experiment.

    **Arguments:**

    - `path`: the folder of the experiment, from a trusted place: Ray loads pickles from it. A URI
      is passed on as it is: object stores do not keep half of a file.
    - `trainable`, `options`: as for `Tuner.restore`.

    **Returns:** The `Tuner`, to be continued with `fit()`.

    **Raises:** `ValueError` if nothing can be restored: the driver was killed before its first
    save, or the state is damaged and so is its copy. Ray itself would begin again with one sample.
    """
    path = _place(path)
    if os.path.isdir(path):
        problem = _repaired(Path(path))
        if problem:
            raise ValueError(f"'path': expected an experiment that was saved, but {problem}")
        _reopen(Path(path))
    return tune.Tuner.restore(path, trainable, **options)


def can_restore(path: str | os.PathLike[str]) -> bool:
    """Whether `restore` will find a state; otherwise the experiment has to be started.

    Unlike `Tuner.can_restore`, which is content with the description of the experiment. A question
    only: nothing is written, and no pickle is loaded.
    """
    path = _place(path)
    return _restorable(Path(path)) if os.path.isdir(path) else tune.Tuner.can_restore(path)


def _place(path: str | os.PathLike[str]) -> str:
    """A URI as it is; Ray takes no other path that does not begin at the root."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"'path': expected that of an experiment, received {path!r:.80}")
    given = os.fspath(path)
    return given if "://" in given else os.path.abspath(os.path.expanduser(given))


def experiment_folder(state: Any) -> Path | None:
    """Where an experiment is kept, from its state; `None` before the first trial.

    No folder of this machine if it is kept in an object store.
    """
    for stored, _ in state["trial_data"][:1]:
        return Path(Trial.from_json_state(stored, stub=True).storage.experiment_fs_path)
    return None


def take_snapshot(folder: Path, staging: Path, searcher: str, session: str) -> None:
    """Copy all that belongs together into one file, which is complete at every moment.

    **Arguments:**

    - `folder`: of the experiment. Its description is there, complete while it runs.
    - `staging`: where Ray has just written its own state, and the searcher that of its own.
    - `searcher`: the name of the latter.
    - `session`: the name of the run.
    """
    state, generator = EXPERIMENT.format(session), GENERATOR.format(session)
    # The generator's comes after ours: it may be that of the save before, or of the run before.
    generators = sorted(staging.glob(GENERATOR.format("*")))
    files = {TUNER: folder / TUNER, state: staging / state, searcher: staging / searcher}
    if generators:
        files[generator] = generators[-1]
    temporary = folder / f"{SNAPSHOT}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, path in files.items():
                    if path.exists():
                        archive.write(path, name)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / SNAPSHOT)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _repaired(folder: Path) -> str | None:
    """Put back what is damaged; returns what is wrong if that is not possible."""
    damaged, vital = _problems(folder, LOADED)
    if not damaged:
        return None
    try:
        files = _copy(folder, damaged, LOADED)
    except ValueError as error:
        return str(error) if vital else None
    for name, content in files.items():
        _put(folder / name, content)
    logger.warning("%s; put back from %s", "; ".join(damaged), SNAPSHOT)
    return None


def was_cut_off(status: str, result: Mapping[str, Any] | None) -> bool:
    """Whether a trial was ended with the whole run: those that end otherwise are told so."""
    return status == Trial.TERMINATED and not (result or {}).get("done")


def _reopen(folder: Path) -> None:
    """Let trials run on that the end of the run has cut off, and the searcher be asked again."""
    newest = [sorted(folder.glob(t.format("*")))[-1:] for t in (SEARCHER, EXPERIMENT, GENERATOR)]
    if not all(newest):
        return
    searcher, experiment, generator = (found[0] for found in newest)
    try:
        live = unseal(searcher.read_bytes())["live"]
    except (OSError, ValueError, LookupError):
        return  # no search of ours, or one that its backup replaces
    given = cloudpickle.loads(generator.read_bytes())
    if not given.get("finished"):
        return
    state = json.loads(experiment.read_bytes())
    for name in _ENDED:
        state["runner_data"].pop(name, None)
    # Of the trials that a repeater makes of one of ours, the searcher knows the first only.
    repeated = _REPEATER in given
    for stored in state["trial_data"]:
        trial = json.loads(stored[0])
        result = json.loads(stored[1]).get("last_result")
        ours = repeated or trial["trial_id"] in live
        if ours and was_cut_off(trial["status"], result):
            stored[0] = json.dumps(trial | {"status": Trial.PENDING})
    _put(experiment, json.dumps(state).encode())
    # A searcher that has finished says so again.
    _put(generator, cloudpickle.dumps({**given, "finished": False}))


def is_repeated(folder: Path) -> bool:
    """Whether the searches in a folder were wrapped by Ray's `Repeater`; loads no pickle."""
    found = sorted(folder.glob(GENERATOR.format("*")))
    return bool(found) and _REPEATER.encode() in found[-1].read_bytes()


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # whatever it may be a link to
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _restorable(folder: Path) -> bool:
    """Whether `_repaired` will succeed; writes nothing and loads no pickle."""
    damaged, vital = _problems(folder, RAYS)
    if not vital:
        return True
    try:
        _copy(folder, damaged, RAYS)
    except ValueError:
        return False
    return True


def _problems(folder: Path, checks: _Checks) -> tuple[list[str], bool]:
    """What is damaged, and whether Ray cannot do without it."""
    damaged = _damaged(folder, checks)
    # A searcher has its backup, which may be older than Ray's trials; the copy fits together.
    begun = any(folder.glob(SEARCHER.format("*")))
    searcher = _damaged(folder, {SEARCHER: unseal}) if begun else []
    return [*damaged, *searcher], bool(damaged)


def _copy(folder: Path, damaged: list[str], checks: _Checks) -> dict[str, bytes]:
    """The files of the copy; if pickles may be loaded, with the generator's count of the trials.

    **Raises:** `ValueError` saying what is wrong with it.
    """
    files: dict[str, bytes] = {}
    known = {**checks, SEARCHER: unseal}
    kinds: dict[str, str] = {}
    try:
        with zipfile.ZipFile(folder / SNAPSHOT) as archive:
            for member in archive.infolist():
                kind = next((t for t in known if _is_named(member.filename, t)), None)
                if kind is None or member.file_size > _LARGEST:
                    raise ValueError(
                        f"{damaged[0]}, and its copy holds a file that does not belong there: "
                        f"{member.filename!r}"
                    )
                kinds[member.filename] = kind
            for name, kind in kinds.items():
                files[name] = archive.read(name)
                known[kind](files[name])
    except (OSError, zipfile.BadZipFile):
        raise ValueError(f"{damaged[0]}, and there is no copy of it") from None
    except Exception as error:  # whatever an archive with a flipped bit leads its reader to
        if isinstance(error, ValueError) and str(error).startswith(damaged[0]):
            raise
        raise ValueError(f"{damaged[0]}, and so is its copy ({error})") from None
    if not RAYS.keys() <= set(kinds.values()):
        raise ValueError(f"{damaged[0]}, and its copy was made before the first trial")
    if any((folder / name).is_dir() for name in files):
        raise ValueError(f"{damaged[0]}, and a folder stands where its copy belongs")
    if checks is LOADED:
        trials = next(
            len(json.loads(content)["trial_data"])
            for name, content in files.items()
            if _is_named(name, EXPERIMENT)
        )
        for name in [name for name in files if _is_named(name, GENERATOR)]:
            state = cloudpickle.loads(files[name])
            files[name] = cloudpickle.dumps({**state, "counter": trials})
    return files


def _is_named(name: str, template: str) -> bool:
    """Whether a name is that of a template and of nothing outside of the folder."""
    before, _, after = template.partition("{}")
    return re.fullmatch(rf"{re.escape(before)}[\w.-]*{re.escape(after)}", name) is not None


def _damaged(folder: Path, checks: _Checks) -> list[str]:
    """What cannot be read of the newest files of each kind."""
    problems = []
    for template, check in checks.items():
        found = sorted(folder.glob(template.format("*")))
        if not found:
            problems.append(f"there is no {template.format('*')} in {folder}")
            continue
        try:
            check(found[-1].read_bytes())
        except Exception as error:
            problems.append(f"{found[-1].name} is truncated or damaged ({error})")
    return problems


def _walk(pickled: bytes) -> None:
    """Raise an error unless this is a whole pickle; runs nothing of what is in it."""
    if not pickled:
        raise ValueError("it is empty")
    for _ in pickletools.genops(pickled):
        pass


def _parse_experiment(content: bytes) -> list[list[str]]:
    """The trials of an experiment as Ray writes them, state and reports as texts."""
    state = json.loads(content)
    if not isinstance(state["runner_data"], dict) or not isinstance(state["stats"], dict):
        raise TypeError("expected mappings of what the run was")
    trials: list[list[str]] = state["trial_data"]
    for trial, metadata in trials:
        if not isinstance(json.loads(trial), dict) or not isinstance(json.loads(metadata), dict):
            raise TypeError("expected mappings of what a trial is")
    return trials


def _read_experiment(content: bytes) -> None:
    """Raise an error unless this is what Ray reads of its trials, which may be pickled."""
    for trial, metadata in _parse_experiment(content):
        Trial.from_json_state(trial, stub=True).restore_run_metadata(metadata)


def _load_mapping(content: bytes) -> None:
    """Raise an error unless this is the pickle of a mapping, which is loaded."""
    if not isinstance(cloudpickle.loads(content), dict):
        raise TypeError("expected a mapping")


#: What Ray would stumble over, and how it is read without running anything.
RAYS: _Checks = {TUNER: _walk, EXPERIMENT: _parse_experiment, GENERATOR: _walk}
#: The same where the folder is trusted: a flipped bit may leave a pickle whole and make it another.
LOADED: _Checks = {TUNER: _load_mapping, EXPERIMENT: _read_experiment, GENERATOR: _load_mapping}
