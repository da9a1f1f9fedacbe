'''What all experiments share: options, progress, results, figures, a page, and claims.

An experiment is one module in `experiments/`. The first line of its docstring is what
`python -m experiments` lists, the whole docstring opens its page. It declares its options and its
claims, and a function that does the work; the harness does the rest:

    """Ridge on diabetes: ten hypergradient steps against a grid of twenty penalties.

    A paragraph or two that says what is compared, on which data, and what to look at.
    """

    from experiments.harness import Claim, Context, Curve, Option, experiment


    @experiment(
        paper="Pedregosa 2016, arXiv:1602.02355",
        options=[
            Option("steps", 10, quick=3, help="hypergradient steps"),
            Option("method", "cg", choices=("cg", "neumann"), help="linear solver"),
        ],
        claims=[
            Claim("gap", "within 1e-3 of the best of the grid", at_most=1e-3),
            Claim("fewer", "a third of the trainings", at_most=1 / 3, when=lambda o: not o.quick),
        ],
    )
    def run(context: Context) -> None:
        options = context.options             # .steps, .method, and always .quick, .seed, .out
        with context.progress("trainings", total=options.steps) as progress:
            for step in range(options.steps):
                loss = ...
                progress.advance(incumbent=loss)
        context.plot(
            "convergence",               # -> convergence.png, and "plots" in results.json
            {"hypergradient": Curve(x=steps, y=losses), "grid": Curve.of_runs(seeds_by_steps)},
            x="trainings",
            y="validation loss",
        )
        context.table("summary", [{"method": "grid", "loss": 0.31}, ...])
        with context.figure("pictures", width=8, height=3) as figure:    # any other drawing
            figure.subplots().imshow(image)
        context.say("One sentence of finding, printed and put on the page.")
        context.measure("gap", losses[-1] - best)


    if __name__ == "__main__":
        raise SystemExit(run.main())

Every experiment then takes `--quick --seed --out DIR` and its own options, shows progress with the
incumbent and the time left, and writes `DIR/results.json`, PNG figures and a self-contained
`DIR/index.html`. `--quick` changes the defaults to the options' `quick` values (a value given on
the command line wins): it is run in continuous integration and should take well under a minute.

Each claim that applies (`when`) must be measured. The process ends with status 1 if one does not
hold. A bound is written down before the run is looked at; do not move it afterwards.

Experiments that want float64 say `experiment(..., x64=True)`. Data come from `experiments.data`.
'''

try:
    import matplotlib as _matplotlib  # noqa: F401
    import rich as _rich  # noqa: F401
except ImportError as error:
    raise ImportError(
        'Experiments need a few more packages: pip install "hypergrad-engine[experiments]"'
    ) from error

from experiments.harness.context import Context, Curve, Progress
from experiments.harness.drawing import COLOURS
from experiments.harness.experiment import Claim, Experiment, Option, experiment

__all__ = ["COLOURS", "Claim", "Context", "Curve", "Experiment", "Option", "Progress", "experiment"]
