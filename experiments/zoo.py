"""Inner problems of many kinds, each differentiated as the root of a map.

Multiclass support vector machines by projected gradient and by mirror descent, sparse codes of a
dictionary, packed spheres relaxed by FIRE, a deep equilibrium, the inverse of a flow, a distilled
data set: what "Efficient and Modular Implicit Differentiation" is known for. For each the
derivative of the solution against central differences of solving again, against jaxopt, and at
iterates on the way there: by Theorem 1 of the paper its error is at most proportional to that of
the iterate, so that a log-log plot of the one over the other has slope one.

The problems are in `experiments/implicit_zoo/`, one file for each kind.
"""

import numpy as np

from experiments.harness import Claim, Context, Curve, Option, experiment
from experiments.implicit_zoo import dictionary, distilled, layers, molecules, svm
from experiments.implicit_zoo.member import STEP, Member, derivatives

#: Directions of the hyperparameters along which Jacobians are compared, at most.
MOST = 3


def directions(member: Member, seed: int) -> np.ndarray:
    """Random unit vectors, not more than there are hyperparameters."""
    size = member.flat[0].size
    drawn = np.random.default_rng(seed).normal(size=(min(size, MOST), size))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@experiment(
    paper="Blondel et al. 2022, arXiv:2105.15183",
    x64=True,
    options=[Option("seeds", 3, quick=1, help="instances of each problem")],
    claims=[
        Claim("differences", "against central differences, largest relative", at_most=1e-5),
        Claim("jaxopt", "against jaxopt's derivative, largest relative", at_most=1e-6),
        Claim(
            "slope",
            "log error of the Jacobian over log error of the iterate, largest |slope - 1|",
            at_most=0.15,
        ),
        Claim(
            "one_solution",
            "SVM: the Jacobian of the projected against the mirrored fixed point, relative",
            at_most=1e-3,
        ),
    ],
)
def run(context: Context) -> None:
    """Solve, differentiate, compare."""
    seeds = range(context.options.seed, context.options.seed + context.options.seeds)
    kinds = (svm, dictionary, molecules, layers, distilled)
    rows, curves, one_solution = [], {}, []
    with context.progress("instances", total=len(seeds)) as bar:
        for seed in seeds:
            found = {}
            for member in (member for kind in kinds for member in kind.members(seed)):
                along = directions(member, seed)
                measured = derivatives(member, along)
                found[member.name] = measured.derivative
                if seed == seeds[0]:
                    curves[member.name] = Curve(
                        measured.iterate_errors.tolist(), measured.jacobian_errors.tolist()
                    )
                rows.append(
                    {
                        "problem": member.name,
                        "seed": seed,
                        "unknowns": member.start.size,
                        "hyperparameters": member.flat[0].size,
                        "residual": measured.residual,
                        "against differences": measured.differences,
                        "against jaxopt": measured.jaxopt,
                        "slope": measured.slope,
                    }
                )
            projected, mirrored = (
                found[name] for name in ("SVM, projected gradient", "SVM, mirror descent")
            )
            gap = np.linalg.norm(projected - mirrored) / np.linalg.norm(projected)
            one_solution.append(float(gap))
            bar.advance()
    context.table(f"derivatives of solutions; differences of step {STEP}", rows)
    context.plot(
        "jacobian_error",
        curves,
        x="relative error of the iterate",
        y="relative error of the Jacobian",
        x_scale="log",
        y_scale="log",
    )
    context.measure("differences", max(row["against differences"] for row in rows))
    context.measure("jaxopt", max(row["against jaxopt"] for row in rows))
    context.measure("slope", max(abs(row["slope"] - 1) for row in rows))
    context.measure("one_solution", max(one_solution))


if __name__ == "__main__":
    raise SystemExit(run.main())
