"""The command's frame: exit codes, messages, and what it must not import."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from lightning_opt import __version__
from lightning_opt.cli import COMMANDS, main
from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError

HEAVY = {"torch", "pytorch_lightning", "matplotlib", "pandas", "scipy", "numpy", "jsonargparse"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["study", "--help"], ["report", "--help"]]
)
def test_help_imports_nothing_heavy_and_answers_at_once(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from lightning_opt.cli import main\n"
        f"code = main({arguments!r})\n"
        "print(*sys.modules, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    assert done.returncode == 0 and done.stdout
    assert not HEAVY & set(done.stderr.split())
    assert elapsed < 2  # 0.1 s on an idle machine; the limit to keep is 0.5 s


def test_the_module_runs_and_a_mistake_exits_with_2_without_a_traceback() -> None:
    command = [sys.executable, "-m", "lightning_opt", "fitt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean fit?" in done.stderr and "Traceback" not in done.stderr


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-opt {__version__}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_no_arguments_prints_the_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fitt"], "Did you mean fit?"),
        (["studdy", "demo"], "Did you mean study?"),
        (["xyz"], "Known are: fit, predict, report, study, test, validate."),
        (["--confg", "x"], "Did you mean --config?"),
        (["study", "demo", "--outt", "x"], "Did you mean --out?"),
        (["study", "demo", "--workers", "0"], "'0' is not a number of at least 1"),
        (["study", "demo", "--workers", "many"], "'many' is not a number of at least 1"),
        (["study", "demo", "other"], "too many: 'other'"),
        (["report"], "required: DIR"),
        (["report", "--otu"], "lightning-opt report --help"),
    ],
)
def test_a_mistake_is_answered_in_a_few_lines(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and not captured.out
    assert len(captured.err.splitlines()) <= 3


def test_study_without_a_name_lists_the_shipped_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study"]) == 2
    assert ", ".join(shipped("studies")) in capsys.readouterr().err


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (2, 1)])
def test_study_passes_its_arguments_on_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failed: int, code: int
) -> None:
    calls: list[tuple[object, ...]] = []

    def run_study(*arguments: object) -> tuple[Path, Counter[str]]:
        calls.append(arguments)
        return Path("runs/x"), Counter(finished=3, failed=failed)

    report = ModuleType("lightning_opt.report")
    report.write_report = lambda directory: directory / "report.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_opt.report", report)
    study = ModuleType("lightning_opt.study")
    study.run_study = run_study  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_opt.study", study)
    assert main(["study", "demo"]) == code
    assert f"3 finished, 0 diverged, {failed} failed" in capsys.readouterr().out
    assert main(["study", "a/b.yaml", "--out", "there", "--workers", "3"]) == code
    assert str(Path("runs/x/report.html")) in capsys.readouterr().out
    assert calls == [("demo", None, None), ("a/b.yaml", Path("there"), 3)]


def test_report_prints_the_path_of_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ModuleType("lightning_opt.report")
    report.write_report = lambda directory: directory / "report.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_opt.report", report)
    assert main(["report", "runs/demo"]) == 0
    assert capsys.readouterr().out == f"{Path('runs/demo/report.html')}\n"


def _interrupted_inside_lightning() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)  # what Lightning does with one


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: _raise(UsageError("no such thing")), 2),
        (lambda: _raise(KeyboardInterrupt()), 130),
        (_interrupted_inside_lightning, 130),
        (lambda: sys.exit(0), 0),
        (lambda: sys.exit(None), 0),
        (lambda: sys.exit(3), 3),
        (lambda: sys.exit("a reason"), 1),
    ],
)
def test_exit_codes(work: object, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS["report"]._replace(run=lambda name, arguments: work())  # type: ignore[operator]
    monkeypatch.setitem(COMMANDS, "report", command)
    assert main(["report", "x"]) == code


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS["report"]._replace(run=lambda name, arguments: 1 // 0)
    monkeypatch.setitem(COMMANDS, "report", command)
    with pytest.raises(ZeroDivisionError):
        main(["report", "x"])
