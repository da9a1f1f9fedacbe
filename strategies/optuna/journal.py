"""A journal file that heals after a full disk or a kill, and notices when it is damaged."""

import json
import os
from collections.abc import Generator
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file

from strategies import arguments
from strategies.state import checksum, seal, whole_line


class JournalFile(JournalFileBackend):
    """Optuna's journal file, without half lines.

    A write that is interrupted leaves half of a line. Optuna's own backend then appends the next
    line to it, after which the study cannot be read any more. This one takes back what it could not
    write to its end, and cuts off what another process has left: nobody has read that.

    Used like `JournalFileBackend`: `JournalStorage(JournalFile("study.journal"))`. Both may work on
    the same file.
    """

    def __init__(self, file_path: str | os.PathLike[str], lock_obj: Any = None) -> None:
        path = arguments.file_path("file_path", file_path)
        super().__init__(os.fspath(path), lock_obj)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines that will be read whole or not at all, each with a checksum."""
        lines = "".join(seal(_text(log)) + "\n" for log in logs)
        with get_lock_file(self._lock), open(self._file_path, "r+b", buffering=0) as file:
            end = _end_of_lines(file)
            file.truncate(end)
            file.seek(end)
            content = memoryview(lines.encode())
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The whole lines from a number on.

        **Raises:** `ValueError` naming the line that is damaged.
        """
        offsets = self._log_number_offset
        start = max(number for number in offsets if number <= log_number_from)
        with open(self._file_path, "rb") as file:
            file.seek(offsets[start])
            for number, line in enumerate(file, start):
                if not line.endswith(b"\n") and whole_line(line) != [line[:-1]]:
                    return  # another process is writing it, or was killed
                if number >= log_number_from:
                    yield self._log(number, line)
                offsets[number + 1] = offsets[number] + len(line)

    def _log(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            log: dict[str, Any] = json.loads(line)
            # Optuna's own lines have no checksum.
            stored = log.pop("checksum", None)
            if stored is not None and stored != checksum(_text(log)):
                raise ValueError("its checksum is another one")
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(
                f"journal: expected whole lines, but line {number + 1} of {self._file_path} is "
                f"damaged ({error})"
            ) from error
        return log


def _text(log: dict[str, Any]) -> str:
    return json.dumps(log, separators=(",", ":"))


def _end_of_lines(file: Any) -> int:
    """Where the last complete line of a file ends."""
    end = int(file.seek(0, os.SEEK_END))
    while end:
        start = max(end - 65_536, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0
