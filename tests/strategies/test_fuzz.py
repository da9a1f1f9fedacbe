"""Whatever is given to a public function: it works, or an error says what was expected."""

import inspect
import random
import warnings

import numpy as np
import pytest
from ray import tune
from ray.tune.utils.util import flatten_dict

import strategies
from strategies import (
    BayesSearcher,
    Categorical,
    Choice,
    Constant,
    EvolutionSearcher,
    Float,
    GridSearcher,
    HypergradientSearcher,
    Int,
    Ledger,
    Observation,
    Ordered,
    Ordinal,
    ParetoSearcher,
    RandomSearcher,
    Report,
    SearchSpace,
    Simplex,
    SobolSearcher,
    bandits,
    front,
    importance,
    lamarckian,
    laws,
    page,
    plots,
    policies,
    population,
    report,
    schedulers,
    searchers,
    stopping,
    tangents,
)
from strategies import optuna as on_optuna
from strategies import ray as on_ray
from strategies import transfer as moving
from strategies.local import minimize
from strategies.schedulers import ASHA, Hyperband, IterativeDeepeningHyperband, run
from strategies.space import Logit, around
from strategies.transfer import transfer

AT_ONCE = stopping.Stop(seconds=1e-9)
SPACE = SearchSpace(
    {
        "x": Float(0.0, 1.0),
        "l2": Float(1e-3, 1.0, log=True, shape=(2,)),
        "n": Int(1, 4),
        "g": {"k": Categorical(["a", "b"])},
    }
)
CALLS = 3000


class Odd:
    """An object that is nothing that anybody expects."""


VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 10**400, 0.5, -2.5, float("nan"), float("inf"), 1e308, "",
    "x", "l2", "min", b"x", 1j, [], [1], [0.5, 0.5], [[1, 2], [3]], [None], (), (2,), (-1,), {},
    {"x": 0.5}, {"x": None}, {"x": "a"}, {"y": 1}, {"x": {"y": 1}}, {1: 2}, {"l2": [0.1, 0.2]},
    {"g/k": "c"}, {"g": {"k": "a"}}, {"g": 1}, np.float32(0.5), np.int64(2), np.array([0.5, 0.1]),
    np.array(["a"]), np.array([None]), np.datetime64("2020-01-01"), np.zeros((2, 2)), Odd(), Odd,
    len, SPACE, Float(0, 1), RandomSearcher(SPACE), Report(1.0), {"x": Float(0, 1)}, set(), {1},
    range(3),
]  # fmt: skip


def search_by(kind):
    """What a searcher makes of an observation that was accepted."""

    def told(*arguments):
        ledger = Ledger(kind(SPACE))
        for _ in range(5):
            ledger.tell(Observation(ledger.ask().config, 1.0, {"x": 0.5}))
        value, gradient, error = arguments
        asked = ledger.ask()
        ledger.tell(Observation(asked.config, value, gradient, error, number=asked.number))
        ledger.ask()

    return told


def tell(*arguments):
    ledger = Ledger(ParetoSearcher(SPACE))
    asked = ledger.ask()
    config, value, gradient, error, cost, resource = arguments
    ledger.tell(
        Observation(
            asked.config if config is None else config, value, gradient, error, cost, resource
        )
    )


def tell_scheduler(*arguments):
    scheduler = ASHA(RandomSearcher(SPACE), 9)
    value, gradient, config, cost = arguments
    scheduler.tell(scheduler.ask().number, Report(value, gradient, None, config, cost))


def search(trials, workers, timeout, value):
    few = trials if not isinstance(trials, int) or isinstance(trials, bool) or trials < 3 else 2
    threads = workers if not isinstance(workers, int) or workers < 5 else 2
    minimize(lambda config: value, SPACE, trials=few, workers=threads, timeout=timeout)


def call_back(callbacks, stop):
    minimize(zero, SPACE, trials=1, callbacks=callbacks, stop=stop)


def schedule(jobs, budget, workers, timeout):
    threads = workers if not isinstance(workers, int) or workers < 5 else 2
    run(
        lambda job: 1.0,
        ASHA(RandomSearcher(SPACE), 3, configurations=2),
        jobs=jobs, budget=budget, workers=threads, timeout=timeout,
    )  # fmt: skip


PARAMS = {"x": tune.uniform(0, 1), "n": tune.randint(1, 5), "c": 3, "g": {"k": tune.choice("ab")}}


def ray_trial(value, gradient, config):
    search = on_ray.HypergradSearch(RandomSearcher, space=PARAMS, metric="loss", mode="min")
    search.suggest("a")
    row = {"loss": value, "hypergrad": {"gradient": gradient, "config": config}}
    search.on_trial_complete("a", flatten_dict(row))
    assert not search.ledger.pending
    search.get_state()


#: Entry points: a function and how many values it takes.
ENTRIES = {
    "Float": (lambda a, b, c, d: Float(a, b, default=c, spread=d), 4),
    "Float array": (lambda a, b, c: Float(0.1, 1.0, shape=a, default=b, step=c), 3),
    "Float log": (lambda a, b, c: Float(a, b, log=True, step=c), 3),
    "Int": (lambda a, b, c, d: Int(a, b, step=c, default=d), 4),
    "Logit": (lambda a, b, c, d: Logit(a, b, default=c, spread=d), 4),
    "around odds": (lambda a, b: around(a, b, kind="logit"), 2),
    "Categorical": (lambda a, b, c: Categorical(a, weights=b, default=c), 3),
    "Ordinal": (lambda a, b, c: Ordinal(a, spread=b, default=c), 3),
    "Simplex": (lambda a, b, c: Simplex(a, total=b, default=c), 3),
    "Ordered": (lambda a, b, c, d: Ordered(a, b, c, default=d), 4),
    "Choice": (lambda a, b, c: Choice(a, default=b, weights=c), 3),
    "Constant": (lambda a: SearchSpace({"x": Float(0, 1), "c": Constant(a)}).describe(), 1),
    "when": (lambda a: SearchSpace({"x": Float(0, 1, when=a), "n": Int(0, 2)}), 1),
    "SearchSpace": (lambda a, b: SearchSpace(a, constraints=b), 2),
    "space of a value": (lambda a: SearchSpace({"x": Float(0, 1), "y": a}).default(), 1),
    "validate": (SPACE.validate, 1),
    "flatten": (SPACE.flatten, 1),
    "encode": (SPACE.encode, 1),
    "decode": (SPACE.decode, 1),
    "complete": (SPACE.complete, 1),
    "merged": (lambda a: SPACE.merged(SPACE.default(), a), 1),
    "value": (lambda a: SPACE.merged(SPACE.default(), {"x": a}), 1),
    "array": (lambda a: SPACE.merged(SPACE.default(), {"l2": a}), 1),
    "choice": (lambda a: SPACE.merged(SPACE.default(), {"g/k": a}), 1),
    "integer": (lambda a: SPACE.merged(SPACE.default(), {"n": a}), 1),
    "pull_back": (lambda a: SPACE.pull_back(SPACE.default(), a), 1),
    "gradient entry": (lambda a: SPACE.pull_back(SPACE.default(), {"l2": a}), 1),
    "from_json": (SPACE.from_json, 1),
    "from_dict": (SearchSpace.from_dict, 1),
    "from_dict of a domain": (lambda a, b: SearchSpace.from_dict({"x": {"kind": a, "low": b}}), 2),
    "report": (lambda a, b, c, d: report(a, b, gradient_error=c, config=d), 4),
    "report numbers": (lambda a, b: report(1.0, cost=a, resource=b), 2),
    "tell": (tell, 6),
    "tell a gradient": (lambda a: tell(None, 1.0, a, None, 1.0, None), 1),
    "tell a scheduler": (tell_scheduler, 4),
    "ask bayes": (search_by(BayesSearcher), 3),
    "ask hypergradient": (search_by(HypergradientSearcher), 3),
    "load_state_dict": (lambda a: Ledger(RandomSearcher(SPACE)).load_state_dict(a), 1),
    "load a schedule": (lambda a: ASHA(RandomSearcher(SPACE), 9).load_state_dict(a), 1),
    "warm_start": (lambda a: Ledger(RandomSearcher(SPACE)).warm_start(a), 1),
    "searcher": (lambda a, b, c: RandomSearcher(a, seed=b, first=c), 3),
    "first": (lambda a: RandomSearcher(SPACE, first=a), 1),
    "evolution": (lambda a, b: EvolutionSearcher(SPACE, population=a, contest=b), 2),
    "grid": (lambda a: GridSearcher(SPACE, points=a), 1),
    "bayes": (lambda a, b, c: BayesSearcher(SPACE, startup=a, gradients=b, prior=c), 3),
    "hypergradient": (lambda a, b: HypergradientSearcher(SPACE, radius=a, memory=b), 2),
    "pareto": (lambda a: ParetoSearcher(SPACE, startup=a), 1),
    "sobol": (lambda a: SobolSearcher(SPACE, seed=a), 1),
    "Hyperband": (lambda a, b, c, d: Hyperband(a, b, eta=c, iterations=d), 4),
    "Hyperband options": (
        lambda a, b, c: Hyperband(RandomSearcher(SPACE), 9, min_resource=a, eta=b, iterations=c), 3,
    ),
    "ASHA": (lambda a, b, c: ASHA(RandomSearcher(SPACE), a, mode=b, configurations=c), 3),
    "deepen": (lambda a: IterativeDeepeningHyperband(RandomSearcher(SPACE), 3).deepen(a), 1),
    "minimize": (search, 4),
    "minimize in": (lambda a, b: minimize(len, a, trials=1, searcher=b), 2),
    "minimize with": (call_back, 2),
    "run": (schedule, 4),
}  # fmt: skip

ENTRIES |= {
    "Ray's space": (on_ray.space_from_ray, 1),
    "Ray's domain": (lambda a: on_ray.space_from_ray({"x": tune.uniform(0, 1), "y": a}), 1),
    "Ray's search": (
        lambda a, b, c, d, e: on_ray.HypergradSearch(
            RandomSearcher, space=a, metric=b, mode=c, max_concurrent=d, seed=e
        ), 5,
    ),
    "Ray's points": (
        lambda a: on_ray.HypergradSearch(RandomSearcher, space=PARAMS, points_to_evaluate=a), 1,
    ),
    "Ray's point": (
        lambda a: on_ray.HypergradSearch(RandomSearcher, space=PARAMS, points_to_evaluate=[a]), 1,
    ),
    "Ray's evaluated point": (
        lambda a, b: on_ray.HypergradSearch(
            RandomSearcher, space=PARAMS, mode="min"
        ).add_evaluated_point(a, b), 2,
    ),
    "Ray's state": (
        lambda a: on_ray.HypergradSearch(RandomSearcher, space=PARAMS).set_state(a), 1,
    ),
    "Ray's result": (lambda a, b, c: on_ray.result(a, b, cost=c), 3),
    "Ray's workers": (on_ray.worker_environment, 1),
    "Ray's trial": (ray_trial, 3),
    "Optuna's space": (on_optuna.space_from_optuna, 1),
    "Optuna's sampler": (lambda a, b: on_optuna.HypergradSampler(space=a, seed=b), 2),
    "Optuna's pruner": (lambda a, b, c: on_optuna.RungPruner(a, min_resource=b, eta=c), 3),
    "Optuna's names": (on_optuna.space_to_optuna, 1),
}  # fmt: skip

#: With one parameter, for bandits, and a model at two sizes.
FINITE = SearchSpace({"n": Int(1, 4)})
SMALL, LARGE = ({"w": np.zeros((2, m)), "v": np.zeros((m, 1))} for m in (4, 8))
LINE = policies.Linear(["x"], 0.0, 1.0)


def zero(*_):
    return 0.0


def judged(cost, choose, instances, runs):
    few = 2 if isinstance(runs, int) and runs > 2 else runs
    rollouts = policies.Rollouts(LINE, lambda *_: cost, [1])
    rollouts.judge_choice(choose, instances, runs=few)


def trained(**options):
    return population.Population(zero, zero, zero, **{"size": 2, "space": SPACE} | options)


ENTRIES |= {
    "TsallisINF": (
        lambda a, b, c, d: bandits.TsallisINF(FINITE, seed=a, first=b, lowest=c, failed=d), 4,
    ),
    "BinnedTsallisINF": (
        lambda a, b: bandits.BinnedTsallisINF(FINITE, (0.0, 1.0), bins=a, lowest=b), 2,
    ),
    "ChebCB": (lambda a, b, c: bandits.ChebCB(FINITE, a, terms=b, lowest=c), 3),
    "context": (lambda a: bandits.ChebCB(FINITE, (0.0, 1.0)).propose(0, [], [], a), 1),
    "Population": (
        lambda a, b, c, d, e: trained(size=a, batch=b, buckets=c, seed=d, memory=e), 5,
    ),
    "Population's devices": (lambda a: trained(devices=a), 1),
    "Population's run": (
        lambda a, b, c, d, e: trained().run(
            a, trials=b, steps=c, checkpoint_seconds=d, callbacks=e
        ), 5,
    ),
    "PBT": (
        lambda a, b, c, d: population.PBT(RandomSearcher(SPACE), a, b, truncation=c, explore=d), 4,
    ),
    "Linear": (lambda a, b, c, d, e: policies.Linear(a, b, c, log=d, size=e), 5),
    "Rollouts": (lambda a, b, c, d: policies.Rollouts(LINE, zero, a, runs=b, seed=c, cap=d), 4),
    "Table": (lambda a: policies.Table(a, [1, 2]), 1),
    "Table's feature": (lambda a, b: policies.Table({"x": a}, b), 2),
    "Thresholds": (lambda a, b, c: policies.Thresholds(a, [1, 2], low=b, high=c), 3),
    "policy's choice": (lambda a: LINE.choose({"constant": 0.5, "x": 0.1}, a), 1),
    "judge": (judged, 4),
    "transfer": (lambda a, b, c, d: transfer(a, SMALL, LARGE, kinds=b, laws=c, size=d), 4),
    "minimize population": (lambda a: minimize(zero, SPACE, stop=AT_ONCE, population=a), 1),
    "run_population": (lambda a, b: on_optuna.run_population(a, b, trials=1), 2),
}  # fmt: skip


def public(module):
    """The classes and functions of a module that users call, by their name."""
    own = [n for n, e in vars(module).items() if getattr(e, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
        entry = getattr(module, name)
        error = inspect.isclass(entry) and issubclass(entry, Exception)
        if callable(entry) and not inspect.isabstract(entry) and not error:
            yield f"{module.__name__}.{name}", entry


PUBLIC = (
    bandits, laws, policies, population, strategies, stopping, moving, front, importance,
    lamarckian, on_optuna, on_ray, plots, schedulers, searchers, tangents,
)  # fmt: skip
#: Those that need a cluster.
ELSEWHERE = {"strategies.ray.report", "strategies.ray.restore"}
WHOLE = {
    name: entry
    for module in PUBLIC
    for name, entry in public(module)
    if name not in ELSEWHERE
} | {"report_page": page.report_page}  # fmt: skip

FOUND = minimize(lambda config: config["x"], SPACE, trials=5, searcher=RandomSearcher(SPACE))
#: Parameters for which most calls are given what they expect, so that the others are looked at.
FITTING = {
    "space": SPACE,
    "source": FOUND,
    "history": FOUND.history,
    "searcher": RandomSearcher(SPACE),
}

#: Those that have their own engine.
RARE = {"minimize": 60, "run": 60, "ask bayes": 20, "ask hypergradient": 20}


#: Those that draw, or fit a process.
DRAWN = {
    "report_page": 10,
    "strategies.plots.contours": 15,
    "strategies.plots.slices": 15,
    "strategies.importance.importance": 20,
}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_every_argument_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where texts are names of files
    function, rng = WHOLE[name], random.Random(name)
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind not in (2, 4)
    ]
    for _ in range(DRAWN.get(name, 60)):
        given = {
            p.name: FITTING[p.name]
            if p.name in FITTING and rng.random() < 0.7
            else rng.choice(VALUES)
            for p in parameters
            if p.default is p.empty or rng.random() < 0.4
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(**given)
            except Exception as error:
                if not isinstance(error, ValueError | TypeError) or "expected" not in str(error):
                    pytest.fail(f"{name}({given!r:.300}): {error!r}")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_error_is_ours_and_says_what_was_expected(name):
    function, arity = ENTRIES[name]
    rng = random.Random(name)
    for _ in range(RARE.get(name, CALLS // len(ENTRIES) * (1 + arity) // 3)):
        given = [rng.choice(VALUES) for _ in range(arity)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(*given)
            except Exception as error:
                if not isinstance(error, ValueError | TypeError) or "expected" not in str(error):
                    pytest.fail(f"{name}{tuple(given)!r:.300}: {error!r}")
