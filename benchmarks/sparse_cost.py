"""What sparse data cost against the same data made dense: time and memory of a hypergradient.

    python -m benchmarks.sparse_cost [--quick] [--cpu-time] [--out DIR]

Logistic regression with an L2 penalty on text-like data in float32: words are drawn by Zipf's law,
documents have so many of them. `jax.experimental.sparse.BCOO` made from a scipy CSR matrix, against
the dense array. A row is one size; the work is a hypergradient: the outer loss with its gradients,
20 steps of conjugate gradient on the adjoint system, and the mixed product. Columns:

- `density`: share of entries that are not zero;
- `sparse, ms` and `dense, ms`, and `time`: the median over rounds of the ratio of both;
- `sparse, MB` and `dense, MB`: what the compiled program holds at its peak, arguments included, and
  `memory`: the ratio.

At most 1 is wanted of both ratios for the rows with a density of half a percent or less, which is
what text has; the others show where the balance tips.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO

from benchmarks import measure
from hypergrad import CG, BilevelProblem, ImplicitDifferentiation

TEXT = 0.005
PRODUCTS = 20
# Documents, features, words in each document.
SIZES = ((1000, 10_000, 50), (1000, 40_000, 50), (1000, 40_000, 200), (1000, 2_000, 400))


def documents(rows: int, features: int, words: int, seed: int) -> tuple[dict, dict]:
    """A training set, sparse and dense, labels by a random direction."""
    rng = np.random.default_rng(seed)
    use = 1 / np.arange(1, features + 1)
    chosen = rng.choice(features, size=(rows, words), p=use / use.sum())
    where = (np.repeat(np.arange(rows), words), chosen.ravel())
    counts = scipy.sparse.csr_matrix((np.ones(rows * words), where), shape=(rows, features))
    counts.data = np.log1p(counts.data)
    counts = counts.astype(np.float32)
    y = jnp.asarray(np.sign(counts @ rng.normal(size=features) + 1e-6), jnp.float32)
    return (
        {"x": BCOO.from_scipy_sparse(counts), "y": y},
        {"x": jnp.asarray(counts.toarray()), "y": y},
    )


def cross_entropy(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Outer loss; labels are -1 and 1."""
    return jnp.mean(jnp.logaddexp(0, -batch["y"] * (batch["x"] @ w)))


def penalised(w: jax.Array, hparams: jax.Array, batch: dict) -> jax.Array:
    """Inner loss; one log-penalty per feature."""
    return cross_entropy(w, hparams, batch) + 0.5 * jnp.sum(jnp.exp(hparams) * w**2)


PROBLEM = BilevelProblem(penalised, cross_entropy)
ESTIMATOR = ImplicitDifferentiation(None, CG(tol=0.0, max_steps=PRODUCTS), error_estimate=False)


@jax.jit
def hypergradient(w: jax.Array, hparams: jax.Array, inner: dict, outer: dict) -> jax.Array:
    """One estimate at a point that is taken as solved."""
    state = ESTIMATOR.init(PROBLEM, w, hparams, inner)
    return ESTIMATOR.hypergradient(PROBLEM, state, hparams, inner, outer).grad


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, save. Returns 1 if sparse data cost more than dense where text is."""
    parsed = measure.options("a hypergradient on sparse data against dense").parse_args(arguments)
    rows = []
    for count, features, words in SIZES[:1] if parsed.quick else SIZES:
        inner, outer = (documents(count, features, words, seed) for seed in (0, 1))
        w = jnp.asarray(np.random.default_rng(2).normal(size=features) / 10, jnp.float32)
        hparams = jnp.full(features, -3.0, jnp.float32)
        calls, megabytes, found = {}, {}, {}
        for kind, train, validation in zip(("sparse", "dense"), inner, outer, strict=True):
            parts = (w, hparams, train, validation)
            compiled = hypergradient.lower(*parts).compile()
            megabytes[kind] = measure.peak_bytes(compiled) / 1e6
            calls[kind] = lambda compiled=compiled, parts=parts: compiled(*parts)
            found[kind] = np.asarray(calls[kind]())
        np.testing.assert_allclose(found["sparse"], found["dense"], rtol=1e-2, atol=1e-6)
        seconds = measure.interleaved(calls, repeats=3 if parsed.quick else 9, clock=parsed.clock)
        rows.append(
            {
                "documents": count,
                "features": features,
                "density": inner[0]["x"].nse / (count * features),
                "sparse, ms": 1000 * float(np.median(seconds["sparse"])),
                "dense, ms": 1000 * float(np.median(seconds["dense"])),
                "time": measure.ratio(seconds, "sparse", "dense"),
                "sparse, MB": megabytes["sparse"],
                "dense, MB": megabytes["dense"],
                "memory": megabytes["sparse"] / megabytes["dense"],
            }
        )
    measure.report("sparse_cost", {"cost": rows}, {"time": 1.0, "memory": 1.0}, parsed)
    text = [row for row in rows if row["density"] <= TEXT]
    return int(any(row[column] > 1 for row in text for column in ("time", "memory")))


if __name__ == "__main__":
    sys.exit(main())
