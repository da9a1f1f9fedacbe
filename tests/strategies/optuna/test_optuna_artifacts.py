"""Deepening on Optuna with checkpoints kept as artifacts: no step is trained twice."""

import json

import optuna
from optuna.artifacts import FileSystemArtifactStore, download_artifact, upload_artifact
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from strategies.optuna import run_schedule
from strategies.schedulers import IterativeDeepeningHyperband, run
from strategies.searchers import RandomSearcher
from strategies.space import Float, SearchSpace

SPACE = SearchSpace({"x": Float(0, 1)})


def make():
    return IterativeDeepeningHyperband(RandomSearcher(SPACE, seed=3), 4, eta=2)


def curve(x, steps):
    """A sum over the steps, so that a training that lost its beginning ends elsewhere."""
    return sum((x - 0.4) ** 2 + 1 / (1 + step) for step in range(steps)) / steps**2


def test_grown_maximum_resumes_every_training_from_its_artifact(tmp_path):
    (tmp_path / "store").mkdir()
    store = FileSystemArtifactStore(base_path=tmp_path / "store")
    journal = str(tmp_path / "journal")
    trained = 0

    def train(trial, job):
        nonlocal trained
        state = {"steps": 0, "sum": 0.0}
        before = trial.user_attrs["hypergrad:job"]["continues"]
        if before is not None:
            kept = trial.study.trials[before].user_attrs["checkpoint"]
            path = tmp_path / f"{trial.number}.json"
            download_artifact(artifact_store=store, artifact_id=kept, file_path=str(path))
            state = json.loads(path.read_text())
        assert state["steps"] == job.resume_from
        for step in range(state["steps"], job.resource):
            state["sum"] += (job.config["x"] - 0.4) ** 2 + 1 / (1 + step)
            state["steps"] += 1
            trained += 1
        path = tmp_path / f"of-{trial.number}.json"
        path.write_text(json.dumps(state))
        kept = upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)
        trial.set_user_attr("checkpoint", kept)
        return state["sum"] / state["steps"] ** 2

    alone = make()
    for maximum in (4, 8, 16):
        # Each time as a new process would: everything that is known is in study and store.
        storage = JournalStorage(JournalFileBackend(journal))
        study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
        schedule = run_schedule(study, train, make())
        schedule.deepen(maximum)
        run_schedule(study, train, schedule)
        alone.deepen(maximum)
        run(lambda job: curve(job.config["x"], job.resource), alone)
        assert schedule.finished
        assert schedule.incumbent.resource == maximum
        assert schedule.incumbent.config == alone.incumbent.config
        assert abs(schedule.incumbent.value - alone.incumbent.value) < 1e-12
        assert schedule.spent == alone.spent
        assert trained == schedule.spent_resumed == alone.spent_resumed
