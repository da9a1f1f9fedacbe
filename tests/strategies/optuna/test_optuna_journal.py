"""A journal notices when one of its lines is damaged, and stays readable for Optuna."""

import random
import warnings

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from strategies.optuna import JournalFile

optuna.logging.set_verbosity(optuna.logging.ERROR)


def filled(path):
    study = optuna.create_study(
        storage=JournalStorage(JournalFile(str(path))),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    return study


def values(backend):
    (name,) = optuna.get_all_study_names(JournalStorage(backend))
    return [
        t.value for t in optuna.load_study(study_name=name, storage=JournalStorage(backend)).trials
    ]


def test_optuna_reads_and_continues_it(tmp_path):
    path = tmp_path / "journal"
    study = filled(path)
    expected = [trial.value for trial in study.trials]
    assert values(JournalFileBackend(str(path))) == expected
    theirs = optuna.load_study(
        study_name=study.study_name, storage=JournalStorage(JournalFileBackend(str(path)))
    )
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(values(JournalFile(str(path)))) == 5


def test_no_flipped_bit_changes_a_study_in_silence(tmp_path):
    path = tmp_path / "journal"
    filled(path)
    good, expected = path.read_bytes(), values(JournalFile(str(path)))
    rng, noticed = random.Random(0), 0
    for bit in range(150):
        data = bytearray(good)
        # Also each bit of the end of the last line.
        data[-1 if bit < 8 else rng.randrange(len(data))] ^= 1 << bit % 8
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert values(JournalFile(str(path))) == expected
            except ValueError as error:
                noticed += "journal: expected whole lines, but line" in str(error)
    assert noticed > 140
    path.write_bytes(good.replace(b'"op_code":', b'"op_kode":', 1))
    with pytest.raises(ValueError, match=r"line 1 of .* is damaged"):
        values(JournalFile(str(path)))
