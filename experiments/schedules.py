"""The schedule that self-tuning finds, replayed, against its last value and the best fixed one.

Delta-STN leaves a path of hyperparameters behind. The network is trained again from scratch with

- the path replayed, each value at its time (open loop, no self-tuning);
- the last values of the path from beginning to end;
- the best of a number of random fixed values;
- the initial values.

MacKay et al. found that the path is worth more than its end: a strength that is right late in
training is not right early. Each is trained several times, from other weights and on other batches;
what is compared is the median of the lowest validation losses. Test accuracy is given beside it. It
is the task and the network of the experiment `self_tuning`.
"""

import jax
import numpy as np

from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.self_tuning import OPTIONS, draw_schedules
from experiments.self_tuning_parts.rivals import random_search
from experiments.self_tuning_parts.task import Values, accuracy, hyperparameters, load
from experiments.self_tuning_parts.trainer import Trace, Trainer, train
from experiments.self_tuning_parts.tuned import SelfTuned


@experiment(
    paper="MacKay et al. 2019, arXiv:1903.03088, section 4.2",
    compiles=True,
    options=[
        *OPTIONS,
        Option("rounds", 9, help="rounds of a training"),
        Option("trials", 30, quick=4, help="trainings of the random search"),
        Option("repeats", 5, quick=3, help="trainings with each kind of values"),
    ],
    claims=[
        Claim(
            "initial",
            "replayed schedule over initial values (ratio of losses)",
            at_most=1.0,
        ),
        Claim(
            "final",
            "replayed schedule over its last values (ratio of losses)",
            at_most=1.0,
            quick=1.1,
        ),
        Claim(
            "fixed",
            "replayed schedule over the best fixed values (ratio of losses)",
            at_most=1.0,
            quick=1.1,
        ),
    ],
)
def run(context: Context) -> None:
    """Find the schedule, then train with each of its versions."""
    options = context.options
    task = load(options.data, options.examples, options.seed)
    trainer = Trainer(task, options.model, options.steps, options.seed)
    rounds = options.rounds
    with context.progress("Delta-STN", total=rounds) as progress:
        tuned = Trace(options.steps)
        schedule = SelfTuned(trainer).run(
            rounds, tuned, lambda best: progress.advance(incumbent=best)
        )
    with context.progress("random values", total=rounds * options.trials) as progress:
        _, results = random_search(
            trainer,
            rounds,
            options.trials,
            options.seed,
            lambda best: progress.advance(incumbent=best),
        )
    best = min(results, key=lambda result: result[0])[1]
    transforms = hyperparameters(task.side)
    initial = jax.tree.map(np.asarray, transforms.values(transforms.initial()))
    # In the middle of each round.
    replay = [schedule.at((index + 0.5) * options.steps) for index in range(rounds)]
    kinds: dict[str, list[Values]] = {
        "schedule replayed": replay,
        "last values": [schedule.final] * rounds,
        "best fixed values": [best] * rounds,
        "initial values": [initial] * rounds,
    }

    traces: dict[str, list[Trace]] = {name: [] for name in kinds}
    with context.progress("trainings", total=len(kinds) * options.repeats * rounds) as progress:

        def report(best: float) -> None:
            progress.advance(incumbent=best)

        for repeat in range(options.repeats):
            for name, values in kinds.items():
                trace = Trace(options.steps)
                # Seeds that the search has not seen.
                trainer.reseed(options.seed + 1 + repeat)
                train(trainer, values, trace, report)
                traces[name].append(trace)
    x = np.arange(1, rounds + 1) * options.steps
    curves = {name: Curve.of_runs([t.losses for t in runs], x) for name, runs in traces.items()}
    context.plot(
        "loss",
        {"Delta-STN itself": Curve(x, tuned.losses), **curves},
        x="training steps",
        y="validation loss",
        y_scale="log",
    )
    draw_schedules(context, schedule)
    lowest = {name: float(np.median([t.best for t in runs])) for name, runs in traces.items()}
    context.table(
        "lowest validation loss",
        [
            {
                "training with": name,
                "validation loss, median": float(np.median([t.best for t in runs])),
                "from": min(t.best for t in runs),
                "to": max(t.best for t in runs),
                "test accuracy, median": float(
                    np.median([accuracy(t.model, task.test) for t in runs])
                ),
            }
            for name, runs in {"Delta-STN itself": [tuned], **traces}.items()
        ],
    )
    replayed = lowest["schedule replayed"]
    context.measure("initial", replayed / lowest["initial values"])
    context.measure("final", replayed / lowest["last values"])
    context.measure("fixed", replayed / lowest["best fixed values"])


if __name__ == "__main__":
    raise SystemExit(run.main())
