"""Records: what a run leaves, whether its code has changed since, and how pages show it."""

import importlib
import json
import re
import warnings
from pathlib import Path

import markdown
import pytest
from PIL import Image

from docs.extensions import records as site
from experiments.harness import Experiment, record, sources
from experiments.harness.command import listing, main

ROOT = Path(__file__).parents[2]
KEPT = [(kind, name) for kind in record.KINDS for name in record.kept(kind)]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


RIDGE = """from hypergrad import cg

if __name__ == "__main__":
    cg(3)
"""


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A project of two packages with one experiment, and its own shelf of records."""
    for path, text in {
        "experiments/__init__.py": "",
        "experiments/ridge.py": RIDGE,
        "hypergrad/__init__.py": "from .linear import cg\nfrom hypergrad.maid import maid\n",
        "hypergrad/linear.py": '"""Solvers."""\n\ndef cg(x):\n    """Solve."""\n    return x\n',
        "hypergrad/maid.py": "def maid():\n    pass\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    for module in (record, sources):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(record, "RECORDS", tmp_path / "records")
    forget()
    yield tmp_path
    forget()


def declared(name) -> Experiment:
    """The experiment that a module declares."""
    module = importlib.import_module(f"experiments.{name}")
    return next(found for found in vars(module).values() if isinstance(found, Experiment))


def forget():
    for cached in (sources.parsed, sources.fingerprint, sources.imports):
        cached.cache_clear()


def made(folder, **parts):
    """A small run of `ridge` in `folder`, kept."""
    curve = {"x": list(range(1000)), "y": [1 / 3] * 1000}
    axes = {"x": "step", "y": "loss", "x_scale": "linear", "y_scale": "log", "title": ""}
    run = {
        "title": "Ridge.",
        "paper": "ours",
        "command": "python -m experiments.ridge",
        "settings": {"quick": False, "out": folder},
        "seconds": 7.0,
        "plots": {"fall": {"curves": {"a|b": curve}, **axes}},
        "pictures": ["digits.png"],
        "tables": {"losses": [{"method": "a|b", "loss": 0.123456789, "holds": None}]},
        "findings": [],
        "claims": [
            {"key": "gap", "claim": "small", "measured": 0.5, "bound": "<= 1", "holds": True}
        ],
    } | parts
    Image.new("RGB", (4, 4)).save(folder / "digits.png")
    record.write(record.new("experiments", "ridge", **run), folder)
    record.keep(folder)
    return record.read("experiments", "ridge")


def test_a_record_is_kept_short_with_its_pictures(shelf, tmp_path):
    kept = made(tmp_path)
    assert "out" not in kept["settings"]
    assert kept["tables"]["losses"][0]["loss"] == 0.123457
    curve = kept["plots"]["fall"]["curves"]["a|b"]
    assert (len(curve["x"]), curve["x"][0], curve["x"][-1]) == (200, 0, 999)
    assert (shelf / "records/experiments/ridge/digits.png").exists()
    assert record.kept("experiments") == ["ridge"]


def test_a_record_knows_the_code_that_it_depends_on_and_no_other(shelf, tmp_path):
    assert set(made(tmp_path)["sources"]) == {"experiments/ridge.py", "hypergrad/linear.py"}
    assert record.stale("experiments", "ridge") == []


@pytest.mark.parametrize(
    ("path", "old", "new", "changed"),
    [
        ("hypergrad/linear.py", "return x", "return x + 1", ["hypergrad/linear.py"]),
        ("hypergrad/linear.py", '"""Solve."""', '"""Solve it."""  # at once', []),
        ("hypergrad/maid.py", "pass", "return 1", []),
        ("experiments/ridge.py", "cg(3)", "cg(4)", ["experiments/ridge.py"]),
        ("experiments/ridge.py", "cg(3)", "cg(3, claims=[1])", []),
    ],
)
def test_a_record_is_stale_where_code_that_counts_has_changed(
    shelf, tmp_path, capsys, path, old, new, changed
):
    made(tmp_path)
    source = shelf / path
    source.write_text(source.read_text().replace(old, new))
    forget()
    assert record.stale("experiments", "ridge") == changed
    end = f"{len(changed)} of 1 records are older than their code.\n"
    package = path.partition("/")[0]
    for option, line in ([], f"  1 files: {package} 1"), (["--files"], path):
        assert main("experiments", ["stale", *option]) == 0
        assert capsys.readouterr().out == (f"ridge  {line}\n" if changed else "") + end


def test_a_page_shows_what_the_record_holds(shelf, tmp_path):
    made(tmp_path)

    def shown(marker):
        return site.render(f"So: {{{{ record ridge {marker} }}}}!")

    assert shown("table losses method loss") == (
        "So: *losses*\n\n| method | loss |\n| --- | ---: |\n| a\\|b | 0.1235 |!"
    )
    uneven = {"losses": [{"method": "a", "loss": 1.0}, {"method": "b", "steps": 2}]}
    table = site.table({"tables": uneven}, "losses", "method", "steps")
    assert table.endswith("| a |  |\n| b | 2 |")
    assert shown("measured gap") == shown("value losses 'a\\|b' loss").replace("0.1235", "0.5")
    assert "| small | 0.5 | `<= 1` | holds |" in shown("claims")
    assert "`python -m experiments.ridge`: 7 seconds on " in shown("run")
    for picture in ("fall", "digits"):
        assert re.search(
            rf'<img .*alt="ridge: {picture}" src="data:image/png', shown(f"picture {picture}")
        )


def test_the_extension_makes_html_of_what_a_marker_shows(shelf, tmp_path):
    made(tmp_path)
    text = "# Page\n\n{{ record ridge table losses }}\n\n{{ record ridge picture fall }}\n"
    html = markdown.markdown(text, extensions=["tables", "docs.extensions.records"])
    assert "<td>a|b</td>" in html
    assert "<img " in html


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("lasso run", "python -m experiments record lasso"),
        ("ridge table loss", "expected one of .'losses'"),
        ("ridge table losses time", "time"),
        ("ridge picture rise", "expected one of .'digits', 'fall'"),
        ("ridge measured speed", "expected one of .'gap'"),
        ("ridge value losses c loss", "expected one of"),
        ("ridge colour", "colour"),
    ],
)
def test_what_a_record_does_not_hold_is_an_error_of_the_page(shelf, tmp_path, marker, complaint):
    made(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        site.render(f"{{{{ record {marker} }}}}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_marker_of_the_site_has_its_record(page):
    assert "{{ record" not in site.render(page.read_text())


@pytest.mark.parametrize("name", record.kept("experiments"))
def test_a_record_has_the_claims_of_its_experiment(name):
    """Whoever adds a claim or moves a bound runs the experiment again."""
    kept = record.read("experiments", name)
    experiment = declared(name)
    options = experiment.parse(["--quick"] if kept["settings"]["quick"] else [])
    for key, value in kept["settings"].items():
        setattr(options, key, value)
    expected = {
        claim.key: claim.check(0.0, quick=options.quick)["bound"]
        for claim in experiment.deciding(options)
    }
    assert {claim["key"]: claim["bound"] for claim in kept["claims"]} == expected


@pytest.mark.parametrize("name", listing("experiments"))
def test_the_quick_run_decides_all_claims(name):
    experiment = declared(name)
    claims = {
        flag: {claim.key for claim in experiment.deciding(experiment.parse(flag.split()))}
        for flag in ("", "--quick")
    }
    assert claims["--quick"] == claims[""]


def test_records_older_than_their_code_are_listed():
    """A list and no failure: nobody measures anew what a refactoring cannot have changed."""
    old = [f"{kind}/{name}" for kind, name in KEPT if record.stale(kind, name)]
    if old:
        warnings.warn(f"Records older than their code: {', '.join(old)}.", stacklevel=1)
    gone = [f"{kind}/{name}" for kind, name in KEPT if name not in listing(kind)]
    assert not gone


def test_a_record_is_plain_json_without_paths_of_a_machine():
    for kind, name in KEPT:
        text = json.dumps(record.read(kind, name), allow_nan=False)
        assert str(Path.home()) + "/" not in text
        assert '"/' not in text
