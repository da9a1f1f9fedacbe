"""Learning rate and batch size of language models: a law fitted on small ones, held to large ones.

The 1,911 trainings that were released with "Predictable Scale: Part I": 17 pairs of parameters N
and tokens D, 12 learning rates by 10 batch sizes each. Laws for both are fitted to the best runs
of the pairs with N up to 4.3e8, and judged on the larger ones: by how much the run nearest to the
law is worse than the best of the grid. Beside them the published law, and no law: the mean of the
small models' best settings.

Li et al., "Predictable Scale: Part I, Step Law" (2025).
"""

import numpy as np

from experiments.data import steplaw
from experiments.harness import Claim, Context, Curve, Option, experiment
from strategies.laws import PowerLaw, excess, optima

#: Parameters of the largest models that the laws are fitted on.
SMALL = 4.3e8
#: The published law, the batch size in tokens.
PUBLISHED = (
    PowerLaw(("N", "D"), "lr", 1.79, (-0.713, 0.307)),
    PowerLaw(("D",), "batch", 0.58, (0.571,)),
)
#: Runs whose loss is within so much of the best are near enough for a parabola.
NEAR = 0.02


def convex(rows: list[dict[str, float]]) -> bool:
    """Whether a parabola in both logarithms, near the best run, opens upwards."""
    best = min(row["value"] for row in rows)
    near = [row for row in rows if row["value"] <= (1 + NEAR) * best]
    x = np.log([[row["lr"], row["batch"]] for row in near])
    a, b = (x - x.mean(0)).T
    design = np.column_stack([np.ones(len(a)), a, b, a**2, a * b, b**2])
    c = np.linalg.lstsq(design, np.array([row["value"] for row in near]), rcond=None)[0]
    return bool(np.linalg.eigvalsh([[2 * c[3], c[4]], [c[4], 2 * c[5]]])[0] > 0)


def constant(points: list[dict[str, float]], name: str) -> PowerLaw:
    """The geometric mean, whatever the size."""
    mean = float(np.exp(np.mean(np.log([point[name] for point in points]))))
    return PowerLaw(("N", "D"), name, mean, (0.0, 0.0))


@experiment(
    paper="Li et al. 2025, arXiv:2503.04715",
    options=[Option("bootstrap", 1000, quick=200, help="resamples of the laws")],
    claims=[
        Claim("published", "excess of the published law, mean over 17 pairs", at_most=0.0012),
        Claim("held out", "excess of the fitted law on larger models, worst", at_most=0.004),
        Claim("law", "mean excess on larger models, relative to no law", at_most=0.5),
        Claim("convex", "pairs with a convex parabola at the optimum", at_least=16),
    ],
)
def run_experiment(context: Context) -> None:
    """Fit on small models, judge on large ones."""
    rows = steplaw()
    small = [row for row in rows if row["N"] <= SMALL]
    large = [row for row in rows if row["N"] > SMALL]
    # A best run at the end of the grid counts, as in the paper.
    points = optima(small, ("N", "D"), ("lr", "batch"), edge="keep")
    draws = {"bootstrap": context.options.bootstrap, "seed": context.options.seed}
    laws = [
        PowerLaw.fit(points, ("N", "D"), "lr", **draws),
        PowerLaw.fit(points, ("D",), "batch", **draws),
    ]
    fitted = excess(large, laws)
    without = excess(large, [constant(points, "lr"), constant(points, "batch")])
    published = excess(rows, PUBLISHED)
    context.measure("published", float(np.mean(list(published.values()))))
    context.measure("held out", max(fitted.values()))
    context.measure("law", sum(fitted.values()) / sum(without.values()))
    sizes = {(row["N"], row["D"]) for row in rows}
    context.measure(
        "convex", sum(convex([r for r in rows if (r["N"], r["D"]) == size]) for size in sizes)
    )
    context.table(
        "held-out sizes",
        [
            {
                "N": size[0],
                "D": size[1],
                "fitted law": fitted[size],
                "no law": without[size],
                "published": published[size],
            }
            for size in sorted(fitted)
        ],
    )
    context.plot(
        "held_out",
        {
            name: Curve([size[0] for size in sorted(found)], [found[s] for s in sorted(found)])
            for name, found in (("fitted law", fitted), ("no law", without))
        },
        x="parameters",
        y="excess loss, relative",
    )
    context.table(
        "exponents",
        [
            {"target": law.target, "input": name, "exponent": e, "low": low, "high": high}
            for law in laws
            for name, e in zip(law.inputs, law.exponents, strict=True)
            for low, high in [law.intervals[name]]
        ],
    )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
