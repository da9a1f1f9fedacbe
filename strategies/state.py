"""State files that survive a kill at any moment, and observations as JSON."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from strategies.observation import Observation
from strategies.plain import (
    constraints_from_json,
    constraints_to_json,
    from_json_values,
    to_json_values,
)
from strategies.space import SearchSpace

if TYPE_CHECKING:
    from strategies.searchers.base import Searcher


def observation_to_json(
    space: SearchSpace, observation: Observation, *, of: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """JSON values of an observation in a space.

    With `of`, a configuration that is stored elsewhere, an observation of that one has none itself.
    Several objectives and constraints are there if the observation has some.
    """
    stored: dict[str, Any] = {
        "number": observation.number,
        "status": observation.status,
        "config": None
        if observation.config == of
        else space.to_json(observation.point or observation.config),
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
    if observation.values:
        stored["values"] = list(observation.values)
    if observation.gradients:
        stored["gradients"] = to_json_values(observation.gradients)
    if observation.constraints:
        stored["constraints"] = constraints_to_json(observation.constraints)
    if observation.constraint_gradients:
        stored["constraint_gradients"] = to_json_values(observation.constraint_gradients)
    return stored


def observation_from_json(
    space: SearchSpace, stored: Mapping[str, Any], *, of: Mapping[str, Any] | None = None
) -> Observation:
    """The observation that `observation_to_json` stored."""
    fields = dict(stored)
    given = fields["config"]
    point = space.point(of or {}) if given is None else space.point_from_json(given)
    fields |= {"config": point.config, "point": point}
    fields["gradient"] = fields["gradient"] and from_json_values(fields["gradient"])
    error = fields["gradient_error"]
    fields["gradient_error"] = None if error is None else float(error)
    fields["values"] = tuple(fields.get("values", ()))
    fields["gradients"] = tuple(
        None if each is None else from_json_values(each) for each in fields.get("gradients", ())
    )
    fields["constraints"] = constraints_from_json(fields.get("constraints", {}))
    fields["constraint_gradients"] = from_json_values(fields.get("constraint_gradients", {}))
    return Observation(**fields)


class OtherSearchError(ValueError):
    """A state that is whole, but of another search than the one it is given to."""


class DamagedError(ValueError):
    """A state that is not whole."""


#: What reading a damaged state may run into.
_DAMAGE = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Whatever goes wrong inside is a damaged state: the one place that decides.

    **Raises:** `OtherSearchError`, which is none, as it is; `DamagedError` for all else.
    """
    try:
        yield
    except (OtherSearchError, DamagedError):
        raise
    except _DAMAGE as error:
        raise DamagedError(
            f"state: expected a whole one, but it is damaged ({error!r:.200})"
        ) from error


@contextlib.contextmanager
def replacing(owner: object) -> Iterator[None]:
    """`reading` that leaves an object as it was if anything goes wrong inside."""
    before = dict(owner.__dict__)
    try:
        with reading():
            yield
    except ValueError:
        owner.__dict__.update(before)
        raise


def as_json(state: Any) -> str:
    """JSON text.

    **Raises:** `ValueError` saying what is no JSON.
    """
    try:
        return json.dumps(state, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"state: expected what JSON can hold, received more ({error})") from None


def search_identity(searcher: "Searcher") -> dict[str, Any]:
    """What a state must have been saved by, to be restored by this searcher."""
    contexts = getattr(searcher, "context", None)
    return {
        "searcher": type(searcher).__name__,
        "seed": searcher.seed,
        "space": searcher.space.identity(),
        **({} if contexts is None else {"context": contexts.space.identity()}),
    }


def expect_search(state: Mapping[str, Any], searcher: "Searcher") -> None:
    """Refuse the state of another searcher, seed or space, but for what the searcher continues.

    **Raises:** `OtherSearchError` naming what differs.
    """
    mine = search_identity(searcher)
    if state["searcher"] in searcher.continues:
        mine["searcher"] = state["searcher"]
    if state["version"] == 1:
        mine["space"] = searcher.space.describe()
    expect(state["space"], mine.pop("space"), "space ")
    expect(state.get("context", {}), mine.pop("context", {}), "context ")
    expect({key: state[key] for key in mine}, mine)


def expect(stored: Mapping[str, Any], mine: Mapping[str, Any], what: str = "") -> None:
    """Refuse a state that says something else than what is expected of it.

    **Raises:** `OtherSearchError` naming the first key that differs.
    """
    for key in {**mine, **stored}:
        if stored.get(key) != mine.get(key):
            raise OtherSearchError(
                f"state: {what}{key!r}: expected {mine.get(key)!r:.200}, "
                f"received {stored.get(key)!r:.200}"
            )


_SEAL = re.compile(rb'\{"checksum": "([0-9a-f]{64})", ')


def seal(text: str) -> str:
    """The JSON text of an object with a checksum as its first key."""
    return f'{{"checksum": "{checksum(text)}", {text[1:]}'


def unseal(content: bytes) -> dict[str, Any]:
    """The object whose sealed text this is, or an object of version 1, which has no checksum.

    **Raises:** `ValueError` if it is damaged.
    """
    with reading():
        found = _SEAL.match(content)
        if found and checksum("{" + content[found.end() :].decode()) != found[1].decode():
            raise ValueError("its checksum is another one")
        state = json.loads(content)
        if not isinstance(state, dict):
            raise ValueError("not a JSON object")
        if found is None and state.get("version") != 1:
            raise ValueError("it has no checksum")
        return state


def whole_line(rest: bytes) -> list[bytes]:
    """The sealed line in what follows a file's last newline, if it lacks no more than its end.

    None if a kill has left its beginning only.
    """
    for line in (rest, rest[:-1]):
        with contextlib.suppress(ValueError):
            unseal(line)
            return [line]
    return []


def checksum(content: str | bytes | memoryview) -> str:
    """Of the JSON text of an object, or of the bytes of a file: 64 digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


#: When each state file was last forced to the disk, and how often that is worth its time.
_synced: dict[str, float] = {}
_SYNC_SECONDS = 1.0


def write_state(path: str | os.PathLike[str], text: str) -> None:
    """Write the JSON text of a state, sealed; the previous one is kept as `path + ".backup"`.

    The file is complete at every moment: it is written under a temporary name and renamed. A kill
    of the process loses nothing; a loss of power may lose the saves of the last second. A link is
    followed, and what killed processes have left under temporary names is removed.
    """
    path = os.path.realpath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    if path not in _synced:
        _remove_orphans(path)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(seal(text))
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


def _remove_orphans(path: str) -> None:
    for name in glob.glob(f"{glob.escape(path)}.*.*"):
        process, ending = name[len(path) + 1 :].split(".", 1)
        if process.isdecimal() and ending in ("tmp", "old") and not _alive(int(process)):
            with contextlib.suppress(OSError):
                os.remove(name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no process of this machine
        pass
    return True


def state_exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a state, or its backup, to restore."""
    path = os.path.realpath(path)
    return os.path.exists(path) or os.path.exists(path + ".backup")


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a state file holds.

    **Raises:** `ValueError` if it is damaged.
    """
    with open(path, "rb") as file:
        return unseal(file.read())


def restore_state(path: str | os.PathLike[str], load: Callable[[dict[str, Any]], None]) -> None:
    """Load what `write_state` wrote, from the backup if the file itself is damaged (a warning).

    **Arguments:**

    - `load`: takes the state over, all of it or nothing. A `ValueError` says that it is damaged.

    **Raises:** `ValueError` if neither can be read, `OtherSearchError` if the first that can be is
    of another search, `FileNotFoundError` if there is neither.
    """
    path = os.path.realpath(path)
    problems: list[str] = []
    for name in (path, path + ".backup"):
        try:
            load(read_state(name))
        except FileNotFoundError:
            problems.append(f"{name} does not exist")
            continue
        except OtherSearchError:
            raise
        except ValueError as error:
            problems.append(f"{name} is truncated or damaged ({error})")
            continue
        if problems:
            warnings.warn(f"{problems[0]}; restored from {name}", stacklevel=3)
        return
    if not state_exists(path):
        raise FileNotFoundError(path)
    raise ValueError(f"state: expected a saved state, but {' and '.join(problems)}")


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


#: Descriptors of the locks that this process holds.
_locks: set[int] = set()


def _let_go() -> None:
    """A forked process has nothing to do with the locks of its parent, and may survive it."""
    for lock in _locks:
        os.close(lock)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold the lock of a state file, so that two runs do not overwrite each other's states.

    The lock, on `path + ".lock"`, ends with the process, however that ends. There is none where the
    system or the file system has no locks.

    **Raises:** `ValueError` if another run holds it, and for a folder.
    """
    if path is not None and os.path.isdir(os.path.realpath(path)):
        raise ValueError(f"state: expected the path of a file, received the folder {path!r:.200}")
    try:
        import fcntl
    except ImportError:  # pragma: no cover -- Windows
        path = None
    if path is None:
        yield
        return
    lock = os.open(f"{os.fspath(path)}.lock", os.O_WRONLY | os.O_CREAT, 0o666)
    _locks.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"'state_path': expected a file of this run only, but another run works on {path}"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        # Not in a process that was forked inside: it has let go, and the number may be another's.
        if lock in _locks:
            _locks.remove(lock)
            os.close(lock)
