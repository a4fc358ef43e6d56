"""Reading run directories: what is whole is read, what is not is named, nothing is guessed."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from lightning_opt.errors import UsageError
from lightning_opt.report.records import Run, read_study

NAME = "cells/digits-adam-lr=0.01-seed=1"


def read_one(directory: Path, name: str = NAME) -> Run:
    (run,) = [r for r in read_study(directory).runs if r.cell.directory == name]
    return run


def test_a_whole_run_is_read(make_study):
    run = read_one(make_study())
    assert (run.status, run.cell.seed, run.cell.point) == ("finished", 1, (("lr", 0.01),))
    assert run.metrics["val_accuracy"] == pytest.approx(0.97)
    assert run.cost["optimizer_bytes"] == 42_000
    assert run.history.losses.shape == (300,)  # without the rows of validation
    assert run.surface["values"].shape == (13, 11)
    assert run.spectrum["eigenvalues"].shape == (5,)
    assert not run.faults


def test_each_status_is_read(busy_study: Path):
    count: dict[str, int] = {}
    for run in read_study(busy_study).runs:
        count[run.status] = count.get(run.status, 0) + 1
    assert count == {"finished": 21, "diverged": 4, "failed": 1, "missing": 1}


def test_null_is_no_number(make_study):
    directory = make_study()
    path = directory / NAME / "record.json"
    record = json.loads(path.read_text())
    record["metrics"]["test_accuracy"] = None
    path.write_text(json.dumps(record))
    assert math.isnan(read_one(directory).metrics["test_accuracy"])


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_text(path.read_text()[:100]), "not whole"),
        (lambda path: path.write_text(""), "not whole"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not whole"),
        (lambda path: path.write_text("[1, 2]"), "format 1"),
        (lambda path: path.write_text("[" * 100_000), "not whole"),
        (lambda path: change(path, format=2), "format 1"),
        (lambda path: change(path, status="resting"), "'resting'"),
        (lambda path: change(path, hash="another"), "another run"),
        (lambda path: change(path, metrics={}), "no val_accuracy"),
        (lambda path: change(path, metrics=[1]), "not a mapping"),
        (lambda path: (path.unlink(), path.mkdir()), "not whole"),
    ],
)
def test_a_broken_record_makes_its_run_unreadable_and_no_other(make_study, damage, reason: str):
    directory = make_study()
    damage(directory / NAME / "record.json")
    run = read_one(directory)
    assert run.status == "unreadable"
    assert run.faults[0].file == "record.json" and reason in run.faults[0].reason
    assert sum(r.status == "finished" for r in read_study(directory).runs) == 26


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["surface.npz", "spectrum.npz"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not an archive"),
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
        lambda path: np.savez(path, values=np.array([Bomb()], dtype=object)),
        lambda path: np.savez(path, foreign=np.zeros(3)),
        lambda path: np.savez(path, **dict.fromkeys(ARRAYS, np.zeros(3))),
        lambda path: np.savez(path, **dict.fromkeys(ARRAYS, np.array([["text"]]))),
    ],
    ids=["half", "empty", "text", "pickle", "objects", "foreign", "shapes", "strings"],
)
def test_broken_arrays_are_left_out_and_the_run_still_counts(make_study, name: str, damage):
    directory = make_study()
    damage(directory / NAME / name)
    run = read_one(directory)
    assert run.status == "finished"
    assert [fault.file for fault in run.faults] == [name]
    assert (run.surface if name == "surface.npz" else run.spectrum) is None
    assert (run.spectrum if name == "surface.npz" else run.surface) is not None


ARRAYS = ("alphas", "betas", "values", "nodes", "weights")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("surface.npz", "alphas", np.full(13, np.nan)),
        ("surface.npz", "betas", np.zeros(11)),
        ("spectrum.npz", "weights", np.full((1, 43), np.nan)),
        ("spectrum.npz", "weights", np.zeros((1, 43))),
        ("spectrum.npz", "weights", np.full((1, 43), -1.0)),
    ],
)
def test_arrays_that_cannot_be_drawn_are_left_out(make_study, name: str, key: str, value):
    """They have the right names and shapes, and would break the figure."""
    directory = make_study()
    with np.load(directory / NAME / name) as archive:
        arrays = dict(archive)
    np.savez(directory / NAME / name, **(arrays | {key: value}))
    assert [fault.file for fault in read_one(directory).faults] == [name]


def test_flipped_bytes_are_noticed(make_study):
    """The archive's checksum fails, as after a bad copy."""
    directory = make_study()
    path = directory / NAME / "surface.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert [fault.file for fault in read_one(directory).faults] == ["surface.npz"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "step,epoch,train_loss\n1,0,2.0\n2,0,1.",
        "step,epoch,train_loss\n1,0,two\n",
        "step,epoch,train_loss\n1,,2.0\n",
        "a,b\n1,2\n",
        "step,epoch,train_loss\n1,0,2.0,3,4,5\n1,2\n1,2,3,4,5,6,7\n",
    ],
    ids=["empty", "cut off", "words", "no epoch", "foreign", "ragged"],
)
def test_a_broken_history_is_left_out_and_the_run_still_counts(make_study, content: str):
    directory = make_study()
    (directory / NAME / "metrics.csv").write_text(content)
    run = read_one(directory)
    assert (run.status, run.history) == ("finished", None)
    assert [fault.file for fault in run.faults] == ["metrics.csv"]


def test_another_directory_is_refused_with_the_way_out(tmp_path: Path):
    with pytest.raises(UsageError) as error:
        read_study(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"lightning-opt study NAME --out {tmp_path}" in str(error.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:50], "not whole"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 1"),
        (lambda text: text.replace('"select"', '"elect"'), "'select'"),
        (lambda text: text.replace('"mode": "max"', '"mode": "most"'), "'most'"),
        (lambda text: text.replace("cells/digits-sgd", "/etc/digits-sgd", 1), "outside"),
        (lambda text: text.replace("cells/digits-sgd", "../digits-sgd", 1), "outside"),
        (lambda text: text.replace('"cells": [', '"cells": [3, '), "study"),
        (lambda text: text.replace('"seed": 0', '"seed": "one"', 1), "'one'"),
    ],
)
def test_a_broken_plan_is_refused_by_name(make_study, damage, reason: str):
    directory = make_study()
    path = directory / "study.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UsageError, match=r"study\.json") as error:
        read_study(directory)
    assert reason in str(error.value)
