"""Runs of Ray Tune that end before their search has, and set-ups that could not work."""

import functools
import pathlib

import pytest
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Repeater
from ray.tune.stopper import Stopper

from strategies import Stop
from strategies.ray import HypergradSearch, ScheduledSearch, SearchStopper, restore
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher

#: Ray passes an error of the set-up on as one of its own.
REFUSED = (ValueError, RuntimeError, tune.TuneError)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        "local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=2**27,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


def loss(x, epoch):
    return (x - 1) ** 2 + 1 / epoch


class Train(tune.Trainable):
    def setup(self, config):
        self.x, self.epoch = config["x"], 0

    def step(self):
        self.epoch += 1
        return {"loss": loss(self.x, self.epoch)}

    def save_checkpoint(self, folder):
        pathlib.Path(folder, "epoch").write_text(str(self.epoch))

    def load_checkpoint(self, folder):
        self.epoch = int(pathlib.Path(folder, "epoch").read_text())


class Budget(Stopper):
    """Ends the run after so many reports, as `time_budget_s` does after some time."""

    def __init__(self, reports):
        self.left = reports

    def __call__(self, trial_id, result):
        self.left -= 1
        return False

    def stop_all(self):
        return self.left <= 0


def scheduled():
    schedule = functools.partial(IterativeDeepeningHyperband, max_resource=4, eta=2)
    return ScheduledSearch(schedule, RandomSearcher, seed=3)


def tuner(search, folder, name, *, samples=-1, stop=None, **options):
    if isinstance(search, ScheduledSearch):
        options.setdefault("scheduler", search.trial_scheduler)
    return tune.Tuner(
        Train,
        param_space={"x": tune.uniform(-3, 3)},
        tune_config=tune.TuneConfig(
            metric="loss", mode="min", num_samples=samples, search_alg=search, **options
        ),
        run_config=tune.RunConfig(storage_path=str(folder), name=name, stop=stop, verbose=0),
    )


def table(schedule):
    return {
        (c.number, level): o.value
        for c in schedule.candidates.values()
        for level, o in c.results.items()
    }


@pytest.mark.slow
def test_what_a_budget_has_cut_off_is_trained_later(tmp_path):
    """Nothing is entered where it never came, and the whole equals a run without a budget."""
    whole = IterativeDeepeningHyperband(RandomSearcher(scheduled_space(), seed=3), 4, eta=2)
    run(lambda job: loss(job.config["x"], job.resource), whole)
    tuner(scheduled(), tmp_path, "a", stop=Budget(10)).fit()

    again = scheduled()
    again.restore_from_dir(str(tmp_path / "a"))
    assert again._ended == {}
    assert table(again.schedule).items() < table(whole).items()
    assert not any(o.status == "failed" for o in again.schedule.history())
    tuner(again, tmp_path, "b").fit()
    assert table(again.schedule) == table(whole)

    for _ in range(4):  # the budget begins anew; what was cut off goes on from its checkpoint
        restore(tmp_path / "a", Train).fit()
        last = scheduled()
        last.restore_from_dir(str(tmp_path / "a"))
        if last.schedule.finished:
            break
    assert table(last.schedule) == table(whole)
    assert last.schedule.finished


def scheduled_space():
    search = scheduled()
    search.set_search_properties("loss", "min", {"x": tune.uniform(-3, 3)})
    return search.schedule.searcher.space


@pytest.mark.slow
def test_search_without_a_scheduler_is_restored_to_its_last_sample(tmp_path):
    search = HypergradSearch(RandomSearcher, seed=3)
    limited = tune.stopper.CombinedStopper(Budget(5), tune.stopper.MaximumIterationStopper(2))
    tuner(search, tmp_path, "a", samples=4, stop=limited).fit()
    assert len(search.ledger.history) == 2
    results = restore(tmp_path / "a", Train).fit()
    assert [r.metrics["training_iteration"] for r in results] == [2] * 4


def test_a_run_ends_when_its_search_says_so(tmp_path):
    """With a schedule as without: what counts then are the results of the highest rung."""
    for search in (HypergradSearch(RandomSearcher, seed=3), scheduled()):
        stopper = SearchStopper(search, Stop(patience=2))
        last = tune.stopper.CombinedStopper(stopper, tune.stopper.MaximumIterationStopper(4))
        results = tuner(search, tmp_path, type(search).__name__, samples=30, stop=last).fit()
        assert stopper.reason == "2 trials without a better one"
        assert len(results) < 30
        values = [item.value for item in search.results()]
        # Ray asks whether to end after a step of its own, in which another trial may have ended.
        assert len(values) - 1 - values.index(min(values)) in (2, 3)
        assert search.costs() >= sum(item.cost for item in search.results())


@pytest.mark.parametrize("other", [None, ASHAScheduler()])
def test_scheduled_search_under_another_scheduler_is_refused(other, tmp_path):
    with pytest.raises(REFUSED, match=r"search\.trial_scheduler"):
        tuner(scheduled(), tmp_path, "a", scheduler=other).fit()


def test_scheduled_search_in_a_repeater_is_refused(tmp_path):
    search = scheduled()
    options = {"scheduler": search.trial_scheduler}
    with pytest.raises(REFUSED, match="Repeater"):
        tuner(Repeater(search, repeat=2), tmp_path, "a", samples=4, **options).fit()


@pytest.mark.slow
def test_restored_repeater_counts_each_group_once(tmp_path):
    def repeated():
        search = HypergradSearch(RandomSearcher, seed=3, metric="loss", mode="min")
        return search, Repeater(search, repeat=2)

    search, wrapped = repeated()
    limited = tune.stopper.CombinedStopper(Budget(5), tune.stopper.MaximumIterationStopper(1))
    tuner(wrapped, tmp_path, "a", samples=6, stop=limited).fit()
    told = [(o.number, o.value) for o in search.ledger.history]
    assert len(told) == 2
    again, _ = repeated()
    again.restore_from_dir(str(tmp_path / "a"))
    assert [(o.number, o.value) for o in again.ledger.history] == told


@pytest.mark.slow
def test_a_repeat_that_was_cut_off_is_trained_after_a_restore(tmp_path):
    def repeated(folder, stop):
        search = HypergradSearch(RandomSearcher, seed=3, metric="loss", mode="min")
        limited = tune.stopper.CombinedStopper(stop, tune.stopper.MaximumIterationStopper(2))
        tuner(Repeater(search, repeat=2), tmp_path, folder, samples=6, stop=limited).fit()

    def told(folder):
        search = HypergradSearch(RandomSearcher, seed=3, metric="loss", mode="min")
        search.restore_from_dir(str(tmp_path / folder))
        return [(o.number, o.value) for o in search.ledger.history]

    repeated("whole", Budget(100))
    repeated("cut", Budget(7))  # within the second repeat of the second group
    assert len(told("cut")) == 1
    restore(tmp_path / "cut", Train).fit()
    assert told("cut") == told("whole")
