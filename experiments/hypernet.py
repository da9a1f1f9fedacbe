"""Hypernetworks of a linear classifier: one penalty for all weights, one a class, one for each.

A global hypernetwork is trained once over all log penalties of a softmax classifier. Its validation
curve is compared with that of trained classifiers, one for each point of a grid, and a descent
along it with the best point of the grid.

With one log penalty for each class, a global hypernetwork is trained over independent draws of the
ten. What it predicts at new draws is compared with classifiers that are trained from scratch at the
same penalties, and with a Gaussian process on 25 trainings.

Then each weight and bias has a log penalty of its own (7,850 of them on images of 28 x 28 pixels),
and a local hypernetwork with a bottleneck of ten units is trained around penalties that follow its
hypergradient, from the single penalty where the descent ended. Beside them are searches that train
anew, with one penalty and with ten, and six steps of implicit differentiation from the same start.

All penalties found are trained again from scratch. Every claim is about the worst of several splits
of the data. As in the paper, the validation set is fitted the better the more penalties there are;
the test set shows what that is worth.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.hypernet_parts import exact
from experiments.hypernet_parts.classifier import CLASSES, Task, load, score
from experiments.hypernet_parts.networks import (
    CLASS_SPREAD,
    HIGHEST,
    LOWEST,
    Global,
    of_classes,
    of_one_penalty,
    of_weights,
)
from experiments.hypernet_parts.rivals import process, search

# Trainings that a Gaussian process gets to learn the loss, as in the paper.
PROCESS_TRAININGS = 25


class Outcome(NamedTuple):
    """What one split gives: measured claims, rows of retrained losses, pairs, curves."""

    measured: dict[str, float]
    chosen: list[dict[str, Any]]
    by_class: np.ndarray
    grid: np.ndarray
    path: np.ndarray
    cosine: float


@experiment(
    paper="Lorraine and Duvenaud 2018, arXiv:1802.09419",
    compiles=True,
    options=[
        Option("data", "fashion_mnist", quick="digits", choices=("fashion_mnist", "digits")),
        Option("examples", 500, quick=60, help="training examples"),
        Option("steps", 6000, quick=800, help="steps of the global hypernetworks"),
        Option("rounds", 100, quick=40, help="outer steps with one penalty a weight"),
        Option("draws", 20, quick=5, help="draws at which the global prediction is checked"),
        Option("trials", 50, quick=10, help="trainings of each search"),
        Option("splits", 5, quick=1, help="splits of the data"),
    ],
    claims=[
        Claim("curve", "predicted validation curve within 0.05 of the true one", at_most=0.05),
        Claim("optimum", "descent ends within 1.0 of the best of the grid", at_most=1.0),
        Claim(
            "class",
            "one penalty a class, retrained: validation loss over that of the best single penalty "
            "of a search",
            at_most=0.99,
        ),
        Claim(
            "local",
            "one a weight, retrained: validation loss over that of the penalty where it starts",
            at_most=0.98,
        ),
        Claim(
            "search",
            "one a weight, retrained: validation loss over that of the best single penalty of a "
            "search",
            at_most=0.98,
        ),
        Claim(
            "prediction",
            "one a weight: predicted and retrained final loss within 10 %",
            at_most=0.1,
        ),
        Claim(
            "draws",
            "global: predicted and retrained losses at draws of one penalty a class within 10 %",
            at_most=0.1,
            # The quick run trains the network for a fifth of the steps.
            quick=0.2,
        ),
        Claim(
            "process",
            "error there over that of a Gaussian process on 25 trainings (ratio of rms)",
            at_most=1.0,
        ),
    ],
)
def run(context: Context) -> None:
    """One penalty, then one for each class, then one for each weight, on each split."""
    options = context.options
    outcomes = []
    with context.progress("splits", total=options.splits) as progress:
        for seed in range(options.seed, options.seed + options.splits):
            outcomes.append(one_split(context, load(options.data, options.examples, seed), seed))
            progress.advance(incumbent=outcomes[-1].measured["local"])
    first = outcomes[0]
    context.plot(
        "curve",
        {
            "trained at each point": Curve(first.grid[:, 0], first.grid[:, 1]),
            "hypernetwork": Curve(first.grid[:, 0], first.grid[:, 2]),
        },
        x="log penalty",
        y="validation loss",
    )
    paths = np.array([each.path / each.path[0] for each in outcomes])
    steps = np.arange(11) / 10 * options.rounds
    context.plot(
        "local",
        {
            "retrained": Curve.of_runs(paths[:, :, 1], steps),
            "predicted": Curve.of_runs(paths[:, :, 0], steps),
        },
        x="outer steps with one penalty a weight",
        y="validation loss over that at the start",
    )
    draw_pairs(context, first)
    rows = [
        {"split": index, **each.measured, "cosine": each.cosine}
        for index, each in enumerate(outcomes)
    ]
    context.table("claims by split", rows)
    context.say(
        "Cosine of the local network's hypergradient to the exact one at the end: "
        f"{np.median([each.cosine for each in outcomes]):.3f} (median)."
    )
    context.table("retrained at the chosen penalties", averaged([each.chosen for each in outcomes]))
    for key in first.measured:
        context.measure(key, max(each.measured[key] for each in outcomes))


def one_split(context: Context, task: Task, seed: int) -> Outcome:
    """All networks and searches on one split."""
    options = context.options
    keys = jax.random.split(jax.random.key(seed), 4)
    grid = np.arange(LOWEST + 1, HIGHEST)
    seconds, chosen = {}, {}

    begin = time.perf_counter()
    single, lam = of_one_penalty(task, options.steps, keys[0])
    seconds["one, global hypernetwork"] = time.perf_counter() - begin
    chosen["one, global hypernetwork"] = (1, lam)
    curve = np.array([(g, task.validated(g), single.predicted(np.float32(g))) for g in grid])

    begin = time.perf_counter()
    trained, ten = of_classes(task, lam, options.steps, keys[1])
    seconds["one a class, global hypernetwork"] = time.perf_counter() - begin
    chosen["one a class, global hypernetwork"] = (CLASSES, ten)
    by_class = at_draws(task, trained, lam, options.draws, keys[2])

    begin = time.perf_counter()
    path = of_weights(task, lam, options.rounds, keys[3])
    seconds["one a weight, local hypernetwork"] = time.perf_counter() - begin
    weights = sum(leaf.size for leaf in jax.tree.leaves(task.zeros))
    chosen["one a weight, local hypernetwork"] = (weights, path.penalties[-1])
    start = task.validated(lam)
    retrained = [start, *(task.validated(each) for each in path.penalties)]
    predicted = [start, *path.predicted[options.rounds // 10 - 1 :: options.rounds // 10]]

    begin = time.perf_counter()
    chosen["one a weight, implicit differentiation"] = (weights, exact.descend(task, lam))
    seconds["one a weight, implicit differentiation"] = time.perf_counter() - begin

    for name, number in (("one, search", 1), ("one a class, search", CLASSES)):
        begin = time.perf_counter()
        chosen[name] = (number, search(task, number, options.trials, seed))
        seconds[name] = time.perf_counter() - begin

    rows = []
    for name, (number, penalties) in chosen.items():
        params = task.retrained(penalties)
        losses = {key: float(score(params, getattr(task, key))) for key in task._fields}
        rows.append({"penalties": name, "number": number, "seconds": seconds[name], **losses})
    by_name = {row["penalties"]: row["valid"] for row in rows}
    searched = by_name["one, search"]
    errors = by_class[:, [0, 2]] - by_class[:, 1:2]
    ours, theirs = np.sqrt(np.mean(errors**2, axis=0))
    measured = {
        "curve": np.max(np.abs(curve[:, 1] - curve[:, 2])),
        "optimum": abs(float(lam) - grid[np.argmin(curve[:, 1])]),
        "class": by_name["one a class, global hypernetwork"] / searched,
        "local": retrained[-1] / start,
        "search": retrained[-1] / searched,
        "prediction": abs(predicted[-1] / retrained[-1] - 1),
        "draws": np.max(np.abs(by_class[:, 0] / by_class[:, 1] - 1)),
        "process": ours / theirs,
    }
    return Outcome(
        {key: float(value) for key, value in measured.items()},
        rows,
        by_class,
        curve,
        np.column_stack([predicted, retrained]),
        float(exact.cosine(path.slope, exact.hypergradient(task, path.penalties[-1]))),
    )


def at_draws(task: Task, trained: Global, centre: Array, number: int, key: Array) -> np.ndarray:
    """Losses at draws of ten penalties: of the network, of retraining, of a Gaussian process."""

    def drawn(key: Array, number: int) -> tuple[np.ndarray, np.ndarray]:
        draws = np.asarray(centre + CLASS_SPREAD * jax.random.normal(key, (number, CLASSES)))
        return draws, np.array([task.validated(lam) for lam in draws])

    draw_key, process_key = jax.random.split(key)
    draws, true = drawn(draw_key, number)
    model = process(*drawn(process_key, PROCESS_TRAININGS))
    return np.column_stack([[trained.predicted(lam) for lam in draws], true, model.predict(draws)])


def averaged(splits: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of several splits, with the median of every number."""
    return [
        {key: value if isinstance(value, str) else float(np.median([row[key] for row in rows]))
         for key, value in rows[0].items()}
        for rows in zip(*splits, strict=True)
    ]  # fmt: skip


def draw_pairs(context: Context, split: Outcome) -> None:
    """Predicted over retrained losses at draws and along the path."""
    with context.figure("predicted", width=9, height=4) as figure:
        named = (
            ("global: draws of one penalty a class", split.by_class),
            ("local: along the path", split.path),
        )
        for axes, (title, pairs) in zip(figure.subplots(1, 2), named, strict=True):
            ends = [pairs.min(), pairs.max()]
            axes.plot(ends, ends, color="black", linewidth=1)
            axes.scatter(pairs[:, 1], pairs[:, 0], label="hypernetwork")
            if pairs is split.by_class:
                axes.scatter(pairs[:, 1], pairs[:, 2], marker="x", label="Gaussian process")
                axes.legend()
            axes.set(xlabel="retrained validation loss", ylabel="predicted", title=title)


if __name__ == "__main__":
    raise SystemExit(run.main())
