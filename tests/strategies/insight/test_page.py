"""The page of a search: self-contained, escaped, and there for any history."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from strategies import Categorical, Float, Observation, RandomSearcher, SearchSpace
from strategies.page import report_page
from strategies.schedulers import Hyperband, run

pytest.importorskip("matplotlib")

SPACE = SearchSpace({"<script>x": Float(0, 1), "c": Categorical(["<b>", "&", "plain"])})


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def seen(count):
    configs = [{"<script>x": i / 10, "c": ["<b>", "&", "plain"][i % 3]} for i in range(count)]
    return [Observation(c, c["<script>x"], number=i, cost=1.0) for i, c in enumerate(configs)]


def test_the_page_is_one_file_with_names_escaped(tmp_path):
    observations = [*seen(9), Observation({"<script>x": 1.0, "c": "&"}, None, number=9)]
    path = report_page(observations, tmp_path / "page.html", SPACE, title="<i>mine</i>")
    text = path.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "i", "link"})
    assert "<script>x" in page.text
    assert "<i>mine</i>" in page.text
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 5
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert not re.findall(r"https?://", text)
    assert "Trials: 9 complete, 1 failed; 0 with a gradient." in page.text


@pytest.mark.parametrize("observations", [seen(1), [Observation(seen(1)[0].config, None)], []])
def test_a_page_of_hardly_anything(observations, tmp_path):
    text = report_page(observations, tmp_path / "page.html", SPACE).read_text()
    assert ("No trial is complete" in text) == (not observations or observations[0].value is None)


def test_several_objectives_have_their_front_and_constraints_their_marks(tmp_path):
    items = [
        Observation(
            o.config, None, number=o.number, values=(x, 1 - x), constraints={"over": x - 0.65}
        )
        for o, x in zip(seen(9), np.arange(9) / 10, strict=True)
    ]
    lost = Observation(items[0].config, None, number=9)
    text = report_page([*items, lost], tmp_path / "page.html", SPACE).read_text()
    page = Page(text)
    assert "Trials: 9 complete, 1 failed; 0 with a gradient, 7 feasible." in page.text
    assert "Best in the first objective: 0 (trial 0)" in page.text
    # The first seven are feasible, and none of them dominates another.
    front = text.split("<h2>Pareto front</h2>")[1].split("</table>")[0]
    assert re.findall("<tr><td>([0-9])</td>", front) == list("0123456")
    assert front.count("knee") == 1
    assert text.count("complete, infeasible") == 2
    assert "<h2>Two objectives</h2>" in text
    trials = text.split("<h2>Trials</h2>")[1].split("</table>")[0]
    assert {row.count("<td>") for row in trials.split("<tr>")[2:]} == {6}


def test_trials_of_a_study_have_their_numbers(tmp_path):
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("a/b", 0, 1), n_trials=3)
    page = Page(report_page(study, tmp_path / "page.html").read_text())
    best = study.best_trial
    assert f"Best: {best.value:.4g} (trial {best.number})" in page.text


def test_a_scheduler_has_its_brackets(tmp_path):
    scheduler = Hyperband(RandomSearcher(SPACE), max_resource=3)
    run(lambda job: job.config["<script>x"], scheduler)
    assert "<h2>Brackets</h2>" in report_page(scheduler, tmp_path / "page.html").read_text()
