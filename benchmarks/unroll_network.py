"""SGD with momentum on a 784-128-10 network: one row of `benchmarks.unroll_memory`, in a process.

The peak of a process's memory is known for the process as a whole, so that each row has its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from benchmarks.measure import compile_seconds
from hypergrad import BilevelProblem
from hypergrad.unrolled import Unrolled

MEBIBYTE = 2**20
#: The row that is written by hand.
PLAIN = "plain scan"
# A function, its arguments, the bytes predicted in MiB, and steps run without being differentiated.
Made = tuple[Callable, tuple, float | None, int | None]


def network(point: str, quick: bool) -> Made:
    """The network; `point` is the reference, `default` or a budget."""
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

    def cross_entropy(p: PyTree, h: PyTree, batch: tuple) -> Array:
        (w1, b1), (w2, b2) = p
        logits = jnp.tanh(batch[0] @ w1 + b1) @ w2 + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def inner(p: PyTree, h: PyTree, batch: tuple) -> Array:
        penalty = sum(
            jnp.exp(s) * jnp.sum(layer[0] ** 2) for s, layer in zip(h["log_l2"], p, strict=True)
        )
        return cross_entropy(p, h, batch) + 0.5 * penalty

    def optimizer(h: PyTree) -> optax.GradientTransformation:
        return optax.sgd(lambda t: h["rate"][t], momentum=h["momentum"])

    predicted, advances = None, None
    if point == PLAIN:

        def outer(h: PyTree, params: PyTree, batch: tuple) -> Array:
            def step(carry: tuple, _: None) -> tuple[tuple, None]:
                p, s = carry
                updates, s = optimizer(h).update(jax.grad(inner)(p, h, batch), s, p)
                return (optax.apply_updates(p, updates), s), None

            start = (params, optimizer(h).init(params))
            (p, _), _ = jax.lax.scan(step, start, length=steps)
            return cross_entropy(p, h, batch)

        def gradient(h: PyTree, params: PyTree, batch: tuple) -> PyTree:
            return jax.grad(outer)(h, params, batch)

    else:
        memory = None if point == "default" else int(float(point.split()[0]) * MEBIBYTE)
        estimator = Unrolled(optimizer, steps, memory=memory)
        problem = BilevelProblem(inner, cross_entropy)
        chosen = estimator.plan(problem, params, hparams, batch)
        predicted, advances = chosen.bytes / MEBIBYTE, chosen.advances

        def gradient(h: PyTree, params: PyTree, batch: tuple) -> PyTree:
            state = estimator.init(problem, params, h, batch)
            return estimator.hypergradient(problem, state, h, batch, batch).grad

    return gradient, (hparams, params, batch), predicted, advances


def in_this_process(point: str, quick: bool) -> dict:
    """One point, in this process."""
    gradient, arguments, predicted, advances = network(point, quick)
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
        "gradient": flat(grad),
    }


def in_own_process(point: str, quick: bool) -> dict:
    """The same, in a new process with one thread."""
    command = [sys.executable, "-m", "benchmarks.unroll_memory", "--point", point]
    command += ["--quick"] if quick else []
    one_thread = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | one_thread, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def flat(tree: PyTree) -> list[float]:
    """All numbers of a gradient."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).tolist()


def _resident(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {what}: this benchmark needs Linux.")
