"""Dependencies point one way, experiments -> strategies -> hypergrad, and imports stay light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = {"ray", "optuna", "sklearn", "jaxopt"}
FORBIDDEN = {
    "hypergrad": {"strategies", "experiments", "benchmarks", *ENGINES},
    "strategies": {"experiments", "benchmarks", "jaxopt"},
}
SOURCES = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]
#: Of the packages whose names are imported on first use.
STUBS = sorted((ROOT / "strategies").rglob("*.pyi"))


def imported_packages(source: str) -> set[str]:
    """Names of the top-level packages imported anywhere in a source, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def loaded_by(*modules: str) -> set[str]:
    """Packages that a fresh process holds after importing `modules`, and SciPy's parts."""
    code = "; ".join(
        [f"import {', '.join(modules)}", "import sys, json", "print(json.dumps(list(sys.modules)))"]
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    names = json.loads(run.stdout)
    return {name.partition(".")[0] for name in names} | {n for n in names if n.startswith("scipy.")}


def modules_of(package: str, without: set[str] = frozenset()) -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if not any(f"{name}.".startswith(w) for w in without))


def test_the_scan_sees_imports_inside_functions():
    assert imported_packages("def f():\n    import ray.tune\n    from optuna import x") == {
        "ray",
        "optuna",
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_points_upwards(path):
    package = path.relative_to(ROOT).parts[0]
    assert not imported_packages(path.read_text()) & FORBIDDEN[package]


def test_the_core_loads_no_engine():
    loaded = loaded_by(*modules_of("hypergrad"))
    assert "hypergrad" in loaded
    assert not loaded & FORBIDDEN["hypergrad"]
    # A fifth of the time that the import takes, for nothing but a quantile.
    assert "scipy.stats" not in loaded


def test_the_space_and_the_observations_load_neither_jax_nor_an_engine():
    loaded = loaded_by("strategies.space", "strategies.observation")
    assert not loaded & {"jax", *ENGINES}


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_a_package_offers_the_names_of_its_stub(stub):
    name = ".".join(stub.parent.relative_to(ROOT).parts)
    package = pytest.importorskip(name)
    offered = {alias.name for node in ast.parse(stub.read_text()).body for alias in node.names}
    assert set(package.__all__) == offered <= set(dir(package))
    assert all(getattr(package, each) is not None for each in offered)
    with pytest.raises(AttributeError, match=f"{name!r} has no attribute 'nonsense'"):
        _ = package.nonsense


def test_a_package_with_a_stub_loads_none_of_its_names():
    loaded = loaded_by("strategies", "strategies.searchers", "strategies.population")
    assert not loaded & {"numpy", "jax", "scipy", *ENGINES}


def test_only_the_faces_load_their_engine():
    faces = {f"strategies.{name}." for name in ENGINES}
    loaded = loaded_by(*modules_of("strategies", without=faces))
    assert not loaded & ENGINES
