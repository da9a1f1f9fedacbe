"""What the project says about itself agrees with itself."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_versions_agree(project, citation):
    changelog = (ROOT / "CHANGELOG.md").read_text()
    latest = re.search(r"^## (\S+) - (\S+)$", changelog, re.MULTILINE)
    assert latest is not None
    assert (project["version"], project["version"]) == (latest[1], citation["version"])
    assert citation["date-released"] == latest[2]
    assert citation["license"] == project["license"]


def test_the_citation_has_what_version_1_2_requires(citation):
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    for reference in citation["references"]:
        assert reference["type"] in {"article", "book", "conference-paper"}
        assert reference["title"]
        assert all(author["family-names"] for author in reference["authors"])
        assert 1900 < reference["year"] < 2100


def test_no_dependency_has_an_upper_bound(project):
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [requirement for group in groups for requirement in group]
    assert not [requirement for requirement in requirements if re.search(r"[<~!]|==", requirement)]
    third_party = [r for r in requirements if not r.startswith(project["name"])]
    assert not [requirement for requirement in third_party if ">=" not in requirement]


def test_every_extra_that_users_need_is_in_all(project):
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(extras) - {
        "all",
        "dev",
        "docs",
        "gymnax",  # one experiment's alone, and it holds JAX back
    }


@pytest.mark.parametrize("package", ["hypergrad", "strategies"])
def test_errors_tell_what_was_expected_and_what_was_received(package):
    """One form of words in both packages: "key: expected ..., received ..."."""
    odd = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Raise) and node.exc):
                continue
            texts = (n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant))
            words = re.findall(r"\w+", " ".join(text for text in texts if isinstance(text, str)))
            if "got" in words or ("received" in words and "expected" not in words):
                odd.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not odd
