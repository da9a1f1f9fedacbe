"""`python -m experiments`: list what can be run, a line each."""

import ast
from pathlib import Path


def listing() -> dict[str, str]:
    """Name of each experiment and the first line of its docstring, without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith("_"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            found[path.stem] = (docstring or "").partition("\n")[0]
    return found


def main() -> None:
    """Print the listing."""
    experiments = listing()
    width = max(map(len, experiments), default=0)
    for name, line in experiments.items():
        print(f"{name:<{width}}  {line}")
    print("\nRun one:  python -m experiments.NAME [--quick] [--seed N] [--out DIR]  (or --help)")


if __name__ == "__main__":
    main()
