"""State files that survive a kill at any moment, and observations as JSON."""

import contextlib
import errno
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from strategies.observation import Observation, from_json_values, to_json_values
from strategies.space import SearchSpace


def observation_to_json(
    space: SearchSpace, observation: Observation, *, of: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """JSON values of an observation in a space.

    With `of`, a configuration that is stored elsewhere, an observation of that one has none itself.
    """
    return {
        "number": observation.number,
        "status": observation.status,
        "config": None if observation.config == of else space.to_json(observation.config),
        "value": observation.value,
        "gradient": to_json_values(observation.gradient),
        # Infinity, a gradient known to be unreliable, has no JSON number.
        "gradient_error": None
        if observation.gradient_error is None
        else repr(float(observation.gradient_error)),
        "cost": observation.cost,
        "resource": observation.resource,
        "note": dict(observation.note),
    }


def observation_from_json(
    space: SearchSpace, stored: Mapping[str, Any], *, of: Mapping[str, Any] | None = None
) -> Observation:
    """The observation that `observation_to_json` stored."""
    fields = dict(stored)
    fields["config"] = of if fields["config"] is None else space.from_json(fields["config"])
    fields["gradient"] = fields["gradient"] and from_json_values(fields["gradient"])
    error = fields["gradient_error"]
    fields["gradient_error"] = None if error is None else float(error)
    return Observation(**fields)


#: When each state file was last forced to the disk, and how often that is worth its time.
_synced: dict[str, float] = {}
_SYNC_SECONDS = 1.0


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any] | str) -> None:
    """Write a state, or its JSON text; the previous one is kept as `path + ".backup"`.

    The file is complete at every moment: it is written under a temporary name and renamed. A kill
    of the process loses nothing; a loss of power may lose the saves of the last second.
    """
    path = os.fspath(path)
    text = state if isinstance(state, str) else json.dumps(state, allow_nan=False)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if time.monotonic() - _synced.get(path, -_SYNC_SECONDS) >= _SYNC_SECONDS:
                os.fsync(file.fileno())
                _synced[path] = time.monotonic()
    except BaseException:
        # A full disk: what is there stays, and no half file beside it.
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    if os.path.exists(path):
        kept = f"{path}.{os.getpid()}.old"
        if os.path.exists(kept):
            os.remove(kept)
        # A hard link, so that `path` never disappears.
        try:
            os.link(path, kept)
            os.replace(kept, path + ".backup")
        except OSError:  # a file system without links
            os.replace(path, path + ".backup")
    os.replace(temporary, path)


def save_if_there_is_space(
    save: Callable[[str | os.PathLike[str]], None], path: str | os.PathLike[str]
) -> None:
    """Save; a full disk is a warning, because the run can go on and the next save has it all.

    Other errors (no such folder, no permission) are raised: they will not pass.
    """
    try:
        save(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        warnings.warn(
            f"the state was not saved: {error}; the run goes on, and {os.fspath(path)} keeps what "
            "was saved before",
            stacklevel=4,
        )


@contextlib.contextmanager
def alone_with(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold the lock of a state file, so that two runs do not overwrite each other's states.

    The lock, on `path + ".lock"`, ends with the process, however that ends. There is none where the
    system or the file system has no locks.

    **Raises:** `ValueError` if another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover -- Windows
        path = None
    if path is None:
        yield
        return
    with open(f"{os.fspath(path)}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"'state_path': expected a file of this run only, but another run works on {path}"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_state` wrote, from the backup if the file itself is damaged (with a warning).

    **Raises:** `ValueError` if neither can be read. `FileNotFoundError` if there is neither.
    """
    path = os.fspath(path)
    problems: list[str] = []
    for name in (path, path + ".backup"):
        try:
            with open(name, encoding="utf-8") as file:
                state = json.load(file)
            if not isinstance(state, dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            problems.append(f"{name} does not exist")
            continue
        except ValueError as error:
            problems.append(f"{name} is truncated or damaged ({error})")
            continue
        if problems:
            warnings.warn(f"{problems[0]}; restored from {name}", stacklevel=3)
        return state
    if not os.path.exists(path) and not os.path.exists(path + ".backup"):
        raise FileNotFoundError(path)
    raise ValueError(f"state: expected a saved state, but {' and '.join(problems)}")
