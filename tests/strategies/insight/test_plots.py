"""Pictures show what was seen, for every kind of axis and history."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from strategies import (
    Categorical,
    Choice,
    Float,
    Int,
    Observation,
    Ordered,
    Ordinal,
    RandomSearcher,
    SearchSpace,
    Simplex,
)
from strategies.importance import importance
from strategies.schedulers import ASHA, Hyperband, run
from strategies.space import Logit
from strategies.surrogates.gaussian_process import GaussianProcess

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection

from strategies import plots

SPACE = SearchSpace(
    {
        "lr": Float(1e-4, 1.0, log=True),
        "l2": Float(1e-6, 1.0, log=True, shape=(2,)),
        "mask": Float(0, 1, shape=(6,)),
        "momentum": Logit(0.1, 0.999),
        "model": Choice({"svm": {"C": Float(0.01, 100, log=True)}, "mlp": {"w": Int(8, 64)}}),
        "cost $": Categorical(["a", "b$_$", None]),
        "batch": Ordinal([16, 32, 64]),
        "split": Simplex(3),
        "knots": Ordered(0, 1, 2),
        "fixed": 3,
    }
)


def seen(count, value=lambda config: config["lr"]):
    rng = np.random.default_rng(0)
    found = []
    for i, config in enumerate(SPACE.sample(rng) for _ in range(count)):
        slope = {"lr": 1.0, "l2": [0.0, 1.0], "mask": [1.0] * 6}
        found.append(
            Observation(config, value(config), slope, cost=1.0 + i, number=i if i > 1 else None)
        )
    return found


HISTORIES = {
    "many": [*seen(20), Observation(SPACE.default(), None, number=20)],
    "negative values": seen(8, lambda config: -config["lr"]),
    "one value": seen(8, lambda config: 1.0),
    "one trial": seen(1),
    "pruned": [
        Observation(o.config, 1.0, status="pruned", number=i) for i, o in enumerate(seen(3))
    ],
    "all failed": [Observation(o.config, None, number=i) for i, o in enumerate(seen(3))],
    "none": [],
}


@pytest.mark.parametrize("observations", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("draw", [plots.history, plots.slices, plots.parallel, plots.contours])
def test_every_picture_of_every_history_can_be_drawn(draw, observations, tmp_path):
    figure = draw(observations, SPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a layout that does not fit
        figure.savefig(tmp_path / "figure.png", dpi=40)


def test_slices_have_a_slope_where_a_gradient_was_reported():
    figure = plots.slices(seen(10), SPACE, names=["lr", "mask", "model/kind"])
    lines = [[c for c in axes.collections if isinstance(c, LineCollection)] for axes in figure.axes]
    assert [len(found[0].get_segments()) if found else 0 for found in lines] == [10, 10, 0]
    # value = lr on logarithmic axes: every tangent rises by its own width.
    for axes in figure.axes[:1]:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        for (x0, y0), (x1, y1) in lines[0][0].get_segments():
            assert np.log(y1 / y0) == pytest.approx(np.log(x1 / x0), rel=1e-9)


def test_the_ring_is_at_the_best_feasible_trial():
    space = SearchSpace({"x": Float(0, 1), "y": Float(0, 1)})
    told = [
        Observation({"x": x, "y": 0.5}, x, number=n, constraints={"c": 0.3 - x})
        for n, x in enumerate([0.1, 0.4, 0.9])
    ]
    two = plots.contours(told, space=space, x="x", y="y")
    for axes in (plots.slices(told, space).axes[0], two.axes[0]):
        ring = axes.collections[-1]
        assert len(ring.get_offsets()) == 1
        assert ring.get_offsets()[0][0] == pytest.approx(0.4)
    best = next(
        line for line in plots.parallel(told, space).axes[0].lines if line.get_label() == "best"
    )
    assert best.get_ydata()[0] == pytest.approx(0.4)


def test_the_history_has_the_best_so_far_at_the_largest_resource():
    space = SearchSpace({"x": Float(0, 1)})
    scheduler = run(
        lambda job: job.config["x"] + 1 / job.resource,
        Hyperband(RandomSearcher(space), max_resource=9),
    )
    axes = plots.history(scheduler).axes[0]
    best = next(line for line in axes.get_lines() if line.get_label() == "best so far")
    assert best.get_ydata()[-1] == scheduler.incumbent.value
    assert {"at 9", "at 3", "at 1"} <= set(axes.get_legend_handles_labels()[1])


def test_the_front_is_what_no_cheaper_trial_beats():
    space = SearchSpace({"x": Float(0, 1)})
    pairs = [(1.0, 5.0), (2.0, 6.0), (3.0, 2.0), (4.0, 2.0), (5.0, 1.0)]
    found = [Observation({"x": 0.5}, value, cost=cost) for cost, value in pairs]
    line = plots.front(found, space).axes[0].get_lines()[0]
    assert list(zip(*line.get_data(), strict=True)) == [(1.0, 5.0), (3.0, 2.0), (5.0, 1.0)]
    with pytest.raises(ValueError, match="with a cost"):
        plots.front([Observation({"x": 0.5}, 1.0)], space)


def test_brackets_count_configurations():
    space = SearchSpace({"x": Float(0, 1)})
    for scheduler, counts in (
        (Hyperband(RandomSearcher(space), max_resource=9), ["9", "3", "1", "5", "1", "3"]),
        (ASHA(RandomSearcher(space), max_resource=9, configurations=9), None),
    ):
        run(lambda job: job.config["x"], scheduler)
        shown = [text.get_text().strip() for text in plots.brackets(scheduler).axes[0].texts]
        assert shown == counts if counts else shown[0] == "9"
    with pytest.raises(ValueError, match="'scheduler': expected"):
        plots.brackets(3)


def test_paths_of_a_population_and_of_one_run():
    rows = [{"lr": 0.1 / (t + 1), "net": {"drop": [0.1, 0.2 * t]}, "act": "relu"} for t in range(5)]
    figure = plots.paths({"a": rows, "b": rows[:3]}, names=["lr", "net/drop", "act"])
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 4, 2]
    assert len(plots.paths(rows, steps=[0, 10, 20, 30, 40]).axes) == 3
    with pytest.raises(ValueError, match="'names': expected some of"):
        plots.paths(rows, names=["nothing"])


def test_bars_for_shares():
    bars = plots.shares(importance(seen(12), SPACE)).axes[0].patches
    assert len(bars) == sum(domain.size > 0 for domain in SPACE.domains.values())


@pytest.mark.parametrize("tried", [20, 900])
def test_a_picture_of_a_thousand_choices_is_not_a_thousand_times_the_work(tried, monkeypatch):
    """Not the time is counted, but the numbers that the process is asked about."""
    space = SearchSpace({"c": Categorical([f"c{i}" for i in range(1000)]), "x": Float(0, 1)})
    found = [
        Observation({"c": f"c{i}", "x": (7 * i % tried) / tried}, float(i % 10))
        for i in range(tried)
    ]
    asked = []

    def predict(process, x):
        asked.append(x.size)
        return np.zeros(len(x)), np.ones(len(x))

    monkeypatch.setattr(GaussianProcess, "predict", predict)
    axes = plots.contours(found, space).axes[0]
    assert sum(asked) <= 1.1e8
    # All trials are there, and few choices beside theirs.
    assert len(axes.collections[-2].get_offsets()) == tried
    low, high = axes.get_xlim() if axes.get_xlabel() == "c" else axes.get_ylim()
    assert high - low == (tried + 20 if tried < 400 else 1000)


def test_a_probability_is_drawn_by_its_odds():
    figure = plots.slices(seen(8), SPACE, names=["momentum"])
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel() == "momentum"]
    assert axes.get_xscale() == "logit"
    drawn = axes.collections[0].get_offsets()[:, 0]
    np.testing.assert_allclose(drawn, [o.config["momentum"] for o in seen(8)], rtol=1e-9)


def test_names_that_are_not_there_are_an_error():
    with pytest.raises(ValueError, match=r"'names': expected some of .* received 'rate'"):
        plots.slices(seen(3), SPACE, names=["rate"])
    with pytest.raises(ValueError, match="expected two axes"):
        plots.contours([], SearchSpace({"x": Float(0, 1)}))


def test_the_error_without_matplotlib_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import strategies.plots"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "hypergrad-engine[plots]"' in done.stderr
