"""The Python blocks of the README and of the site run as they are printed.

In the README each block is a program of its own; on a page of the site all blocks together are one.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def programs(page: Path) -> list[str]:
    """Sources padded with empty lines, so that a traceback gives the line of the page."""
    text = page.read_text()
    blocks = [
        (text.count("\n", 0, match.start(2)), re.sub(f"(?m)^{match[1]}", "", match[2]))
        for match in FENCE.finditer(text)
    ]
    if page.name == "README.md":
        return ["\n" * line + source for line, source in blocks]
    lines = [""] * text.count("\n")
    for line, source in blocks:
        lines[line : line + source.count("\n")] = source.splitlines()
    return ["\n".join(lines)] if blocks else []


#: What a page needs besides our own dependencies.
NEEDS = {"pytorch.md": "torch"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = [
    pytest.param(page, source, id=f"{page.relative_to(ROOT)}:{len(source) - len(source.lstrip())}")
    for page in PAGES
    for source in programs(page)
]


def test_blocks_keep_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\na = 1\n```\n\n    ```python\n    b = a\n    ```\n")
    assert programs(page) == ["\n\n\na = 1\n\n\n\nb = a\n"]


@pytest.mark.parametrize(("page", "source"), PROGRAMS)
def test_the_blocks_run(page, source, tmp_path):
    if page.name in NEEDS and importlib.util.find_spec(NEEDS[page.name]) is None:
        pytest.skip(f"needs {NEEDS[page.name]}")
    launch = "import sys; exec(compile(sys.stdin.read(), sys.argv[1], 'exec'))"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", launch, str(page)],
        input=source,
        cwd=tmp_path,
        # Ray would else join the cluster of a test in another process, and hang when that ends.
        env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
