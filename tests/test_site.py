"""What the builder of the site does not look at: pages in the menu, pictures, public names."""

import importlib
import inspect
import re
import types
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

#: What was measured: decimals, powers of ten, shares, times, sizes of memory.
FIGURE = re.compile(r"\d\.\d|\d[eE]-?\d|\d ?%|\d ?(?:ms|s|seconds|minutes|hours|MB|MiB|GB|GFlop)\b")
#: What is no prose: code, formulas, records, addresses, and the version of a package.
APART = re.compile(
    r"^```.*?^```|^ {4}.*?$|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\{\{.*?\}\}|\]\([^)]*\)|https?://\S+"
    r"|\b(?:version|Python|jax|JAX|lineax|NumPy|SciPy|Optuna|Ray|scikit-learn|Apache)[ -]\d[\d.]*",
    re.MULTILINE | re.DOTALL,
)

#: The paths by which people import.
PUBLIC = [
    "hypergrad",
    "hypergrad.data",
    "hypergrad.evidence",
    "hypergrad.gaussian_process",
    "hypergrad.hypernetwork",
    "hypergrad.learned_optimizer",
    "hypergrad.linear",
    "hypergrad.outer",
    "hypergrad.policy",
    "hypergrad.risk",
    "hypergrad.sampling",
    "hypergrad.schedule",
    "hypergrad.self_tuning",
    "hypergrad.tasks",
    "hypergrad.transfer",
    "hypergrad.unrolled",
    "strategies",
    "strategies.bandits",
    "strategies.benchmark",
    "strategies.desirability",
    "strategies.front",
    "strategies.importance",
    "strategies.laws",
    "strategies.local",
    "strategies.optuna",
    "strategies.plots",
    "strategies.policies",
    "strategies.population",
    "strategies.ray",
    "strategies.schedulers",
    "strategies.sklearn",
    "strategies.sweep",
    "strategies.space.configspace",
    "strategies.space.sklearn",
    "strategies.transfer",
]


def typed(page: str) -> list[str]:
    """The lines of a page's prose that hold a figure, outside code, formulas and records."""
    prose = APART.sub(lambda found: "\n" * found[0].count("\n"), page)
    lines = zip(page.split("\n"), prose.split("\n"), strict=True)
    return [line for line, rest in lines if FIGURE.search(rest)]


def menu(entry):
    """All pages of a part of the menu."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in menu(value)]


def documented() -> list[str]:
    """The import paths that the pages render."""
    return [
        path for page in PAGES for path in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ]


def public(module: types.ModuleType) -> list[str]:
    """The names that a module offers, its own submodules apart."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", "").startswith(module.__name__)
        ]
    return [name for name in names if not isinstance(getattr(module, name), types.ModuleType)]


def test_every_page_is_in_the_menu():
    listed = menu(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_picture_is_there(page):
    for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", page.read_text()):
        assert (page.parent / picture).exists(), picture


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_figures_come_from_records(page):
    """Render what was measured (`docs/extensions/records.py`); write a setting as `code`."""
    assert not typed(page.read_text())


def test_a_typed_figure_is_found():
    page = """Ours takes 0.97 of the time, `0.5` was the aim, $x > 1.5$; JAX 0.10.

| solver | time |
| --- | --- |
| CG | 3e-4 |
| PCG | {{ record peers value searches cg time }} |

```python
assert loss < 0.3
```
It took 14 ms, a tenth of [that](page.md#v1.2).
"""
    found = typed(page)
    assert found == [page.split("\n")[0], "| CG | 3e-4 |", page.split("\n")[-2]]


def test_every_experiment_is_in_the_gallery():
    told = re.findall(r"^## (\w+): ", (DOCS / "experiments.md").read_text(), re.MULTILINE)
    shown = re.findall(r"^## \[(\w+)\]", (DOCS / "gallery.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(told)


def test_a_reference_stands_under_api_alone():
    rendering = [page for page in PAGES if re.search(r"^::: ", page.read_text(), re.MULTILINE)]
    assert not [page for page in rendering if DOCS / "api" not in page.parents]


def test_no_name_is_documented_twice():
    assert not [path for path, count in Counter(documented()).items() if count > 1]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    pytest.importorskip(name)
    module = importlib.import_module(name)
    rendered = [path.rpartition(".") for path in documented()]
    objects = {
        id(getattr(importlib.import_module(home), last))
        for home, _, last in rendered
        if home.split(".")[0] == name.split(".")[0]
    }
    assert not [each for each in public(module) if id(getattr(module, each)) not in objects]


@pytest.mark.parametrize("package", ["hypergrad", "strategies"])
def test_a_page_shows_an_object_where_a_module_has_its_name(package):
    """`strategies.local.minimize` is a function to Python, and a module to the builder."""
    griffe = pytest.importorskip("griffe")
    read = griffe.load(package, search_paths=[str(ROOT)])
    paths = [path.partition(".") for path in documented()]
    assert not [rest for name, _, rest in paths if name == package and read[rest].is_module]


def test_constructors_taken_over_from_a_base_are_shown_with_their_arguments():
    griffe = pytest.importorskip("griffe")
    extensions = griffe.load_extensions("docs.extensions.modules")
    core = griffe.load("hypergrad", extensions=extensions, search_paths=[str(ROOT)])
    for path in ("unrolled.forward.ForwardUnrolled", "unrolled.online.OnlineUnrolled"):
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(f"hypergrad.{module}"), name)
        shown = [parameter.name for parameter in core[path].parameters]
        assert shown == list(inspect.signature(kind.__init__).parameters)
