"""A hypergradient of a loss in PyTorch: by `from_torch` and our estimator, and by PyTorch alone.

`python -m benchmarks.from_torch [--quick] [--out DIR]` takes a network of 10^5 weights with a decay
for each of its arrays, and as many steps of conjugate gradient on both sides: ours through
callbacks, theirs with `torch.func`, as on the page about PyTorch. `error` is the relative
difference of the two hypergradients, `time` the median of the ratios of our time to theirs, taken
in turn, at most 2. Without PyTorch there is nothing to compare.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import interleaved, options, ratio, report
from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, from_torch

BOUNDS = {"time": 2.0, "error": 1e-4}
SIZES, QUICK_SIZES = (784, 120, 10), (64, 20, 10)
EXAMPLES, PRODUCTS = 256, 10


def losses() -> tuple[Callable, Callable]:
    """Of training and of validation, in PyTorch."""
    import torch

    def outer(w: dict, h: dict, batch: tuple) -> Any:
        x, y = batch
        hidden = torch.tanh(x @ w["w1"] + w["b1"])
        return torch.nn.functional.cross_entropy(hidden @ w["w2"] + w["b2"], y)

    def inner(w: dict, h: dict, batch: tuple) -> Any:
        # A decay as large as this keeps the Hessian positive away from a minimum, too.
        return outer(w, h, batch) + 0.5 * sum((h[k].exp() * w[k] ** 2).sum() for k in w)

    return inner, outer


def by_torch(products: int, w: dict, h: dict, train: tuple, valid: tuple) -> dict:
    """The hypergradient by conjugate gradient on `torch.func`."""
    import torch

    inner, outer = losses()
    slope = torch.func.grad(inner)

    def dot(a: dict, b: dict) -> Any:
        return sum(torch.sum(a[k] * b[k]) for k in a)

    def add(a: dict, s: Any, b: dict) -> dict:
        return {k: a[k] + s * b[k] for k in a}

    r = torch.func.grad(outer)(w, h, valid)
    q, p, size = {k: torch.zeros_like(a) for k, a in r.items()}, r, dot(r, r)
    for _ in range(products):
        image = torch.func.jvp(lambda w: slope(w, h, train), (w,), (p,))[1]
        step = size / dot(p, image)
        q, r = add(q, step, p), add(r, -step, image)
        size, last = dot(r, r), size
        p = add(r, size / last, p)
    mixed = torch.func.vjp(lambda h: slope(w, h, train), h)[1](q)[0]
    return {k: -m for k, m in mixed.items()}


def compared(sizes: tuple[int, ...], repeats: int, clock: Callable[[], float]) -> list[dict]:
    """The rows."""
    import torch

    rng = np.random.default_rng(0)
    w = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        w[f"w{i}"] = np.float32(rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in))
        w[f"b{i}"] = np.zeros(fan_out, np.float32)
    h = dict.fromkeys(w, np.zeros((), np.float32))
    batches = [
        (rng.normal(size=(EXAMPLES, sizes[0])).astype(np.float32), rng.integers(10, size=EXAMPLES))
        for _ in range(2)
    ]
    problem = BilevelProblem(*map(from_torch, losses()))
    estimator = ImplicitDifferentiation(
        None, CG(tol=0.0, max_steps=PRODUCTS), error_estimate=False, warm_start=False
    )
    theirs = jax.tree.map(torch.from_numpy, (w, h, *batches))

    @jax.jit
    def ours(w: dict, h: dict, train: tuple, valid: tuple) -> dict:
        state = estimator.init(problem, w, h, train)
        return estimator.hypergradient(problem, state, h, train, valid).grad

    functions = {
        "from_torch": partial(ours, *jax.tree.map(jnp.asarray, (w, h, *batches))),
        "torch.func": partial(by_torch, PRODUCTS, *theirs),
    }
    found = {k: np.asarray([f()[name] for name in sorted(w)]) for k, f in functions.items()}
    seconds = interleaved(functions, repeats=repeats, clock=clock)
    error = np.linalg.norm(found["from_torch"] - found["torch.func"])
    return [
        {
            "weights": sum(a.size for a in w.values()),
            **{f"{name}, ms": 1e3 * median(seconds[name]) for name in functions},
            "time": ratio(seconds, *functions),
            "error": float(error / np.linalg.norm(found["torch.func"])),
        }
    ]


def main() -> None:
    """Time both and print the table."""
    arguments = options(__doc__.splitlines()[0]).parse_args()
    if find_spec("torch") is None:
        raise SystemExit("benchmarks.from_torch: expected PyTorch to be installed.")
    sizes, repeats = (QUICK_SIZES, 5) if arguments.quick else (SIZES, 20)
    tables = {f"{PRODUCTS} products": compared(sizes, repeats, arguments.clock)}
    report("from_torch", tables, BOUNDS, arguments)


if __name__ == "__main__":
    main()
