"""Schedulers against the published arithmetic, and against plain loops that follow the papers."""

import json
import math
import time

import numpy as np
import pytest

from strategies.observation import Report, Suggestion
from strategies.schedulers import (
    ASHA,
    Hyperband,
    IterativeDeepeningHyperband,
    hyperband_cost,
    run,
)
from strategies.schedulers.hyperband import bracket_size
from strategies.searchers import HypergradientSearcher, RandomSearcher, Searcher
from strategies.space import Float, SearchSpace

SPACE = SearchSpace({"x": Float(0, 1), "y": Float(0, 1)})


def curve(config, resource):
    """A learning curve whose ranking changes with the resource."""
    x, y = config["x"], config["y"]
    return (x - 0.3) ** 2 + y / resource + 0.1 * math.sin(40 * x * y + resource)


def objective(job):
    return Report(curve(job.config, job.resource), cost=1.0)


def table(scheduler):
    """All values, by number and resource."""
    return {
        (c.number, scheduler.resources[level]): o.value
        for c in scheduler.candidates.values()
        for level, o in c.results.items()
    }


# -- arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "eta", "sizes", "cost"),
    [
        (16, 2, [16, 10, 7, 5, 5], 372),
        (32, 2, [32, 20, 12, 8, 6, 6], 1128),
        (64, 2, [64, 38, 23, 14, 10, 7, 7], 2948),
        (9, 3, [9, 5, 3], 78),
        (27, 3, [27, 12, 6, 4], 423),
        (81, 3, [81, 34, 15, 8, 5], 1902),
        (243, 3, [243, 98, 41, 18, 9, 6], 8457),
        (48, 3, [27, 12, 6, 4], 752),
    ],
)
def test_bracket_sizes_and_costs_of_the_paper(top, eta, sizes, cost):
    scheduler = Hyperband(RandomSearcher(SPACE), top, eta=eta, integer=False)
    assert [b.size for b in scheduler.brackets()] == sizes
    assert hyperband_cost(scheduler) == pytest.approx(cost)
    assert run(objective, scheduler).spent == pytest.approx(cost)


def test_fractional_resources():
    scheduler = Hyperband(RandomSearcher(SPACE), 16, eta=3, integer=False)
    assert scheduler.resources == [16 / 9, 16 / 3, 16]
    assert run(objective, scheduler).spent == pytest.approx(138.6667, abs=1e-4)
    assert Hyperband(RandomSearcher(SPACE), 16, eta=3).resources == [2, 5, 16]
    decimal = Hyperband(RandomSearcher(SPACE), 0.9, min_resource=0.1, eta=3, integer=False)
    assert decimal.resources == [0.1, 0.3, 0.9]


@pytest.mark.parametrize(("low", "high", "eta", "rungs"), [(1, 1000, 10, 4), (1, 243, 3, 6)])
def test_rungs_that_floating_logarithms_lose(low, high, eta, rungs):
    scheduler = Hyperband(RandomSearcher(SPACE), high, min_resource=low, eta=eta)
    assert len(scheduler.resources) == rungs


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"eta": 1}, "eta"),
        ({"eta": 2.5}, "eta"),
        ({"min_resource": 100}, "'max_resource': expected at least min_resource"),
        ({"min_resource": -1}, "min_resource"),
        ({"min_resource": 0.5}, "integer=False"),
        ({"iterations": 0}, "iterations"),
        ({"variant": "greedy"}, "variant"),
    ],
)
def test_options_that_make_no_sense_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        IterativeDeepeningHyperband(RandomSearcher(SPACE), 27, **options)


# -- Hyperband and its deepening, against plain loops --------------------------------------


def draw(scheduler, bottom, index):
    """The configuration of a bracket's place: what the published algorithms call a stream."""
    bracket = next(b for b in scheduler.brackets() if b.bottom == bottom)
    number = bracket.numbers[index]
    return number, scheduler.searcher.propose(number, [], []).config


def plain_hyperband(scheduler, top, eta, variant, cache, brackets):
    """Successive halving in every bracket, written as the papers do, with a cache of values.

    `brackets` holds the lists of former runs, by the lowest resource; returns the new cost.
    """
    s_max = round(math.log(top, eta))
    cost = 0
    best = (math.inf, None)
    for s in range(s_max, -1, -1):
        n = math.ceil((s_max + 1) / (s + 1) * eta**s - 1e-9)
        low = top // eta**s
        former = set(brackets.get(low, []))
        members = [draw(scheduler, s_max - s, j) for j in range(n)]
        names = [number for number, _ in members]
        configs = dict(members)
        brackets[low] = names
        before = dict(cache)
        current = names
        for i in range(s + 1):
            r = low * eta**i
            for name in current:
                if (name, r) not in cache:
                    cache[name, r] = curve(configs[name], r)
                    cost += r
            k = n // eta ** (i + 1)

            def order(name, r=r):
                return cache[name, r], name

            if i == s:
                top_value, top_name = min(order(name) for name in current)
                best = min(best, (top_value, top_name))
            elif variant == "discarding":
                current = sorted(current, key=order)[:k]
            elif variant == "preserving":
                pool = set(current) | {m for m in former if (m, r) in before}
                current = sorted(pool, key=order)[:k]
            else:
                beyond = [m for m in current if (m, r * eta) in before]
                rest = sorted((m for m in current if m not in beyond), key=order)
                assert len(beyond) <= k
                current = beyond + rest[: k - len(beyond)]
    return cost, best


@pytest.mark.parametrize("variant", ["discarding", "preserving", "efficient"])
@pytest.mark.parametrize(("start", "eta", "times"), [(16, 2, 1), (9, 3, 1), (4, 2, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_deepening_follows_the_published_algorithm(variant, start, eta, times, seed):
    searcher = RandomSearcher(SPACE, seed=seed)
    scheduler = IterativeDeepeningHyperband(searcher, start, eta=eta, variant=variant)
    cache, brackets, cost = {}, {}, 0
    top = start
    for _ in range(times + 1):
        run(objective, scheduler)
        spent, best = plain_hyperband(scheduler, top, eta, variant, cache, brackets)
        cost += spent
        assert scheduler.finished
        assert table(scheduler) == cache
        assert scheduler.spent == cost
        assert (scheduler.incumbent.value, scheduler.incumbent.number) == best
        scheduler.deepen()
        assert not scheduler.finished
        top *= eta


def fresh(top, eta, seed, variant="discarding"):
    scheduler = IterativeDeepeningHyperband(
        RandomSearcher(SPACE, seed=seed), top, eta=eta, variant=variant
    )
    return run(objective, scheduler)


@pytest.mark.parametrize(("low", "eta"), [(16, 2), (9, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_what_the_variants_promise(low, eta, seed):
    """Discarding: the rerun's result. Efficient: the rerun's cost. All: less than both runs."""
    rerun = fresh(low * eta, eta, seed)
    both = fresh(low, eta, seed).spent + rerun.spent
    for variant in ("discarding", "preserving", "efficient"):
        scheduler = fresh(low, eta, seed, variant)
        scheduler.deepen()
        run(objective, scheduler)
        assert rerun.spent <= scheduler.spent < 0.88 * both
        if variant == "discarding":
            assert scheduler.incumbent == rerun.incumbent
            assert table(rerun).items() <= table(scheduler).items()
        if variant == "efficient":
            assert scheduler.spent == rerun.spent


def test_former_incumbent_is_reported_beside_the_new_one():
    scheduler = fresh(9, 3, 0, "discarding")
    old = scheduler.incumbent
    scheduler.deepen()
    assert scheduler.incumbent is None  # nothing has been trained to 27 yet
    assert scheduler.incumbents[9] == old
    run(objective, scheduler)
    assert scheduler.incumbent.resource == 27


def test_deepening_in_the_middle_keeps_what_is_pending():
    scheduler = IterativeDeepeningHyperband(RandomSearcher(SPACE), 9, eta=3)
    jobs = [scheduler.ask() for _ in range(12)]
    for job in jobs[:9]:
        scheduler.tell(job.number, objective(job))
    scheduler.deepen()
    assert [j.resource for j in scheduler.pending()] == [j.resource for j in jobs[9:]]
    for job in jobs[9:]:
        scheduler.tell(job.number, objective(job))
    run(objective, scheduler)
    assert scheduler.spent == fresh(27, 3, 0, "efficient").spent


def test_later_brackets_run_while_a_straggler_is_waited_for():
    scheduler = Hyperband(RandomSearcher(SPACE), 9, eta=3)
    straggler = scheduler.ask()
    done = [straggler.number]
    while (job := scheduler.ask()) is not None:
        scheduler.tell(job.number, objective(job))
        done.append(job.number)
    assert not scheduler.finished
    # All of the other brackets, and the rest of the first rung of the first.
    assert len(scheduler.candidates) == 9 + 5 + 3
    scheduler.tell(straggler.number, objective(straggler))
    run(objective, scheduler)
    assert scheduler.finished
    assert table(scheduler) == table(run(objective, Hyperband(RandomSearcher(SPACE), 9, eta=3)))


@pytest.mark.parametrize("workers", [1, 3])
def test_decisions_do_not_depend_on_the_order_of_results(workers):
    alone = run(objective, Hyperband(RandomSearcher(SPACE), 27, eta=3))
    rng = np.random.default_rng(workers)
    shuffled = Hyperband(RandomSearcher(SPACE), 27, eta=3)
    running = []
    while not shuffled.finished:
        while len(running) < 1 + 3 * workers and (job := shuffled.ask()) is not None:
            running.append(job)
        job = running.pop(rng.integers(len(running)))
        shuffled.tell(job.number, objective(job))
    assert table(shuffled) == table(alone)


def test_iterations_are_independent_and_endless_if_wanted():
    scheduler = run(objective, Hyperband(RandomSearcher(SPACE), 9, eta=3, iterations=2))
    assert scheduler.spent == 2 * 78
    assert len({c.config["x"] for c in scheduler.candidates.values()}) == 2 * 17
    endless = Hyperband(RandomSearcher(SPACE), 9, eta=3, iterations=None)
    with pytest.raises(ValueError, match="no end"):
        run(objective, endless)
    run(objective, endless, budget=200)
    assert 200 <= endless.spent_resumed < 209
    assert not endless.finished


# -- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, -math.inf])
def test_failures_are_never_promoted(bad):
    scheduler = Hyperband(RandomSearcher(SPACE), 9, eta=3)
    failed = set()

    def often(job):
        if job.config["x"] > 0.5:
            failed.add(job.number)
            return Report(bad)
        return objective(job)

    run(often, scheduler)
    assert scheduler.finished
    for number in failed:
        assert list(scheduler.candidates[number].results) == [
            min(scheduler.candidates[number].results)
        ]
    assert scheduler.incumbent.config["x"] <= 0.5


def test_a_bracket_without_any_finite_value_ends():
    scheduler = Hyperband(RandomSearcher(SPACE), 9, eta=3)
    run(lambda job: math.nan, scheduler)
    assert scheduler.finished
    assert scheduler.incumbent is None
    assert len(table(scheduler)) == 9 + 5 + 3


def test_exceptions_are_failures_with_a_warning():
    def broken(job):
        raise RuntimeError("on purpose")

    scheduler = Hyperband(RandomSearcher(SPACE), 3, eta=3)
    with pytest.warns(UserWarning, match="on purpose"):
        run(broken, scheduler)
    assert all(
        o.status == "failed" for c in scheduler.candidates.values() for o in c.results.values()
    )


def test_repeated_late_and_unknown_results():
    scheduler = Hyperband(RandomSearcher(SPACE), 9, eta=3)
    job = scheduler.ask()
    scheduler.tell(job.number, 1.0)
    scheduler.tell(job.number, 2.0)
    assert scheduler.candidates[job.number].value(job.level) == 1.0
    with pytest.raises(ValueError, match="handed out"):
        scheduler.tell(12345, 1.0)
    lost = scheduler.ask()
    scheduler.forget(lost.number)
    assert scheduler.ask() == lost


# -- searchers inside ------------------------------------------------------------------------


def test_searcher_sees_one_fidelity_and_gradients():
    shown = []

    class Spy(Searcher):
        def _propose(self, number, history, pending):
            shown.append((number, history, pending))
            return Suggestion(number, self.space.sample(self.rng(number)), {"remark": number})

    def with_gradient(job):
        return Report(curve(job.config, job.resource), {"x": 1.0})

    scheduler = Hyperband(Spy(SPACE), 9, eta=3, iterations=3)
    run(with_gradient, scheduler)
    for _, history, _ in shown:
        assert len({o.resource for o in history}) <= 1
    _, last, _ = shown[-1]
    assert last[0].resource == 9  # enough of them at the maximum, by then
    assert all(o.gradient == {"x": 1.0} and o.note == {"remark": o.number} for o in last)


def test_hypergradient_searcher_inside_beats_random():
    def smooth(job):
        x, y = job.config["x"], job.config["y"]
        value = (x - 0.21) ** 2 + 3 * (y - 0.77) ** 2 + 0.1 / job.resource
        return Report(value, {"x": 2 * (x - 0.21), "y": 6 * (y - 0.77)})

    found = {
        kind: run(smooth, Hyperband(kind(SPACE), 9, eta=3, iterations=2)).incumbent.value
        for kind in (HypergradientSearcher, RandomSearcher)
    }
    assert found[HypergradientSearcher] < 0.1 / 9 + 1e-6 < found[RandomSearcher]


def test_first_points_are_in_the_first_bracket():
    points = [{"x": 0.1, "y": 0.2}, {"x": 0.3, "y": 0.4}]
    scheduler = Hyperband(RandomSearcher(SPACE, first=points), 9, eta=3)
    assert [scheduler.ask().config for _ in range(2)] == points
    run(objective, scheduler)
    assert len(scheduler.candidates) == 17


# -- ASHA ------------------------------------------------------------------------------------


def test_asha_promotes_the_top_fraction_highest_rung_first():
    scheduler = ASHA(RandomSearcher(SPACE), 9, eta=3, configurations=9)
    values = iter([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 0.0, 7.0, 8.0])
    log = []
    while (job := scheduler.ask()) is not None:
        value = next(values) if job.level == 0 else scheduler.candidates[job.number].value(0)
        scheduler.tell(job.number, value)
        log.append((job.number, job.resource, job.resume_from))
    assert scheduler.finished
    # After three results the best one goes on; after six, the second best; number 6 is best of all.
    assert log == [
        (0, 1, 0),
        (1, 1, 0),
        (2, 1, 0),
        (1, 3, 1),
        (3, 1, 0),
        (4, 1, 0),
        (5, 1, 0),
        (3, 3, 1),
        (6, 1, 0),
        (6, 3, 1),
        (6, 9, 3),
        (7, 1, 0),
        (8, 1, 0),
    ]


def test_asha_stopping_decides_once_on_arrival():
    scheduler = ASHA(RandomSearcher(SPACE), 9, eta=3, mode="stopping", configurations=6)
    going_on = {}
    for value in [5.0, 6.0, 7.0, 1.0, 2.0, 0.5]:
        job = scheduler.start()
        scheduler.tell(job.number, value)
        going_on[value] = scheduler.promote(only=job.number) is not None
        scheduler.forget(job.number)
    # The first two have nothing to be compared with; then the top third of those so far.
    assert going_on == {5.0: True, 6.0: True, 7.0: False, 1.0: True, 2.0: False, 0.5: True}


def test_asha_never_promotes_failures():
    for mode in ("promotion", "stopping"):
        scheduler = ASHA(RandomSearcher(SPACE), 9, eta=3, mode=mode, configurations=9)
        run(lambda job: math.nan, scheduler)
        assert scheduler.finished
        assert len(table(scheduler)) == 9


@pytest.mark.parametrize("options", [{"mode": "middle"}, {"configurations": 0}])
def test_asha_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ASHA(RandomSearcher(SPACE), 9, **options)


# -- state -----------------------------------------------------------------------------------


def makers():
    searcher = HypergradientSearcher(SPACE, seed=3)
    return {
        "hyperband": lambda: Hyperband(searcher, 9, eta=3),
        "deepening": lambda: IterativeDeepeningHyperband(searcher, 9, eta=3),
        "promotion": lambda: ASHA(searcher, 9, eta=3, configurations=12),
        "stopping": lambda: ASHA(searcher, 9, eta=3, configurations=12, mode="stopping"),
    }


@pytest.mark.parametrize("kind", makers())
def test_restored_scheduler_decides_as_the_uninterrupted_one(kind, tmp_path):
    make = makers()[kind]
    whole = run(objective, make())
    path = tmp_path / "state.json"
    for jobs in range(1, 40, 4):
        run(objective, make(), jobs=jobs, state_path=path)
    restored = run(objective, make(), state_path=path)
    assert table(restored) == table(whole)
    assert restored.incumbent == whole.incumbent


def test_pending_jobs_are_done_again_after_a_kill(tmp_path):
    make = makers()["hyperband"]
    killed = make()
    for _ in range(3):
        killed.ask()
    killed.save(tmp_path / "state.json")
    restored = make()
    restored.restore(tmp_path / "state.json")
    assert restored.pending() == killed.pending()
    run(objective, restored)
    run(objective, restored, state_path=None)
    assert restored.finished


def test_grown_maximum_survives_a_restore(tmp_path):
    make = makers()["deepening"]
    scheduler = run(objective, make())
    scheduler.deepen()
    scheduler.save(tmp_path / "state.json")
    restored = make()
    restored.restore(tmp_path / "state.json")
    assert restored.max_resource == 27
    assert table(run(objective, restored)) == table(run(objective, scheduler))


def test_growing_by_name_is_idempotent_and_checked():
    scheduler = IterativeDeepeningHyperband(RandomSearcher(SPACE), 4, eta=2)
    scheduler.deepen(16)
    scheduler.deepen(16)
    assert scheduler.resources == [1, 2, 4, 8, 16]
    for wrong in (24, 8, 15.5):
        with pytest.raises(ValueError, match="16 times a power of 2"):
            scheduler.deepen(wrong)


def test_live_scheduler_is_ahead_of_its_file(tmp_path):
    scheduler = makers()["deepening"]()
    run(objective, scheduler, state_path=tmp_path / "s")
    scheduler.deepen()
    run(objective, scheduler, state_path=tmp_path / "s")
    assert scheduler.incumbent.resource == 27
    again = run(objective, makers()["deepening"](), state_path=tmp_path / "s")
    assert table(again) == table(scheduler)


def test_states_of_other_schedulers_are_refused():
    state = json.loads(json.dumps(Hyperband(RandomSearcher(SPACE), 9, eta=3).state_dict()))
    with pytest.raises(ValueError, match="state: expected one of ASHA"):
        ASHA(RandomSearcher(SPACE), 9).load_state_dict(state)
    with pytest.raises(ValueError, match="'eta': expected 2, received 3"):
        Hyperband(RandomSearcher(SPACE), 9, eta=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "few", "many"),
    [
        (lambda n: Hyperband(RandomSearcher(SPACE), 4, eta=2, iterations=n), 1, 2),
        (lambda n: ASHA(RandomSearcher(SPACE), 4, eta=2, configurations=n), 6, 12),
    ],
)
def test_finished_scheduler_can_be_given_more_to_do(make, few, many, tmp_path):
    path = tmp_path / "s"
    before = table(run(objective, make(few), state_path=path))
    after = run(objective, make(many), state_path=path)
    assert table(after).items() >= before.items()
    assert after.finished
    assert len(after.candidates) > len(before)
    with pytest.raises(ValueError, match=f"expected {few}, received {many}"):
        make(few).restore(path)


def test_budget_counts_jobs_that_run():
    one = ASHA(RandomSearcher(SPACE), 4, eta=2, configurations=20)
    assert run(objective, one, budget=6).spent_resumed == 6
    four = ASHA(RandomSearcher(SPACE), 4, eta=2, configurations=20)
    assert run(slowly, four, budget=3, workers=4).spent_resumed == 3


def slowly(job):
    time.sleep(0.05)
    return objective(job)


def test_progress_names_the_rungs():
    scheduler = Hyperband(RandomSearcher(SPACE), 9, eta=3)
    run(objective, scheduler, jobs=10)
    assert scheduler.progress() == "iteration 0, bracket from 1: 1: 9/9, 3: 1/3"


def test_bracket_sizes_are_exact_integers():
    for top in range(12):
        for s in range(top + 1):
            for eta in (2, 3, 4):
                assert bracket_size(top, s, eta) == -(-((top + 1) * eta**s) // (s + 1))
