"""The copy of an experiment is not trusted: nothing is written elsewhere, no question runs code."""

import json
import os
import pickle
import random
import zipfile

import pytest
from ray.tune import Tuner

from strategies.ray import can_restore, restore
from strategies.ray.recovery import SNAPSHOT
from strategies.state import seal

STATE = {"trial_data": [], "runner_data": {}, "stats": {}}
SEARCHER = seal(json.dumps({"version": 2, "live": {}}))


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
        archive.writestr("experiment_state-1.json", json.dumps(STATE))
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


def whole(folder):
    """An experiment whose files are all there, and their copy."""
    experiment(folder, {"counter": 0, "searcher": print}, **{"searcher-state-1.pkl": SEARCHER})
    with zipfile.ZipFile(folder / SNAPSHOT, "a") as archive:
        archive.extractall(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != SNAPSHOT}
    with zipfile.ZipFile(folder / SNAPSHOT, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return files


@pytest.mark.parametrize(
    "name", ["tuner.pkl", "experiment_state-1.json", "search_gen_state-1.json"]
)
def test_a_bit_that_flipped_where_ray_has_no_checksum_is_put_back(name, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(Tuner, "restore", lambda path, *_, **__: begun.append(path))
    folder = tmp_path / "run"
    good, rng = whole(folder)[name], random.Random(0)
    for times in range(1, 60):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(damaged)
        restore(folder, print)
        assert len(begun) == times
        found = (folder / name).read_bytes()
        state = json.loads(found) if name.startswith("experiment") else pickle.loads(found)
        assert isinstance(state, dict)
        if name.startswith("experiment"):
            assert state.keys() == STATE.keys()


def test_a_digit_that_flipped_in_the_searchers_state_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Tuner, "restore", lambda *_, **__: None)
    whole(tmp_path / "run")
    file = tmp_path / "run" / "searcher-state-1.pkl"
    file.write_text(SEARCHER.replace('"version": 2', '"version": 3'))
    assert can_restore(tmp_path / "run")
    restore(tmp_path / "run", print)
    assert file.read_text() == SEARCHER


@pytest.mark.parametrize("name", ["tuner.pkl", "experiment_state-1.json"])
def test_a_folder_in_place_of_a_file_is_said_and_nothing_is_put_back(name, tmp_path):
    folder = tmp_path / "run"
    whole(folder)
    (folder / "search_gen_state-1.json").write_bytes(b"")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert not can_restore(folder)
    with pytest.raises(ValueError, match="a folder stands where its copy belongs"):
        restore(folder, print)
    assert (folder / "search_gen_state-1.json").read_bytes() == b""


def test_the_question_and_the_restore_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(Tuner, "restore", lambda *_, **__: None)
    folder = tmp_path / "run"
    whole(folder)
    (folder / "tuner.pkl").unlink()
    assert can_restore(folder)
    restore(folder, print)
    assert (folder / "tuner.pkl").exists()
    # Whole as JSON, and yet nothing that Ray could read.
    (folder / "experiment_state-1.json").write_text("{}")
    (folder / SNAPSHOT).unlink()
    assert not can_restore(folder)
    with pytest.raises(ValueError, match="there is no copy"):
        restore(folder, print)


def test_what_is_put_back_is_not_written_through_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(Tuner, "restore", lambda *_, **__: None)
    folder, outside = tmp_path / "run", tmp_path / "outside"
    whole(folder)
    outside.write_text("mine")
    (folder / "tuner.pkl").write_bytes(b"")
    (folder / "tuner.pkl.tmp").symlink_to(outside)
    restore(folder, print)
    assert outside.read_text() == "mine"
    assert pickle.loads((folder / "tuner.pkl").read_bytes()) == {}


def test_a_path_may_be_relative(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(Tuner, "restore", lambda path, *_, **__: begun.append(path))
    whole(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert can_restore("run")
    restore("run", print)
    assert begun == [str(tmp_path / "run")]
    assert not can_restore("elsewhere")
    with pytest.raises(ValueError, match="'path': expected"):
        can_restore(3)
