"""`python -m experiments` and `python -m benchmarks`: list, record, and say what is out of date."""

import argparse
import ast
from collections import Counter
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


def summary(files: Sequence[str]) -> str:
    """How many files have changed, and the three packages with most of them."""
    packages = Counter(path.rpartition("/")[0] for path in files)
    most = ", ".join(f"{package} {count}" for package, count in packages.most_common(3))
    return f"{len(files):>3} files: {most}{', ...' if len(packages) > 3 else ''}"


def main(kind: str, arguments: Sequence[str] | None = None) -> int:
    """Without a part, print the listing.

    - `record NAME [OPTIONS]`: run one with its defaults, or with these options, and keep its record
      under `records/`, which the documentation shows.
    - `stale`: records that are older than the code they depend on, and in which packages it has
      changed most; with `--files`, all changed files.

    **Returns:** Status of the process.
    """
    names = listing(kind)
    parser = argparse.ArgumentParser(prog=f"python -m {kind}")
    parts = parser.add_subparsers(dest="part")
    recording = parts.add_parser("record", help="run one and keep its record under records/")
    recording.add_argument("name", choices=names)
    recording.add_argument("options", nargs=argparse.REMAINDER, help="of the run")
    ageing = parts.add_parser("stale", help="records that are older than their code")
    ageing.add_argument("--files", action="store_true", help="list all changed files")
    chosen = parser.parse_args(arguments)
    if chosen.part == "record":
        return record.refresh(kind, chosen.name, chosen.options)
    if chosen.part == "stale":
        kept = record.kept(kind)
        changed = {name: files for name in kept if (files := record.stale(kind, name))}
        width = max(map(len, changed), default=0)
        for name, files in changed.items():
            print(f"{name:<{width}}  {', '.join(files) if chosen.files else summary(files)}")
        print(f"{len(changed)} of {len(kept)} records are older than their code.")
        return 0
    width = max(map(len, names))
    for name, line in names.items():
        print(f"{name:<{width}}  {line}")
    print(f"\nRun one:  python -m {kind}.NAME [--quick] [--out DIR]  (or --help)")
    print(f"For the documentation:  python -m {kind} record NAME;  python -m {kind} stale")
    return 0
