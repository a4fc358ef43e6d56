"""A run's record: whole or not there, and never somebody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_opt.errors import UsageError
from lightning_opt.study.grid import Cell
from lightning_opt.study.records import Outcome, read_record, write_record

CELL = Cell("digits", "adam", {"lr": 0.1}, 0, {})


def write(directory: Path, **outcome) -> dict:
    outcome = {"status": "finished", "metrics": {}, "cost": {}, **outcome}
    write_record(directory, CELL, Outcome(**outcome), attempts=1, started="a", ended="b")
    return json.loads((directory / "record.json").read_text())


def test_status_comes_back(tmp_path: Path):
    assert read_record(tmp_path, CELL) is None
    write(tmp_path, status="diverged")
    assert read_record(tmp_path, CELL)["status"] == "diverged"


def test_what_json_does_not_have_is_null(tmp_path: Path):
    record = write(tmp_path, metrics={"val_loss": float("nan"), "val_accuracy": 0.5})
    assert record["metrics"] == {"val_loss": None, "val_accuracy": 0.5}


def test_a_record_says_what_made_it(tmp_path: Path):
    record = write(tmp_path)
    assert record["versions"]["torch"] and record["versions"]["lightning-opt"]
    assert record["hardware"]["cores"] >= 1
    assert record["cell"]["point"] == {"lr": 0.1}


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"format": 1, "sta',
        "[]",
        "\x00\x01",
        '{"format": 1, "status": "finished", "hash": "x"}',
    ],
    ids=["empty", "truncated", "list", "binary", "of another cell"],
)
def test_a_truncated_or_foreign_record_is_refused_and_kept(tmp_path: Path, content: str):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_record(tmp_path, CELL)
    assert str(path) in str(error.value) and "move" in str(error.value)
    assert path.read_text() == content
