"""Optimizers that find their own learning rate, against AdamW: by default, and calibrated jointly.

Eight small workloads. Each optimizer runs with its literature's default rate and at eight more,
powers of four around it, with a constant and with a cosine schedule over the budget. *Calibrated*
is the one setting, the same for all workloads, with the best score on the first five; it is scored
on all eight. *Default* is the default rate with a cosine.

A workload's target is what the best AdamW of the grid has reached when a quarter of the budget is
left, median over draws. Times are steps. The score is AlgoPerf's: the mean share of workloads
reached within 1 to 4 times the fastest's time (`strategies.benchmark.profile`).

Beside them an Adam that starts at AdamW's default rate, which is moved by the hypergradient of the
next batch's loss during the one training (`OnlineUnrolled`).

Kasimbeg et al., "How far away are truly hyperparameter-free learning algorithms?" (2025).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from experiments.data.workloads import WORKLOADS, Workload
from experiments.harness import Claim, Context, Curve, Option, experiment
from hypergrad import BilevelProblem
from hypergrad.unrolled import OnlineUnrolled
from strategies.benchmark import Profile, profile

BATCH = 32
#: Steps between two looks at the training loss.
BETWEEN = 5
#: Factors on the default rate.
FACTORS = 4.0 ** np.arange(-4, 5)
#: Of the workloads, the first ones.
CALIBRATED_ON = 5 / 8
ADAM, ONLINE = "adamw", "adam, rate by hypergradient"
#: A step of the logarithm of the rate.
META_RATE = 0.1

Make = Callable[[Callable], optax.GradientTransformation]

#: Of a schedule around one, with the default rate of each optimizer's literature.
OPTIMIZERS: dict[str, tuple[float, Make]] = {
    ADAM: (1e-3, lambda s: optax.adamw(s)),
    "prodigy": (1.0, lambda s: contrib.prodigy(s)),
    "dadapt_adamw": (1.0, lambda s: contrib.dadapt_adamw(s)),
    "dog": (1.0, lambda s: contrib.dog(s)),
    "dowg": (1.0, lambda s: contrib.dowg(s)),
    "momo": (1.0, lambda s: contrib.momo(s)),
    "momo_adam": (1e-2, lambda s: contrib.momo_adam(s)),
    "cocob": (1.0, lambda s: contrib.cocob(s)),
    "schedule_free_adamw": (
        2.5e-3,
        lambda s: contrib.schedule_free(optax.adamw(s, b1=0.0), s, b1=0.9),
    ),
}
QUICK = (ADAM, "prodigy")


def curves(work: Workload, name: str, steps: int, seeds: int) -> np.ndarray:
    """Training losses, shape `(settings, seeds, looks)`; settings: constant, then cosine."""
    rate, make = OPTIMIZERS[name]

    def run(factor: jax.Array, cosine: jax.Array, key: jax.Array) -> jax.Array:
        def schedule(t: jax.Array) -> jax.Array:
            fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(t / steps, 1.0)))
            return rate * factor * jnp.where(cosine, fall, 1.0)

        optimizer = optax.with_extra_args_support(make(schedule))
        params = work.draw(key)

        def step(carry: tuple, key: jax.Array) -> tuple:
            params, state = carry
            rows = work.rows(key, BATCH)
            value, gradient = jax.value_and_grad(work.loss)(params, rows)
            updates, state = optimizer.update(gradient, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        def look(carry: tuple, keys: jax.Array) -> tuple:
            (params, state), _ = jax.lax.scan(step, carry, keys)
            answer = params
            if name.startswith("schedule_free"):
                answer = contrib.schedule_free_eval_params(state, params)
            return (params, state), work.loss(answer, work.held())

        keys = jax.random.split(jax.random.fold_in(key, 1), (steps // BETWEEN, BETWEEN))
        return jax.lax.scan(look, (params, optimizer.init(params)), keys)[1]

    over = jax.vmap(jax.vmap(run, (None, None, 0)), (0, 0, None))
    both = np.concatenate([FACTORS, FACTORS]), np.repeat([False, True], len(FACTORS))
    settings = jnp.asarray(both[0], jnp.float32), jnp.asarray(both[1])
    keys = jax.random.split(jax.random.key(0), seeds)
    return np.asarray(jax.jit(over)(*settings, keys))


def online(work: Workload, steps: int, seeds: int) -> np.ndarray:
    """Losses of the Adam whose rate follows the hypergradient, shape `(seeds, looks)`."""
    problem = BilevelProblem(
        lambda params, _, rows: work.loss(params, rows),
        lambda params, _, rows: work.loss(params, rows),
    )
    estimator = OnlineUnrolled(
        lambda h: optax.adam(jnp.exp(h), eps_root=1e-12), BETWEEN, stacked=True
    )

    def run(key: jax.Array) -> jax.Array:
        outer = optax.adam(META_RATE, b1=0.5, b2=0.9)
        start = jnp.log(jnp.asarray(OPTIMIZERS[ADAM][0]))

        def window(key: jax.Array) -> tuple:
            return jax.vmap(lambda k: work.rows(k, BATCH))(jax.random.split(key, BETWEEN))

        def look(carry: tuple, key: jax.Array) -> tuple:
            h, moments, state = carry
            first, second = jax.random.split(key)
            rows = window(first)
            state, _ = estimator.fit(problem, state, h, rows)
            found = estimator.hypergradient(problem, state, h, rows, work.rows(second, BATCH))
            updates, moments = outer.update(found.grad, moments)
            value = work.loss(state.params, work.held())
            return (optax.apply_updates(h, updates), moments, state), value

        state = estimator.init(problem, work.draw(key), start, window(key))
        keys = jax.random.split(jax.random.fold_in(key, 1), steps // BETWEEN)
        return jax.lax.scan(look, (start, outer.init(start), state), keys)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def reached(losses: np.ndarray, target: float) -> np.ndarray:
    """Median over draws of the steps until the target; losses `(..., seeds, looks)`."""
    hit = np.nan_to_num(losses, nan=np.inf) <= target
    first = np.where(hit.any(-1), BETWEEN * (hit.argmax(-1) + 1.0), np.inf)
    return np.median(first, -1)


@experiment(
    paper="Kasimbeg et al. 2025, arXiv:2505.24005",
    options=[
        Option("steps", 200, quick=100, help="of a training"),
        Option("seeds", 3, quick=1, help="draws"),
        Option("workloads", 8, quick=2, help="how many, in their order"),
        Option("all", True, quick=False, help="all optimizers, not two"),
    ],
    claims=[
        Claim(
            "calibration",
            "score of the best learning-rate-free optimizer, calibrated - default",
            at_least=0.1,
            quick=-0.2,
        ),
        Claim(
            "adam",
            "score of calibrated AdamW - that of the best calibrated learning-rate-free one",
            at_least=-0.05,
            quick=-0.5,
        ),
        Claim("adam_gain", "score of AdamW, calibrated - default", at_least=0.1, quick=0.0),
        Claim(
            "online",
            "score of Adam by hypergradient - that of the best learning-rate-free default",
            at_least=0.0,
            quick=-0.6,
        ),
    ],
)
def run_experiment(context: Context) -> None:
    """All curves, targets, calibration, scores."""
    options = context.options
    names = [name for name in OPTIMIZERS if options.all or name in QUICK]
    works = {name: WORKLOADS[name]() for name in list(WORKLOADS)[: options.workloads]}
    times: dict[str, dict[str, np.ndarray]] = {name: {} for name in [*names, ONLINE]}
    with context.progress("optimizers on workloads", total=len(works) * (1 + len(names))) as bar:
        for label, work in works.items():
            found = {}
            for name in names:
                found[name] = curves(work, name, options.steps, options.seeds)
                bar.advance()
            found[ONLINE] = online(work, options.steps, options.seeds)[None]
            bar.advance()
            # With a quarter of the budget left, at the best setting of all draws together.
            late = np.nan_to_num(found[ADAM], nan=np.inf)[..., : int(0.75 * found[ADAM].shape[-1])]
            target = np.median(late.min(-1), -1).min()
            for name, losses in found.items():
                times[name][label] = reached(losses, target)
    on = list(works)[: max(1, int(CALIBRATED_ON * len(works)))]
    settings = {name: calibrated({w: times[name][w] for w in on}) for name in names}
    default = len(FACTORS) + int(np.flatnonzero(FACTORS == 1.0)[0])
    rows: dict[str, dict[str, float]] = {}
    for name in names:
        for label, at in (("default", default), ("calibrated", settings[name])):
            rows[f"{name}, {label}"] = {w: float(times[name][w][at]) for w in works}
    rows[ONLINE] = {w: float(times[ONLINE][w][0]) for w in works}
    scored = profile(rows)
    report(context, scored, settings)
    scores = scored.scores
    free = [name for name in names if name != ADAM]
    best = {kind: max(scores[f"{n}, {kind}"] for n in free) for kind in ("default", "calibrated")}
    context.measure("calibration", best["calibrated"] - best["default"])
    context.measure("adam", scores[f"{ADAM}, calibrated"] - best["calibrated"])
    context.measure("adam_gain", scores[f"{ADAM}, calibrated"] - scores[f"{ADAM}, default"])
    context.measure("online", scores[ONLINE] - best["default"])


def calibrated(times: dict[str, np.ndarray]) -> int:
    """The setting with the best score among all of its optimizer."""
    count = len(next(iter(times.values())))
    found = profile({str(at): {w: float(t[at]) for w, t in times.items()} for at in range(count)})
    return int(max(found.scores, key=lambda name: found.scores[name]))


def report(context: Context, scored: Profile, settings: dict[str, int]) -> None:
    """Scores and times."""
    table = []
    for name, score in sorted(scored.scores.items(), key=lambda pair: -pair[1]):
        at = settings.get(name.partition(",")[0]) if name.endswith("calibrated") else None
        shape = "" if at is None else ("constant" if at < len(FACTORS) else "cosine")
        factor = float("nan") if at is None else float(FACTORS[at % len(FACTORS)])
        table.append(
            {
                "optimizer": name,
                "score": score,
                "reached, share": scored.share(name, 1e9),
                "factor": factor,
                "schedule": shape,
            }
        )
    context.table("scores", table)
    best = [row["optimizer"] for row in table[:8]]
    context.plot(
        "profiles",
        {name: Curve(*scored.curve(name)) for name in best},
        x="time / fastest",
        y="share of workloads",
    )


if __name__ == "__main__":
    raise SystemExit(run_experiment.main())
