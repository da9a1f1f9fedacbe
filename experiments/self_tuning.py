"""A small image classifier tuned while it is trained, against searches that train it many times.

Nine hyperparameters are tuned: dropout after each of two layers, weight decay, label smoothing,
input noise, and the strengths of the augmentation: shift, brightness, side and number of the
squares that are cut out (whole numbers). Delta-STN and STN move them during a training. Random
search, tree-structured Parzen estimators and Hyperband train anew for each choice, population-based
training keeps many trainings and copies the good ones over the bad. All have the same network,
optimizer and batches, and the same time: that of so many plain trainings. Self-tuning uses it for
fewer and longer trainings, all from the middle of each domain. Every training of every method has
initial weights and batches of its own.

The images are halved to 14 x 14 pixels. Time is measured in units of one plain training on the
machine that the experiment runs on (medians; compilation left out, for all alike). Every method is
judged by the lowest validation loss after any round of any of its trainings, and by the test loss
of the weights that had it, over several splits of the data.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.self_tuning_parts.rivals import RIVALS
from experiments.self_tuning_parts.task import accuracy, load, test_loss
from experiments.self_tuning_parts.trainer import Report, Trace, Trainer
from experiments.self_tuning_parts.tuned import SelfTuned
from hypergrad.self_tuning import Schedule

OPTIONS = [
    Option("data", "fashion_mnist", quick="digits", choices=("fashion_mnist", "digits")),
    Option("model", "cnn", quick="mlp", choices=("cnn", "mlp")),
    Option("examples", 250, quick=200, help="training examples"),
    Option("steps", 50, quick=40, help="training steps of a round"),
]
OURS = "Delta-STN"
# Share of the time in which the early loss is compared.
EARLY = 0.5


class Outcome(NamedTuple):
    """What a method has found on one split."""

    curve: Curve
    trainings: int
    validation: float
    test: float
    accuracy: float


@experiment(
    paper="MacKay et al. 2019, arXiv:1903.03088; Bae and Grosse 2020, arXiv:2010.13514",
    options=[
        *OPTIONS,
        Option("rounds", 9, quick=3, help="rounds of a training"),
        Option("trials", 16, quick=3, help="trainings of each search"),
        Option("tuned_rounds", 18, quick=6, help="rounds of a self-tuned training"),
        Option("splits", 5, quick=1, help="splits of the data"),
    ],
    claims=[
        *(
            Claim(
                name,
                f"lowest validation loss over that of {name} in the same time, median",
                at_most=1.0,
                quick=1.25,
            )
            for name in RIVALS
        ),
        Claim(
            "early",
            f"in {EARLY:.0%} of the time, over the best rival in {EARLY:.0%} of the time, median",
            at_most=1.0,
            # There half of the time is one self-tuned round or two, as the clock has it: the first
            # is the warm-up.
            quick=4.0,
        ),
        Claim(
            "test",
            "test loss over that of the rival that is best by validation, median",
            at_most=1.0,
            quick=1.25,
        ),
    ],
)
def run(context: Context) -> None:
    """All methods on all splits, one after the other."""
    options = context.options
    rounds, trials = options.rounds, options.trials
    tuned = {OURS: True} if options.quick else {OURS: True, "STN": False}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in (*tuned, *RIVALS)}
    trainer, forms, schedule = None, {}, None
    total = options.splits * len(outcomes)
    with context.progress("searches", total=total) as progress:

        def report(best: float) -> None:
            progress.advance(0, incumbent=best)

        for seed in range(options.seed, options.seed + options.splits):
            task = load(options.data, options.examples, seed)
            if trainer is None:
                trainer = Trainer(task, options.model, options.steps, seed)
                forms = {name: SelfTuned(trainer, centred=form) for name, form in tuned.items()}
            trainer.reseed(seed, task)
            unit = None
            for name, search in RIVALS.items():
                trace = search(trainer, rounds, trials, seed, report)
                unit = unit or rounds * float(np.median(trace.seconds))
                outcomes[name].append(outcome(trace, trainer, trials, unit))
                progress.advance(incumbent=trace.best)
            for name, form in forms.items():
                trace, paths = restarted(form, options.tuned_rounds, trials * unit, report)
                schedule = schedule or paths[0]
                outcomes[name].append(outcome(trace, trainer, len(paths), unit))
                progress.advance(incumbent=trace.best)
    report_outcomes(context, outcomes)
    draw_schedules(context, schedule)


def restarted(
    form: SelfTuned, rounds: int, seconds: float, report: Report
) -> tuple[Trace, list[Schedule]]:
    """Self-tuned trainings one after the other until so many seconds are used up, at least one."""
    trace = Trace(form.trainer.steps)
    schedules = [form.run(rounds, trace, report)]
    while (left := int(seconds / np.median(trace.seconds)) - len(trace.losses)) > 0:
        schedules.append(form.run(min(rounds, left), trace, report))
    return trace, schedules


def outcome(trace: Trace, trainer: Trainer, trainings: int, unit: float) -> Outcome:
    """The trace, judged; `unit` is the time of a plain training in seconds."""
    test = trainer.task.test
    return Outcome(
        trace.curve(unit),
        trainings,
        trace.best,
        float(test_loss(trace.model, test)),
        float(accuracy(trace.model, test)),
    )


def report_outcomes(context: Context, outcomes: dict[str, list[Outcome]]) -> None:
    """Table, curves of medians, and the claims."""
    trials = context.options.trials
    at = np.linspace(0.02, 1, 50) * trials
    early = EARLY * trials

    def until(curve: Curve, times: np.ndarray | float) -> np.ndarray:
        """The lowest loss in so much time; that of the first round before it ends."""
        places = np.searchsorted(curve.x, times, side="right") - 1
        return np.asarray(curve.y)[np.maximum(places, 0)]

    context.plot(
        "loss",
        {
            name: Curve.of_runs([until(each.curve, at) for each in found], at)
            for name, found in outcomes.items()
        },
        x="time in plain trainings",
        y="lowest validation loss",
        x_scale="log",
    )
    context.table(
        "results",
        [
            {
                "method": name,
                **{
                    title: float(np.median([getattr(each, key) for each in found]))
                    for title, key in (
                        ("validation loss, median", "validation"),
                        ("test loss, median", "test"),
                        ("test accuracy, median", "accuracy"),
                        ("trainings", "trainings"),
                    )
                },
                "time in plain trainings": float(np.median([e.curve.x[-1] for e in found])),
                "lowest of all on": sum(
                    found[i].validation == min(o[i].validation for o in outcomes.values())
                    for i in range(len(found))
                ),
            }
            for name, found in outcomes.items()
        ],
    )
    context.table(
        "lowest validation loss by split",
        [
            {"split": index, **{name: found[index].validation for name, found in outcomes.items()}}
            for index in range(len(outcomes[OURS]))
        ],
    )
    ours = outcomes[OURS]
    for name in RIVALS:
        ratios = [a.validation / b.validation for a, b in zip(ours, outcomes[name], strict=True)]
        context.measure(name, np.median(ratios))
    splits = [[outcomes[name][i] for name in RIVALS] for i in range(len(ours))]
    best = [min(rivals, key=lambda each: each.validation) for rivals in splits]
    context.measure("test", np.median([a.test / b.test for a, b in zip(ours, best, strict=True)]))
    context.measure(
        "early",
        np.median(
            [
                until(each.curve, early) / min(until(rival.curve, early) for rival in rivals)
                for each, rivals in zip(ours, splits, strict=True)
            ]
        ),
    )


def draw_schedules(context: Context, schedule: Schedule) -> None:
    """The path of each hyperparameter: one panel each, and as data."""
    path: Path = context.options.out / "schedule.png"
    schedule.plot(path)
    context.figures.append(path)
    rows = zip(*(v.reshape(len(v), -1) for v in schedule.values.values()), strict=True)
    names = [
        name if value.ndim == 1 else f"{name} {index}"
        for name, value in schedule.values.items()
        for index in range(value.reshape(len(value), -1).shape[1])
    ]
    context.table(
        "schedule",
        [
            {
                "step": int(step),
                **dict(zip(names, np.concatenate(row).tolist(), strict=True)),
            }
            for step, row in zip(schedule.steps, rows, strict=True)
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run.main())
