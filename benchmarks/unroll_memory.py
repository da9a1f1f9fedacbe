"""Memory and time of reverse mode through trainings: by budget, by model, by derivative.

`python -m benchmarks.unroll_memory [--quick] [--out DIR] [--budgets MIB ...]` differentiates,
first, 1000 steps of SGD with momentum on a 784-128-10 network, batch 100, in a learning rate per
step, the momentum and a penalty per layer. The reference, by hand, is the derivative of a plain
`lax.scan`; the other rows are `Unrolled` with its default memory and with budgets in MiB. Every row
runs in a process of its own, on one thread. Columns:

- `memory`: peak resident memory during one gradient, above that of the process which has its
  program compiled and its inputs loaded, relative to the reference; at most 0.08 is wanted of the
  default row;
- `time`: processor time, least of several runs, relative to the reference; at most 1.5 is wanted of
  the default row. Processor time, because other work on the machine stretches the time of the
  clock;
- `peak MiB`, `XLA MiB` (what the compiler reserves for intermediates), `predicted MiB` (by
  `Unrolled.plan`, before anything runs), `steps` run forward without being differentiated,
  `seconds` of processor time, `compile s`;
- `difference`: of the gradient from the reference's, relative.

Second, 16 steps of Adam on transformers of 2, 4 and 8 layers, on convolutions and on an LSTM, all
stored, in the learning rate, a weight for each example and a penalty for each tensor
(`benchmarks.unroll_models`). The reference takes the training gradient by `jax.grad`, which is then
differentiated in reverse mode once more; `forward over reverse` is what `Unrolled` does; `again`
has `jax.checkpoint` around the model's blocks as well. MiB are those of `XLA MiB`. `memory` and
`time` (`again`: with the blocks run again) are ratios to the reference; the three are run in turn
in one process, and `time` is the median over the rounds.

Third, 64 steps of the transformer of 4 layers with budgets of checkpoints: the default, and from
the least that the reference works with upwards. With the same budget `Unrolled` runs fewer steps
again; `at no more steps` is the memory with the least budget at which it runs no more steps than
the reference.

The bounds are for these sizes. The fewer steps, the larger the share of them that `2 sqrt(T)`
states are: `--quick`, whose runs are short, wants less memory than the reference's, and the same
gradients. Exits with status 1 if a claim fails.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from benchmarks.measure import compile_seconds, interleaved, options, ratio, report
from benchmarks.unroll_models import (
    AGAIN,
    FORWARD,
    REFERENCE,
    WAYS,
    Model,
    convolutions,
    hypergradient,
    lstm,
    transformer,
)
from benchmarks.unroll_network import MEBIBYTE, PLAIN, flat, in_own_process, in_this_process
from experiments.harness.experiment import Claim
from hypergrad.unrolled.checkpointing import schedule

# More than any of the runs: every step is stored.
STORED = 2**40
STEPS = 16
ROUNDS, ROUNDS_QUICK = 5, 2
# Of the third table: the model, and budgets relative to the least one.
LAYERS, LONGER, BUDGETS = 4, 64, (1.0, 1.5, 3.0)
MODELS: dict[str, tuple[Callable[[int], Model], int]] = {
    "transformer, 2 layers": (transformer, 2),
    "transformer, 4 layers": (transformer, 4),
    "transformer, 8 layers": (transformer, 8),
    "convolutions, 8 layers": (convolutions, 8),
    "LSTM, 64 steps in time": (lstm, 64),
}
QUICK = ("transformer, 2 layers",)
CLAIMS = (
    Claim("network", "peak memory of the network's training, by default", at_most=0.08, quick=1.0),
    Claim("network_time", "its time", at_most=1.5, quick=3.0),
    Claim("memory", "memory with blocks run again, the largest over the models", at_most=0.1),
    Claim(
        "time",
        "time with blocks run again, the largest over the transformers",
        at_most=1.0,
        quick=2.0,
    ),
    Claim(
        "time_anywhere",
        "time without blocks run again, the largest over the models",
        at_most=1.0,
        quick=2.0,
    ),
    Claim(
        "budgets", "times less memory at no more steps, the least over the budgets", at_least=1.8
    ),
    Claim("difference", "of any gradient from the reference's, relative", at_most=1e-3),
)


def models(quick: bool) -> list[dict]:
    """A row for each model: memory and time of the three ways."""
    rows = []
    for name in QUICK if quick else MODELS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        make, size = MODELS[name]
        compiled = {way: _compiled(make(size), way, STEPS, STORED) for way in WAYS}
        calls = {way: partial(program, *given) for way, (program, given, _) in compiled.items()}
        rounds = ROUNDS_QUICK if quick else ROUNDS
        seconds = interleaved(calls, repeats=rounds, clock=time.process_time)
        truth, *others = (flat(call()) for call in calls.values())
        size_of = {way: _mebibytes(program) for way, (program, _, _) in compiled.items()}
        rows.append(
            {
                "model": name,
                **{f"{way}, MiB": size for way, size in size_of.items()},
                "memory": size_of[FORWARD] / size_of[REFERENCE],
                "memory, again": size_of[AGAIN] / size_of[REFERENCE],
                "time": ratio(seconds, FORWARD, REFERENCE),
                "time, again": ratio(seconds, AGAIN, REFERENCE),
                "difference": max(_difference(other, truth) for other in others),
            }
        )
    return rows


def budgets(quick: bool) -> list[dict]:
    """A row for each budget of checkpoints; nothing is run."""
    model = transformer(LAYERS)
    plain = [hypergradient(model, way, LONGER, STORED)[2] for way in (REFERENCE, AGAIN)]
    # With every step stored, the plan's bytes are three states and what each step keeps.
    state = 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    kept = [(plan.bytes - 3 * state) // LONGER for plan in plain]
    least = _least(state, kept[0], math.inf)
    rows = []
    for share in (1.0,) if quick else (None, *BUDGETS):
        budget = None if share is None else math.ceil(share * least)
        print(f"budget {budget} ...", file=sys.stderr, flush=True)
        before, _, old = _compiled(model, REFERENCE, LONGER, budget)
        same, _, new = _compiled(model, AGAIN, LONGER, budget)
        enough = _least(state, kept[1], old.advances)
        less = _compiled(model, AGAIN, LONGER, enough)[0]
        rows.append(
            {
                "budget": "default" if budget is None else f"{budget / MEBIBYTE:.0f} MiB",
                f"{REFERENCE}, MiB": _mebibytes(before),
                "its steps": old.advances,
                f"{AGAIN}, MiB": _mebibytes(same),
                "steps": new.advances,
                "at no more steps, MiB": _mebibytes(less),
                "times less": _mebibytes(before) / _mebibytes(less),
            }
        )
    return rows


def main() -> int:
    """Print the tables; 1 if a claim fails."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=float, nargs="*", default=[200, 50, 25, 12])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.point is not None:
        json.dump(in_this_process(chosen.point, chosen.quick), sys.stdout)
        return 0

    allowed = [] if chosen.quick else [f"{budget:g} MiB" for budget in chosen.budgets]
    tables = {
        "memory": _network_table([PLAIN, "default", *allowed], chosen.quick),
        "models": models(chosen.quick),
        "budgets": budgets(chosen.quick),
    }
    default, found = tables["memory"][1], tables["models"]
    differences = [row["difference"] for row in (*tables["memory"], *found)]
    measured = {
        "network": default["memory"],
        "network_time": default["time"],
        "memory": max(row["memory, again"] for row in found),
        "time": max(row["time, again"] for row in found if "transformer" in row["model"]),
        "time_anywhere": max(row["time"] for row in found),
        "budgets": min(row["times less"] for row in tables["budgets"]),
        "difference": max(differences),
    }
    checked = [claim.check(measured[claim.key], quick=chosen.quick) for claim in CLAIMS]
    report("unroll_memory", tables, {}, chosen, claims=checked)
    return 0 if all(claim["holds"] for claim in checked) else 1


def _network_table(points: list[str], quick: bool) -> list[dict]:
    """The rows, relative to the first."""
    rows = []
    for point in points:
        print(f"{point} ...", file=sys.stderr, flush=True)
        rows.append({"mode": "reverse", "allowed": point, **in_own_process(point, quick)})
    reference, truth = rows[0], rows[0]["gradient"]
    for row in rows:
        row["memory"] = row["peak MiB"] / reference["peak MiB"]
        row["time"] = row["seconds"] / reference["seconds"]
        row["difference"] = _difference(row["gradient"], truth)
    for row in rows:
        del row["gradient"]
    return rows


def _compiled(model: Model, way: str, steps: int, memory: int | None) -> tuple:
    """The program, its arguments, its plan."""
    gradient, given, plan = hypergradient(model, way, steps, memory)
    return compile_seconds(gradient, *given)[1], given, plan


def _least(state: int, kept: int, most: float) -> int:
    """The least budget in bytes, to a hundredth, with which at most so many steps are run again."""
    low, high = 0.0, 3.0 * state + LONGER * kept
    while high - low > high / 100:
        middle = (low + high) / 2
        try:
            enough = schedule(LONGER, state, kept, int(middle)).advances <= most
        except ValueError:  # Too little to work at all.
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return math.ceil(high)


def _mebibytes(program: Any) -> float:
    return program.memory_analysis().temp_size_in_bytes / MEBIBYTE


def _difference(a: list, b: list) -> float:
    norm = sum(y * y for y in b) ** 0.5
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 / norm


if __name__ == "__main__":
    sys.exit(main())
