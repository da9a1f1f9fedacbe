"""`python -m experiments` and `python -m benchmarks`: list, record, and say what is out of date."""

import argparse
import ast
from collections.abc import Sequence

from experiments.harness import record
from experiments.harness.sources import ROOT


def listing(kind: str) -> dict[str, str]:
    """Name of each module that can be run and the first line of its docstring, not imported."""
    found = {}
    for path in sorted((ROOT / kind).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not path.stem.startswith("_") and 'if __name__ == "__main__"' in text:
            docstring = ast.get_docstring(ast.parse(text))
            found[path.stem] = (docstring or "").partition("\n")[0]
    return found


def main(kind: str, arguments: Sequence[str] | None = None) -> int:
    """Without a part, print the listing.

    - `record NAME [OPTIONS]`: run one with its defaults, or with these options, and keep its record
      under `records/`, which the documentation shows.
    - `stale`: records that are older than the code they depend on, and which files have changed.

    **Returns:** Status of the process.
    """
    names = listing(kind)
    parser = argparse.ArgumentParser(prog=f"python -m {kind}")
    parts = parser.add_subparsers(dest="part")
    recording = parts.add_parser("record", help="run one and keep its record under records/")
    recording.add_argument("name", choices=names)
    recording.add_argument("options", nargs=argparse.REMAINDER, help="of the run")
    parts.add_parser("stale", help="records that are older than their code")
    chosen = parser.parse_args(arguments)
    if chosen.part == "record":
        return record.refresh(kind, chosen.name, chosen.options)
    if chosen.part == "stale":
        for name in record.kept(kind):
            if changed := record.stale(kind, name):
                print(f"{name}: {', '.join(changed)}")
        return 0
    width = max(map(len, names))
    for name, line in names.items():
        print(f"{name:<{width}}  {line}")
    print(f"\nRun one:  python -m {kind}.NAME [--quick] [--out DIR]  (or --help)")
    print(f"For the documentation:  python -m {kind} record NAME;  python -m {kind} stale")
    return 0
