"""Memory and time of reverse mode through trainings: of a network by budget, of a transformer.

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

Second, steps of Adam on a transformer, all stored, in the learning rate, a weight for each sequence
and a weight decay for each tensor of each block. The reference takes the training gradient by
`jax.grad`, which is then differentiated in reverse mode once more; `forward over reverse` is what
`Unrolled` does; in the last row the loss has `jax.checkpoint` around the model's blocks as well.
`memory` is the ratio of `XLA MiB`. Wanted of the last row: memory at most 0.1, time at most 1.

The bounds are for these sizes. The fewer steps, the larger the share of them that `2 sqrt(T)`
states are: of the short runs of `--quick` only less memory than the reference's, and its gradient,
are wanted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import compile_seconds, options, report

MEBIBYTE = 2**20
# More than any of the runs: every step is stored.
STORED = 2**40
BOUNDS = {"memory": 0.08, "time": 1.5}
BOUNDS_TRANSFORMER = {"memory": 0.1, "time": 1.0}
BOUNDS_QUICK = {"memory": 1.0}
REFERENCE = "plain scan"
# A function, its arguments, the bytes predicted in MiB, and steps run without being differentiated.
Made = tuple[Callable, tuple, float | None, int | None]
TRANSFORMER = ["reverse over reverse", "forward over reverse", "forward over reverse, blocks again"]


def network(point: str, quick: bool) -> Made:
    """The network; `point` is the reference, `default` or a budget."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from hypergrad import BilevelProblem
    from hypergrad.unrolled import Unrolled

    steps = 200 if quick else 1000
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = [(normal(784, 128) / 28, jnp.zeros(128)), (normal(128, 10) / 11, jnp.zeros(10))]
    batch = (normal(100, 784), jnp.asarray(rng.integers(0, 10, 100)))
    hparams = {
        "rate": jnp.full(steps, 0.1),
        "momentum": jnp.asarray(0.9),
        "log_l2": jnp.full(2, -7.0),
    }

    def cross_entropy(p, h, batch):
        (w1, b1), (w2, b2) = p
        logits = jnp.tanh(batch[0] @ w1 + b1) @ w2 + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def inner(p, h, batch):
        penalty = sum(
            jnp.exp(s) * jnp.sum(layer[0] ** 2) for s, layer in zip(h["log_l2"], p, strict=True)
        )
        return cross_entropy(p, h, batch) + 0.5 * penalty

    def optimizer(h):
        return optax.sgd(lambda t: h["rate"][t], momentum=h["momentum"])

    predicted, advances = None, None
    if point == REFERENCE:

        def outer(h, params, batch):
            def step(carry, _):
                p, s = carry
                updates, s = optimizer(h).update(jax.grad(inner)(p, h, batch), s, p)
                return (optax.apply_updates(p, updates), s), None

            start = (params, optimizer(h).init(params))
            (p, _), _ = jax.lax.scan(step, start, length=steps)
            return cross_entropy(p, h, batch)

        def gradient(h, params, batch):
            return jax.grad(outer)(h, params, batch)

    else:
        memory = None if point == "default" else int(float(point.split()[0]) * MEBIBYTE)
        estimator = Unrolled(optimizer, steps, memory=memory)
        problem = BilevelProblem(inner, cross_entropy)
        chosen = estimator.plan(problem, params, hparams, batch)
        predicted, advances = chosen.bytes / MEBIBYTE, chosen.advances

        def gradient(h, params, batch):
            state = estimator.init(problem, params, h, batch)
            return estimator.hypergradient(problem, state, h, batch, batch).grad

    return gradient, (hparams, params, batch), predicted, advances


def transformer(point: str, quick: bool) -> Made:
    """The transformer, one of `TRANSFORMER`."""
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks.transformer import Size, logits, penalty, sequence_losses, weighted_loss
    from benchmarks.transformer import transformer as problem_of
    from hypergrad import BilevelProblem
    from hypergrad.linear.vector import widen
    from hypergrad.unrolled import StepFunction, Unrolled

    layers, width, steps = (2, 64, 16) if quick else (4, 64, 24)
    case = problem_of(Size(layers, width, vocabulary=256, sequences=8, length=64))
    params, batch = widen(case.params), case.inner_batch
    hparams = {**case.hparams, "rate": jnp.asarray(1e-3)}
    again = point == TRANSFORMER[2]

    def scores(p, tokens):
        return logits(p, tokens[:, :-1], again)

    def inner(p, h, tokens):
        return weighted_loss(scores(p, tokens), h, tokens) + 1e-4 * penalty(p, h)

    def outer(p, h, tokens):
        return jnp.mean(sequence_losses(scores(p, tokens), tokens))

    def adam(h):
        return optax.adam(h["rate"], eps_root=1e-8)

    def by_hand(p, state, h, tokens):
        updates, state = adam(h).update(jax.grad(inner)(p, h, tokens), state, p)
        return optax.apply_updates(p, updates), state

    step = StepFunction(by_hand, lambda p, h: adam(h).init(p))
    estimator = Unrolled(step if point == TRANSFORMER[0] else adam, steps, memory=STORED)
    problem = BilevelProblem(inner, outer)
    chosen = estimator.plan(problem, params, hparams, batch)

    def gradient(h, params, batch):
        state = estimator.init(problem, params, h, batch)
        return estimator.hypergradient(problem, state, h, batch, batch).grad

    return gradient, (hparams, params, batch), chosen.bytes / MEBIBYTE, chosen.advances


def measure(point: str, quick: bool) -> dict:
    """One point, in this process."""
    import jax
    import numpy as np

    make = transformer if point in TRANSFORMER else network
    gradient, arguments, predicted, advances = make(point, quick)
    repeats = 2 if quick else 3
    seconds_to_compile, compiled = compile_seconds(gradient, *arguments)
    idle = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the compiler
    grad = jax.block_until_ready(compiled(*arguments))
    peak = _resident("VmHWM") - idle
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.process_time() - begin)
    return {
        "peak MiB": peak,
        "XLA MiB": compiled.memory_analysis().temp_size_in_bytes / MEBIBYTE,
        "predicted MiB": predicted,
        "steps": advances,
        "seconds": min(seconds),
        "compile s": seconds_to_compile,
        "gradient": np.concatenate([np.ravel(a) for a in jax.tree.leaves(grad)]).tolist(),
    }


def main() -> int:
    """Print the tables; 1 if a bound is missed or a gradient is wrong."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=float, nargs="*", default=[200, 50, 25, 12])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.point is not None:
        json.dump(measure(chosen.point, chosen.quick), sys.stdout)
        return 0

    budgets = [f"{budget:g} MiB" for budget in chosen.budgets]
    tables = {
        "memory": _table([REFERENCE, "default", *budgets], "peak MiB", chosen.quick),
        "transformer": _table(TRANSFORMER, "XLA MiB", chosen.quick),
    }
    bounds = BOUNDS_QUICK if chosen.quick else BOUNDS
    report("unroll_memory", tables, bounds, chosen)
    met = _within(tables["memory"][1], bounds)
    last = BOUNDS_QUICK if chosen.quick else BOUNDS_TRANSFORMER
    met = met and _within(tables["transformer"][-1], last)
    right = all(row["difference"] < 1e-3 for rows in tables.values() for row in rows)
    return 0 if met and right else 1


def _table(points: list[str], size: str, quick: bool) -> list[dict]:
    """The rows, relative to the first; `size` is the column that `memory` is the ratio of."""
    rows = []
    for point in points:
        print(f"{point} ...", file=sys.stderr, flush=True)
        rows.append({"mode": "reverse", "allowed": point, **_in_own_process(point, quick)})
    reference, truth = rows[0], rows[0]["gradient"]
    for row in rows:
        row["memory"] = row[size] / reference[size]
        row["time"] = row["seconds"] / reference["seconds"]
        row["difference"] = _difference(row["gradient"], truth)
    for row in rows:
        del row["gradient"]
    return rows


def _within(row: dict, bounds: dict[str, float]) -> bool:
    return all(row[column] <= bound for column, bound in bounds.items())


def _in_own_process(point: str, quick: bool) -> dict:
    command = [sys.executable, "-m", "benchmarks.unroll_memory", "--point", point]
    command += ["--quick"] if quick else []
    one_thread = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | one_thread, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def _resident(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {what}: this benchmark needs Linux.")


def _difference(a: list, b: list) -> float:
    norm = sum(y * y for y in b) ** 0.5
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 / norm


if __name__ == "__main__":
    sys.exit(main())
