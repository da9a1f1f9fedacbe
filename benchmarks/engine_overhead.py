"""What the engines' faces cost on top of the searcher and of the engine itself.

`python -m benchmarks.engine_overhead [--quick] [--only PART ...] [--out DIR]` has three parts:

- `suggestions`: milliseconds of one trial (asked for, reported, told) less those that the searcher
  spends proposing, with so many trials told before; for Optuna also less those of the same loop
  with its own random sampler, or with one that does no more than a sampler with a memory has to:
  reads the study once and writes one attribute. At most 5 are wanted. `--cpu-time` is for this
  part alone; the others run in several processes, and are timed by the clock.
- `rate`: Ray's trials per second, relative to its own random search, in rounds that take turns,
  once both workers run; at most 1.1 is wanted. The trials do no work, but report a gradient. All
  have `max_concurrent_trials=2`, as many as there are workers. The last two rows are without that
  limit: Ray then keeps 200 trials of its own random search waiting, and one of a searcher.
  `BayesSearcher` shows what a searcher costs that thinks about every suggestion.
- `restore`: seconds from the start of the restoring until the loop of an interrupted experiment
  takes its next step; at most 5 are wanted with 1,000 trials done. Ray's are given with its own
  random search too, and the part of them that is ours.
"""

import copy
import functools
import itertools
import logging
import math
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import options, ratio, report
from strategies.ledger import Ledger
from strategies.local import minimize
from strategies.observation import Observation, Report, Suggestion
from strategies.schedulers import Hyperband
from strategies.searchers import BayesSearcher, HypergradientSearcher, RandomSearcher, Searcher
from strategies.space import Categorical, Float, SearchSpace

BOUNDS = {
    "suggestions": {"100 trials before, ms": 5.0, "1,000 trials before, ms": 5.0},
    "rate": {"time_ratio": 1.1},
    "restore": {"seconds": 5.0},
}
SPACE = SearchSpace({"l2": Float(1e-3, 1, log=True, shape=(5,)), "kind": Categorical(["a", "b"])})
GRADIENT = {"l2": [0.1] * 5}


class Timed(RandomSearcher):
    """Random search that knows how long it took, by the clock that everything here is timed by."""

    seconds = 0.0
    clock = staticmethod(time.perf_counter)

    def propose(self, *arguments: Any) -> Suggestion:
        """See `Searcher.propose`."""
        start = Timed.clock()
        try:
            return super().propose(*arguments)
        finally:
            Timed.seconds += Timed.clock() - start


def overhead(trial: Callable[[int], Any], told: int, repeats: int) -> float:
    """Milliseconds of a trial without the searcher's own, the median over `repeats`."""
    found = []
    for i in range(told, told + repeats):
        Timed.seconds = 0.0
        start = Timed.clock()
        trial(i)
        found.append(Timed.clock() - start - Timed.seconds)
    return 1e3 * median(found)


# One trial on each engine


def embedded(told: int, repeats: int, folder: Path | None) -> float:
    """`minimize`, from callback to callback."""
    ledger = Ledger(Timed(SPACE))
    for i in range(told):
        ledger.tell(Observation(SPACE.sample(np.random.default_rng(i)), 1.0, GRADIENT, number=i))
    ends: list[tuple[float, float]] = []
    minimize(
        lambda config: Report(1.0, GRADIENT),
        SPACE,
        trials=told + repeats,
        searcher=ledger,
        state_path=None if folder is None else folder / f"{told}.json",
        callbacks=[lambda trial: ends.append((Timed.clock(), Timed.seconds))],
    )
    return 1e3 * median(
        (b - a) - (after - before) for (a, before), (b, after) in itertools.pairwise(ends)
    )


def ray_search(told: int, repeats: int, save: bool) -> float:
    """The calls that Ray makes of a search algorithm; with `save`, as often as it may."""
    from ray import tune
    from ray.tune.utils.util import flatten_dict

    from strategies.ray import HypergradSearch, result

    search = HypergradSearch(Timed)
    space = {
        "l2": [tune.loguniform(1e-3, 1)] * 5,
        "kind": tune.choice(["a", "b"]),
    }
    search.set_search_properties("loss", "min", copy.deepcopy(space))
    row = {**result(1.0, GRADIENT, metric="loss"), "training_iteration": 1, "time_total_s": 1.0}

    def trial(number: int, folder: str | None = None) -> None:
        search.suggest(f"{number}")
        search.on_trial_result(f"{number}", flatten_dict(row))
        search.on_trial_complete(f"{number}", flatten_dict(row))
        if folder is not None:
            search.save_to_dir(folder, "s")

    for i in range(told):
        trial(i)
    with tempfile.TemporaryDirectory() as folder:
        return overhead(lambda i: trial(i, folder if save else None), told, repeats)


def ray_scheduled(told: int, repeats: int) -> float:
    """The same with a Hyperband inside; a trial is one report at a rung."""
    from ray.tune.utils.util import flatten_dict

    from strategies.ray import ScheduledSearch, result

    schedule = functools.partial(Hyperband, max_resource=27, eta=3, iterations=None)
    search = ScheduledSearch(schedule, Timed, space=SPACE, metric="loss", mode="min")
    ids: dict[int, str] = {}

    def trial(number: int) -> None:
        waiting = search.schedule.waiting()
        if waiting:
            search.resume(waiting[0])
            name = ids[waiting[0]]
            search.on_unpause(name)
        else:
            name = f"{number}"
            search.suggest(name)
            own = search.number_of(name)
            assert own is not None
            ids[own] = name
        own = search.number_of(name)
        assert own is not None
        job = search.schedule.job(own)
        assert job is not None
        row = flatten_dict(
            {
                **result(float(own % 7), GRADIENT, metric="loss"),
                "training_iteration": job.resource,
                "time_total_s": 1.0,
            }
        )
        if search.reached(name, row) == "STOP":
            search.on_trial_complete(name, row)

    for i in range(told):
        trial(i)
    return overhead(trial, told, repeats)


def optuna_study(
    told: int, repeats: int, storage: Callable[[str], Any], remembers: bool = False
) -> float:
    """A trial of a study, less the same with Optuna's random sampler.

    Each has a storage for itself, made by name.

    With `remembers` that sampler looks at the study and leaves a mark on the trial, which is what
    Optuna's own samplers do whose suggestions other processes shall see.
    """
    import optuna

    from strategies.optuna import HypergradSampler, suggest
    from strategies.optuna import report as optuna_report

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: Any) -> float:
        suggest(trial, SPACE)
        return optuna_report(trial, 1.0, GRADIENT)

    class Remembering(optuna.samplers.RandomSampler):
        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            study.get_trials(deepcopy=False)
            study._storage.set_trial_system_attr(trial._trial_id, "mark", trial.number)
            return {}

    studies = []
    theirs = Remembering() if remembers else optuna.samplers.RandomSampler()
    for sampler in (HypergradSampler(searcher=Timed, space=SPACE), theirs):
        study = optuna.create_study(storage=storage(type(sampler).__name__))
        # Filled by Optuna's own sampler, which is fast; ours sees these as any other trials.
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        filled = optuna.create_study(sampler=study.sampler)
        filled.optimize(objective, n_trials=told)
        study.add_trials(filled.trials)
        study.sampler = sampler
        study.optimize(objective, n_trials=1)
        studies.append(study)
    # In turns, so that both see the machine at the same speed.
    differences = []
    for _ in range(repeats):
        ours, other = (
            overhead(lambda _, study=study: study.optimize(objective, n_trials=1), told, 1)
            for study in studies
        )
        differences.append(ours - other)
    return median(differences)


def _journal(folder: Path, name: str) -> Any:
    from optuna.storages import JournalStorage

    from strategies.optuna import JournalFile

    return JournalStorage(JournalFile(f"{folder}/{name}.journal"))


def _sqlite(folder: Path, name: str) -> str:
    return f"sqlite:///{folder}/{name}.db"


def suggestions(quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each engine, a column for each number of trials before."""
    repeats = 20 if quick else 100
    engines: dict[str, Callable[[int, Path], float]] = {
        "embedded": lambda told, folder: embedded(told, repeats, None),
        "embedded, saved": lambda told, folder: embedded(told, repeats, folder),
        "Ray": lambda told, folder: ray_search(told, repeats, False),
        "Ray, Hyperband": lambda told, folder: ray_scheduled(told, repeats),
        "Optuna, in memory": lambda told, folder: optuna_study(told, repeats, lambda name: None),
        "Optuna, journal": lambda told, folder: optuna_study(
            told, repeats, functools.partial(_journal, folder)
        ),
        "Optuna, SQLite": lambda told, folder: optuna_study(
            told, repeats, functools.partial(_sqlite, folder)
        ),
        "Optuna, SQLite, over a read and a write": lambda told, folder: optuna_study(
            told, repeats, functools.partial(_sqlite, folder), remembers=True
        ),
    }
    for engine, measure in engines.items():
        row: dict[str, Any] = {"engine": engine}
        for told in (100,) if quick else (100, 1000):
            with tempfile.TemporaryDirectory() as folder:
                row[f"{told:,} trials before, ms"] = measure(told, Path(folder))
        yield row


# Ray, for real


_START = 2.0  # seconds that a worker may take to start
RAYS, OURS = "Ray's random search, no limit", "ours, random, no limit"
# The searcher (without one it is Ray's own), and how many trials there may be at once.
KINDS: dict[str, tuple[type[Searcher] | None, int | None]] = {
    "Ray's random search": (None, 2),
    "ours, random": (RandomSearcher, 2),
    "ours, hypergradient": (HypergradientSearcher, 2),
    "ours, Bayes": (BayesSearcher, 2),
    RAYS: (None, None),
    OURS: (RandomSearcher, None),
}


def _nothing(config: dict[str, Any]) -> None:
    """A bowl in the logarithms, with its gradient."""
    from ray import tune

    from strategies.ray import result

    # Ray drops a worker that has not started when another one is free again.
    if "STARTED" not in os.environ:
        os.environ["STARTED"] = "1"
        time.sleep(_START)
    depths = [math.log(x) + 3 for x in config["l2"]]
    slopes = [2 * d / x for d, x in zip(depths, config["l2"], strict=True)]
    tune.report(result(sum(d * d for d in depths), {"l2": slopes}, metric="loss"))


def _experiment(kind: str, trials: int, folder: str, callbacks: Sequence[Any] = ()) -> Any:
    from ray import tune

    from strategies.ray import HypergradSearch

    searcher, at_once = KINDS[kind]
    return tune.Tuner(
        _nothing,
        param_space={
            "l2": [tune.loguniform(1e-3, 1) for _ in range(5)],
            "kind": tune.choice(["a", "b"]),
        },
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=trials,
            max_concurrent_trials=at_once,
            search_alg=None if searcher is None else HypergradSearch(searcher),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run", storage_path=folder, verbose=0, callbacks=list(callbacks)
        ),
    )


def _start_ray() -> None:
    import ray

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    warnings.simplefilter("ignore")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        object_store_memory=2**27,
        ignore_reinit_error=True,
    )
    logging.getLogger("ray.tune").setLevel("ERROR")


def rate(quick: bool) -> Iterator[dict[str, Any]]:
    """Experiments of trials that do nothing, in turn, from the eleventh result to the last."""
    from ray import tune

    class Ends(tune.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.workers: set[int] = set()

        def on_trial_result(self, result: dict[str, Any], **info: Any) -> None:
            self.times.append(time.perf_counter())
            self.workers.add(result["pid"])

    kinds = list(KINDS)
    trials, rounds, first = (40, 2, 10) if quick else (200, len(kinds), 10)
    _start_ray()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(rounds):
        for kind in kinds[i:] + kinds[:i]:  # so that each kind comes first once
            ends = Ends()
            with tempfile.TemporaryDirectory() as folder:
                _experiment(kind, trials, folder, [ends]).fit()
            if len(ends.workers) != 2:
                raise RuntimeError(f"{len(ends.workers)} workers instead of 2: raise _START")
            seconds[kind].append(ends.times[-1] - ends.times[first])
    for kind in kinds:
        yield {
            "engine": kind,
            "trials": trials,
            "per_second": (trials - 1 - first) / median(seconds[kind]),
            "time_ratio": ratio(seconds, kind, kinds[0]),
        }


def _interrupted(kind: str, trials: int, folder: str) -> None:
    """An experiment with two more trials than it comes to; `folder`/going says when it went on."""
    from ray import tune

    class Watch(tune.Callback):
        def setup(self, **info: Any) -> None:
            self.completed = self.steps = 0

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if not self.steps:
                Path(folder, "going").write_text(f"{time.time()}")
            self.steps += 1

        def on_trial_complete(self, **info: Any) -> None:
            self.completed += 1
            if self.completed == trials:
                os.kill(os.getpid(), signal.SIGINT)  # Ray saves, and stops

    _experiment(kind, trials + 2, folder, [Watch()]).fit()


def restore(quick: bool) -> Iterator[dict[str, Any]]:
    """From the files to the first moment at which the run goes on."""
    import optuna
    from ray import tune

    from strategies.optuna import HypergradSampler, suggest
    from strategies.ray import HypergradSearch
    from strategies.ray import restore as restore_ray

    trials = 100 if quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.json"
        ledger = Ledger(RandomSearcher(SPACE))
        for i in range(trials):
            config = SPACE.sample(np.random.default_rng(i))
            ledger.tell(Observation(config, 1.0, GRADIENT, number=i))
        ledger.save(path)
        start = time.perf_counter()
        minimize(
            lambda config: 1.0,
            SPACE,
            trials=trials,
            searcher=RandomSearcher(SPACE),
            state_path=path,
        )
        yield {"engine": "embedded", "trials": trials, "seconds": time.perf_counter() - start}

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        url = f"sqlite:///{folder}/study.db"
        study = optuna.create_study(study_name="s", storage=url)
        filled = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        filled.optimize(lambda trial: len(suggest(trial, SPACE)), n_trials=trials)
        study.add_trials(filled.trials)
        start = time.perf_counter()
        sampler = HypergradSampler(searcher=RandomSearcher, space=SPACE)
        suggest(optuna.load_study(study_name="s", storage=url, sampler=sampler).ask(), SPACE)
        yield {"engine": "Optuna, SQLite", "trials": trials, "seconds": time.perf_counter() - start}

    _start_ray()
    for kind in (RAYS, OURS):
        with tempfile.TemporaryDirectory() as folder:
            _interrupted(kind, trials, folder)
            run = os.path.join(folder, "run")
            if kind == OURS:
                search = HypergradSearch(RandomSearcher)
                start = time.perf_counter()
                search.restore_from_dir(run)
                seconds = time.perf_counter() - start
                assert len(search.ledger.history) >= trials
                yield {"engine": "Ray, our part", "trials": trials, "seconds": seconds}
            begun = time.time()
            restored = restore_ray if kind == OURS else tune.Tuner.restore
            restored(run, _nothing).fit()
            seconds = float(Path(folder, "going").read_text()) - begun
            yield {"engine": f"Ray, {kind}", "trials": trials, "seconds": seconds}


PARTS = {"suggestions": suggestions, "rate": rate, "restore": restore}


def main() -> None:
    """Measure and print."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    Timed.clock = staticmethod(arguments.clock)
    tables = {part: list(PARTS[part](arguments.quick)) for part in arguments.only}
    bounded = {key: bound for part in arguments.only for key, bound in BOUNDS[part].items()}
    report("engine_overhead", tables, bounded, arguments)


if __name__ == "__main__":
    main()
