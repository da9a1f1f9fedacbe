"""The harness: options, claims, results, page, exit status."""

import json
import re

import numpy as np
import pytest

from experiments.harness import Claim, Context, Curve, Option, experiment


def toy(measured, *, claims=None, body=None):
    """An experiment that measures `measured` for its one claim."""

    @experiment(
        paper="ours",
        options=[
            Option("steps", 10, quick=3, help="steps"),
            Option("method", "cg", choices=("cg", "neumann")),
            Option("deep", False),
        ],
        claims=claims or [Claim("gap", "the gap is small", at_most=0.5)],
    )
    def run(context: Context) -> None:
        steps = context.options.steps
        with context.progress("steps", total=steps) as progress:
            for step in range(steps):
                progress.advance(incumbent=1 / (1 + step))
        context.plot("fall", {"ours": Curve.of_runs(np.eye(3, steps))}, x="step", y="loss")
        context.table("summary", [{"method": "<ours>", "loss": np.float64(0.25)}])
        with context.figure("picture") as figure:
            figure.subplots().plot([1, 2])
        context.say("It fell.")
        context.measure("gap", measured)
        if body:
            body(context)

    return run


def results_of(tmp_path):
    return json.loads((tmp_path / "results.json").read_text())


def test_results_hold_what_every_experiment_promises(tmp_path, capsys):
    assert toy(0.5).main(["--quick", "--seed", "7", "--out", str(tmp_path)]) == 0
    results = results_of(tmp_path)
    assert (results["kind"], results["name"]) == ("experiments", "test_harness")
    assert results["command"] == "python -m experiments.test_harness --quick --seed 7"
    assert results["pictures"] == ["picture.png"]
    assert results["settings"] == {
        "quick": True,
        "seed": 7,
        "out": str(tmp_path),
        "steps": 3,
        "method": "cg",
        "deep": False,
    }
    assert results["claims"] == [
        {
            "key": "gap",
            "claim": "the gap is small",
            "measured": 0.5,
            "bound": "<= 0.5",
            "holds": True,
        }
    ]
    assert results["seconds"] >= 0
    assert results["versions"]["numpy"] == np.__version__
    plot = results["plots"]["fall"]
    assert (plot["x"], plot["y"], plot["y_scale"]) == ("step", "loss", "linear")
    assert plot["curves"]["ours"]["x"] == [1, 2, 3]
    np.testing.assert_allclose(plot["curves"]["ours"]["high"], [0.5, 0.5, 0.5])
    assert results["tables"]["summary"] == [{"method": "<ours>", "loss": 0.25}]
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "index.html",
        "fall.png",
        "picture.png",
    }
    printed = capsys.readouterr().out
    assert "It fell." in printed
    assert "holds" in printed


def test_the_page_is_self_contained(tmp_path):
    toy(0.1).main(["--out", str(tmp_path)])
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "&lt;ours&gt;" in page
    assert "<ours>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize("measured", [0.51, np.nan, -np.inf])
def test_a_claim_that_does_not_hold_ends_with_status_1(tmp_path, measured):
    assert toy(measured).main(["--out", str(tmp_path)]) == 1
    (claim,) = results_of(tmp_path)["claims"]
    assert claim["holds"] is False
    assert claim["measured"] == (measured if np.isfinite(measured) else None)
    assert "fails" in (tmp_path / "index.html").read_text()


def test_the_command_line_wins_over_quick(tmp_path):
    options = toy(0).parse(["--quick", "--steps", "8", "--method", "neumann", "--deep"])
    assert (options.steps, options.method, options.deep) == (8, "neumann", True)
    assert toy(0).parse([]).steps == 10


def test_a_choice_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        toy(0).parse(["--method", "magic"])
    assert "magic" in capsys.readouterr().err


def test_claims_that_do_not_apply_are_left_out(tmp_path):
    claims = [
        Claim("gap", "always", at_most=1),
        Claim("deep", "only in the deep", at_least=1, when=lambda options: options.deep),
    ]
    run = toy(0, claims=claims)
    assert run.main(["--out", str(tmp_path)]) == 0
    assert [claim["claim"] for claim in results_of(tmp_path)["claims"]] == ["always"]
    with pytest.raises(ValueError, match="not measured: deep"):
        run.main(["--deep", "--out", str(tmp_path)])


def test_a_quick_run_may_have_a_bound_of_its_own(tmp_path):
    claims = [Claim("gap", "the gap is small", at_most=0.1, quick=0.5)]
    run = toy(0.3, claims=claims)
    assert run.main(["--quick", "--out", str(tmp_path)]) == 0
    assert results_of(tmp_path)["claims"][0]["bound"] == "<= 0.5"
    assert run.main(["--out", str(tmp_path)]) == 1


def test_a_claim_that_must_be_true_is_measured_as_a_bool(tmp_path):
    claims = [Claim("gap", "identical", at_least=1)]
    assert toy(True, claims=claims).main(["--out", str(tmp_path)]) == 0
    assert toy(False, claims=claims).main(["--out", str(tmp_path)]) == 1


def test_measuring_an_undeclared_claim_is_an_error(tmp_path):
    run = toy(0, body=lambda context: context.measure("gpa", 1))
    with pytest.raises(ValueError, match=r"No claim 'gpa'; declared: \['gap'\]"):
        run.main(["--out", str(tmp_path)])


@pytest.mark.parametrize("bounds", [{}, {"at_most": 1, "at_least": 0}])
def test_a_claim_needs_exactly_one_bound(bounds):
    with pytest.raises(ValueError, match="'gap' needs `at_most` or `at_least`"):
        Claim("gap", "words", **bounds)


def test_a_curve_of_runs_is_median_and_quartiles():
    curve = Curve.of_runs([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [5.0, 8.0]], x=[5, 10])
    np.testing.assert_allclose([curve.low, curve.y, curve.high], [[2, 0], [3, 0], [4, 0]])
    assert curve.x == [5, 10]
