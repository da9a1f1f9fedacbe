"""The copy of an experiment is not trusted: nothing is written elsewhere, no question runs code."""

import json
import os
import pickle
import zipfile

import pytest

from strategies.ray import can_restore, restore
from strategies.ray.recovery import SNAPSHOT


class Code:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def experiment(folder, generator, **more):
    folder.mkdir()
    (folder / "tuner.pkl").write_bytes(pickle.dumps({}))
    with zipfile.ZipFile(folder / SNAPSHOT, "w") as archive:
        archive.writestr("tuner.pkl", pickle.dumps({}))
        archive.writestr("experiment_state-1.json", json.dumps({"trial_data": []}))
        archive.writestr("search_gen_state-1.json", pickle.dumps(generator))
        for name, content in more.items():
            archive.writestr(name, content)
    return folder


def test_a_question_loads_no_pickle_and_writes_nothing(tmp_path):
    folder = experiment(tmp_path / "run", Code(tmp_path / "ran"))
    before = sorted(os.listdir(folder))
    assert can_restore(folder)
    assert sorted(os.listdir(folder)) == before
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside", "a/b", "other.txt", "experiment_state-../x.json"])
def test_only_the_files_of_an_experiment_are_put_back(name, tmp_path):
    folder = experiment(tmp_path / "run", {}, **{name: "x"})
    assert not can_restore(folder)
    with pytest.raises(ValueError, match="holds a file that does not belong there"):
        restore(folder, print)
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert sorted(os.listdir(folder)) == [SNAPSHOT, "tuner.pkl"]


def test_an_absolute_path_is_not_written(tmp_path):
    folder = experiment(tmp_path / "run", {}, **{str(tmp_path / "absolute"): "x"})
    assert not can_restore(folder)
    assert sorted(os.listdir(tmp_path)) == ["run"]
