"""Progress is shown where somebody looks, and nowhere else."""

import importlib.util
import io
import sys

import pytest

from strategies import Float, RandomSearcher, SearchSpace
from strategies.local import minimize

SPACE = SearchSpace({"x": Float(0, 1)})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trial(config):
    if config["x"] > 0.9:
        return float("nan")
    return config["x"]


def run(monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    found = minimize(trial, SPACE, trials=30, searcher=RandomSearcher(SPACE), **options)
    monkeypatch.undo()
    return found, stream.getvalue()


@pytest.fixture
def no_rich(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "rich" else real(name)
    )


def test_nothing_where_there_is_no_terminal(monkeypatch):
    assert run(monkeypatch, io.StringIO())[1] == ""
    assert run(monkeypatch, Terminal(), progress=False)[1] == ""


@pytest.mark.usefixtures("no_rich")
def test_a_line_that_is_written_over(monkeypatch):
    found, text = run(monkeypatch, Terminal())
    assert text.count("\n") == 1
    last = text.rstrip().split("\r")[-1]
    failed = sum(item.status == "failed" for item in found.history)
    assert failed > 0
    assert last.split("  ") == [
        "trial 30/30",
        f"best {found.best_value:.6g}",
        f"{failed} failed",
        "0 s left",
    ]


def test_a_bar_of_rich(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    found, text = run(monkeypatch, Terminal())
    assert "30/30" in text
    assert f"best {found.best_value:.6g}" in text


def test_a_file_has_a_line_for_each_tenth(monkeypatch):
    _, text = run(monkeypatch, io.StringIO(), progress=True)
    assert [line.split()[1] for line in text.splitlines()] == [f"{n}/30" for n in range(0, 31, 3)]


def test_a_search_that_is_done_shows_nothing(monkeypatch):
    found, _ = run(monkeypatch, io.StringIO())
    monkeypatch.setattr(sys, "stderr", Terminal())
    minimize(trial, SPACE, trials=30, searcher=found.ledger)
    assert sys.stderr.getvalue() == ""
