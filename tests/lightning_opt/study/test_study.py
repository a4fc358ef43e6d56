"""Whole studies, run by real worker processes: what is left behind, and what is lost (nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from lightning_opt.cli import main
from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError
from lightning_opt.study import load_study, run_study

TINY = {
    "name": "tiny",
    "tasks": ["digits"],
    "optimizers": {
        "adam": {"space": {"lr": [0.003]}},
        "lookahead": {"space": {"base.lr": [0.003]}},
    },
    "seeds": [0],
    "select": {"metric": "val_accuracy", "mode": "max"},
    "test_metric": "test_accuracy",
    "trainer": {"max_epochs": 2},
}


def write(folder: Path, **changes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return str(path)


def run(study: str, out: Path, *options: str) -> int:
    """The command, with its exit code."""
    return main(["study", study, "--out", str(out), *options])


def records(out: Path) -> dict[str, dict]:
    return {
        path.parent.name: json.loads(path.read_text()) for path in out.glob("cells/*/record.json")
    }


def adam(*rates: float) -> dict:
    return {"adam": {"space": {"lr": list(rates)}}}


def test_a_study_leaves_complete_run_directories_and_a_report(tmp_path: Path):
    out = tmp_path / "out"
    assert run(write(tmp_path), out, "--workers=2") == 0
    found = records(out)
    assert len(found) == 2
    for name, record in found.items():
        assert record["status"] == "finished"
        assert record["metrics"]["test_accuracy"] > 0.3
        assert record["cost"]["steps"] == 2 * 17
        assert record["cost"]["parameters"] == 6_090
        assert record["cost"]["optimizer_bytes"] > 6_090 * 2 * 4, "two moments of each parameter"
        assert [p.name for p in (out / "cells" / name / "checkpoints").iterdir()] == ["final.ckpt"]
        kept = {path.name for path in (out / "cells" / name).iterdir()}
        assert {"config.yaml", "metrics.csv", "log.txt", "checkpoints"} <= kept
        assert not any(".tmp" in path.name for path in (out / "cells" / name).iterdir())
        assert record["hardware"]["threads"] >= 1 and record["hardware"]["accelerator"] == "cpu"
    assert "adam" in (out / "report.html").read_text()


def test_what_is_finished_is_not_run_again_and_what_is_new_is(tmp_path: Path):
    out = tmp_path / "out"
    assert run(write(tmp_path, optimizers=adam(0.003)), out) == 0
    (first,) = out.glob("cells/*/record.json")
    written = first.stat().st_mtime_ns
    assert run(write(tmp_path, optimizers=adam(0.003, 0.01)), out) == 0
    assert first.stat().st_mtime_ns == written
    assert sorted(record["cell"]["point"]["lr"] for record in records(out).values()) == [
        0.003,
        0.01,
    ]


def test_divergence_is_a_result(tmp_path: Path):
    out = tmp_path / "out"
    study = write(tmp_path, optimizers={"sgd": {"space": {"lr": [0.01, 1.0e8]}}})
    assert run(study, out) == 0
    status = {r["cell"]["point"]["lr"]: r["status"] for r in records(out).values()}
    assert status == {0.01: "finished", 1.0e8: "diverged"}
    diverged = next(r for r in records(out).values() if r["status"] == "diverged")
    assert 0 < diverged["cost"]["steps"] < 34, "stopped at once"
    assert diverged["cost"]["startup_seconds"] > 0 and diverged["cost"]["parameters"] == 6_090
    assert diverged["attempts"] == 1


def test_a_failing_run_is_tried_three_times_and_recorded_with_its_error(tmp_path: Path):
    out = tmp_path / "out"
    watch = {
        "class_path": "pytorch_lightning.callbacks.EarlyStopping",
        "init_args": {"monitor": "no_such_metric"},
    }
    trainer = {"max_epochs": 1, "callbacks": [watch]}
    study = write(tmp_path, optimizers=adam(0.003), trainer=trainer)
    assert run(study, out) == 1
    (record,) = records(out).values()
    assert record["status"] == "failed" and record["attempts"] == 3
    assert "no_such_metric" in record["error"]
    assert run(study, out) == 1, "a failure is tried again by the next call"


@pytest.mark.parametrize(
    ("optimizers", "words"),
    [
        ({"adam": {"space": {"lr": [0.1], "btas": [1]}}}, ["adam", "btas", "betas"]),
        ({"yogi": {"space": {"lr": [0.1], "eps": [0.1, -1.0]}}}, ["yogi", "eps", "-1.0"]),
        ({"lookahead": {"space": {"base.lr": [0.1], "k": [5, "six"]}}}, ["lookahead", "six"]),
    ],
)
def test_a_wrong_option_shows_before_anything_is_run(tmp_path: Path, optimizers, words):
    out = tmp_path / "out"
    with pytest.raises(UsageError) as error:
        run_study(write(tmp_path, optimizers=optimizers), out)
    assert all(word in str(error.value) for word in words), error.value
    assert not (out / "cells").exists()


def test_an_unknown_class_shows_before_anything_is_run(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("optimizer: {class_path: torch.optim.Adamm}\n")
    study = write(tmp_path, optimizers={"mine": {"config": "mine.yaml", "space": {"lr": [0.1]}}})
    with pytest.raises(UsageError, match=r"Adamm"):
        run_study(study, tmp_path / "out")


def test_the_saved_config_repeats_the_run(tmp_path: Path):
    out = tmp_path / "out"
    assert run(write(tmp_path, optimizers=adam(0.003)), out) == 0
    (name,) = records(out)
    config = out / "cells" / name / "config.yaml"
    code = (
        "import sys; from lightning_opt.lightning_cli import OptLightningCLI;"
        "quiet = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False};"
        "cli = OptLightningCLI(['fit', '--config', sys.argv[1]], trainer_overrides=quiet);"
        "print('accuracy', cli.trainer.callback_metrics['val_accuracy'].item())"
    )
    repeated = subprocess.run(
        [sys.executable, "-c", code, str(config)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    accuracy = float(repeated.stdout.split("accuracy")[-1])
    assert accuracy == records(out)[name]["metrics"]["val_accuracy"]


@pytest.mark.parametrize("key", ["select", "test_metric"])
def test_a_misspelt_metric_is_answered_after_one_run_and_loses_none(tmp_path: Path, key, capsys):
    out = tmp_path / "out"
    wrong = {"metric": "val_acuracy", "mode": "max"} if key == "select" else "val_acuracy"
    study = write(tmp_path, optimizers=adam(0.003, 0.01, 0.03), **{key: wrong})
    assert run(study, out, "--workers=1") == 2
    message = capsys.readouterr().err
    assert "'val_acuracy'" in message and "Did you mean val_accuracy" in message
    assert len(records(out)) == 1
    assert run(study, out) == 2, "nor by the next call"
    assert run(write(tmp_path, optimizers=adam(0.003, 0.01, 0.03)), out) == 0


def test_what_the_study_file_no_longer_names_stays_and_is_told(tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert run(write(tmp_path, optimizers=adam(0.003)), out) == 0
    assert run(write(tmp_path, optimizers=adam(0.01)), out) == 0
    assert "1 of the runs, such as digits-adam-lr=0.003" in capsys.readouterr().err
    assert len(records(out)) == 2


class TestDirectories:
    """The directory of a study is its own."""

    def test_of_another_study(self, tmp_path: Path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "study.json").write_text('{"name": "other"}')
        with pytest.raises(UsageError, match="belongs to the study 'other', not 'tiny'"):
            run_study(write(tmp_path), out)
        assert (out / "study.json").read_text() == '{"name": "other"}'

    def test_with_something_else_in_it(self, tmp_path: Path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
        with pytest.raises(UsageError, match="holds something else"):
            run_study(write(tmp_path), out)
        assert [path.name for path in out.iterdir()] == ["thesis.tex"]

    def test_that_is_a_file(self, tmp_path: Path):
        (tmp_path / "out").write_text("")
        with pytest.raises(UsageError, match="is a file"):
            run_study(write(tmp_path), tmp_path / "out")

    @pytest.mark.parametrize("content", ["", '{"name": "ti', "[1]", "{}"])
    def test_with_a_truncated_or_foreign_manifest(self, tmp_path: Path, content: str):
        out = tmp_path / "out"
        out.mkdir()
        (out / "study.json").write_text(content)
        with pytest.raises(UsageError, match=r"no readable study\.json"):
            run_study(write(tmp_path), out)
        assert (out / "study.json").read_text() == content

    def test_with_a_truncated_manifest_beside_its_own_runs(self, tmp_path: Path):
        """The runs tell whose directory it is; `report` promises that `study` mends it."""
        study, out = write(tmp_path, optimizers=adam(0.003)), tmp_path / "out"
        assert run(study, out) == 0
        manifest = (out / "study.json").read_text()
        (out / "study.json").write_text(manifest[:99])
        assert run(study, out) == 0
        assert (out / "study.json").read_text() == manifest

    def test_that_was_killed_while_its_manifest_was_written(self, tmp_path: Path):
        out = tmp_path / "out"
        out.mkdir()
        (out / ".lock").touch()
        (out / ".study.123.tmp.json").write_text('{"na')
        assert run(write(tmp_path, optimizers=adam(0.003)), out) == 0
        assert not (out / ".study.123.tmp.json").exists()

    def test_that_cannot_be_made(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="cannot be written to"):
            run_study(write(tmp_path), tmp_path / "file" / "out")

    def test_with_a_truncated_record(self, tmp_path: Path):
        path = write(tmp_path)
        out = tmp_path / "out"
        record = out / load_study(path).cells()[0].directory / "record.json"
        record.parent.mkdir(parents=True)
        (out / "study.json").write_text('{"name": "tiny"}')
        record.write_text('{"format": 1')
        with pytest.raises(UsageError, match=r"record\.json cannot be read"):
            run_study(path, out)
        assert record.read_text() == '{"format": 1'
        assert len(list(out.glob("cells/*"))) == 1, "nothing was run"

    def test_that_another_process_runs_in(self, tmp_path: Path):
        from filelock import FileLock

        out = tmp_path / "out"
        out.mkdir()
        with FileLock(out / ".lock"), pytest.raises(UsageError, match="Another process"):
            run_study(write(tmp_path), out)


RANDOM = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from lightning_opt.datamodules import Digits
from lightning_opt.models import ShallowCNN

class DropoutCNN(ShallowCNN):
    def __init__(self) -> None:
        super().__init__()
        self.features.append(nn.Dropout())

class Noisy(torch.utils.data.Dataset):
    def __init__(self, images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices):
        images, labels = self.images[indices]
        return images + 0.1 * torch.randn_like(images), labels

class NoisyDigits(Digits):
    # Augments in a worker process, as image pipelines do.
    def train_dataloader(self):
        loader = super().train_dataloader()
        return DataLoader(
            Noisy(loader.dataset), sampler=loader.sampler, batch_size=None, num_workers=1
        )
"""


class TestInterruption:
    """SIGKILL at any moment: the next call continues, with the numbers of an uninterrupted run."""

    # Long enough to be caught in the middle, with dropout, and noise from a data loader's worker,
    # to notice a lost random state.
    OPTIONS = {  # noqa: RUF012
        "optimizers": {"ranger": {"space": {"lr": [0.003]}}},
        "trainer": {"max_epochs": 20},
    }

    @pytest.fixture
    def study(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "at_random.py").write_text(RANDOM)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the study in another process
        task = yaml.safe_load(shipped("tasks")["digits"].read_text())
        task["model"]["init_args"]["network"]["class_path"] = "at_random.DropoutCNN"
        task["data"]["class_path"] = "at_random.NoisyDigits"
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        return write(tmp_path, tasks=["./task.yaml"], **self.OPTIONS)

    @staticmethod
    def start(study: str, out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "lightning_opt", "study", study, "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @staticmethod
    def wait_for_rows(out: Path, count: int) -> Path:
        """Until a cell's metrics file has so many rows; returns the cell's directory."""
        for _ in range(1200):
            for path in out.glob("cells/*/metrics.csv"):
                if len(path.read_text().splitlines()) > count:
                    return path.parent
            time.sleep(0.05)
        raise AssertionError("the study did not start training")

    def test_of_the_whole_study(self, study: str, tmp_path: Path):
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        assert run(study, whole) == 0
        process = self.start(study, broken)
        cell = self.wait_for_rows(broken, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (cell / "record.json").exists(), "killed too late to show anything"
        time.sleep(0.5)
        rows = (cell / "metrics.csv").read_text()
        time.sleep(0.5)
        assert (cell / "metrics.csv").read_text() == rows, "a worker outlived its scheduler"
        assert run(study, broken) == 0
        (expected,), (found,) = records(whole).values(), records(broken).values()
        assert found["metrics"] == expected["metrics"]
        assert found["cost"]["steps"] == expected["cost"]["steps"]
        metrics = (whole / "cells" / cell.name / "metrics.csv").read_text()
        assert (cell / "metrics.csv").read_text() == metrics

    def test_of_one_worker(self, study: str, tmp_path: Path):
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        assert run(study, whole) == 0
        process = self.start(study, broken)
        cell = self.wait_for_rows(broken, 60)
        (worker,) = workers_in(cell)
        os.kill(worker, signal.SIGKILL)
        assert process.wait() == 0
        (expected,), (found,) = records(whole).values(), records(broken).values()
        assert found["metrics"] == expected["metrics"]
        assert found["attempts"] == 2

    @pytest.mark.parametrize("broken", ["checkpoint", "metrics", "foreign"])
    def test_with_a_truncated_or_foreign_file(self, study: str, tmp_path: Path, broken: str):
        out = tmp_path / "out"
        cell = out / load_study(study).cells()[0].directory
        checkpoint = cell / "checkpoints" / "resume.ckpt"
        checkpoint.parent.mkdir(parents=True)
        if broken == "checkpoint":
            checkpoint.write_bytes(b"PK\x03\x04 half a checkpoint")
        else:  # whole, but beside a broken file, or of another run
            run_hash = load_study(study).cells()[0].hash if broken == "metrics" else "another"
            callbacks = {"RandomState": {"run": run_hash}}
            torch.save({"global_step": 17, "callbacks": callbacks}, checkpoint)
            metrics = "no,such\nfile," if broken == "metrics" else "step,epoch\n0,0\n"
            (cell / "metrics.csv").write_text(metrics)
        (out / "study.json").write_text('{"name": "tiny"}')
        assert run(study, out) == 0
        (record,) = records(out).values()
        assert record["status"] == "finished"
        assert checkpoint.with_suffix(".unreadable").exists(), "nothing is thrown away"


def workers_in(cell: Path) -> list[int]:
    """Processes that write into the cell's log, without those that they started themselves."""
    log = (cell / "log.txt").resolve()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd" / "1").resolve() == log:
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                found[int(process.name)] = int(parent)
        except OSError:  # ended, or not ours
            continue
    return [pid for pid, parent in found.items() if parent not in found]
