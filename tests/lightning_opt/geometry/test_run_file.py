"""A killed run goes on bitwise; files of other runs, and damaged ones, are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_opt.geometry import Spectrum, _run_file, spectrum
from oracles.curvature import rotated
from oracles.lanczos import Reflected

EIGENVALUES = torch.cat([torch.linspace(-1, 1, 97), torch.tensor([4.0, 15.0, 60.0])]).double()
STEPS = 30


class ShortLived(Reflected):
    """One start vector of seed 0 is an eigenvector: its probe drops out at once."""

    def __init__(self) -> None:
        super().__init__(EIGENVALUES)
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (100,), generator=generator, dtype=torch.int8)
        self.start = (signs * 2 - 1).double() / 10

    def __matmul__(self, v: Tensor) -> Tensor:
        start = self.start
        away = v - torch.einsum("n,...->n...", start, start @ v)
        product = super().__matmul__(away)
        product -= torch.einsum("n,...->n...", start, start @ product)
        return product + torch.einsum("n,...->n...", 70 * start, start @ v)


# The kinds of runs: what is in the files differs.
RUNS: dict[str, Callable[..., Spectrum]] = {
    "full": lambda **options: spectrum(Reflected(EIGENVALUES), steps=STEPS, **options),
    "none": lambda **options: spectrum(
        Reflected(EIGENVALUES * 1e-30, torch.float32), steps=STEPS, probes=2,
        reorthogonalize="none", **options,
    ),
    "one drops out": lambda **options: spectrum(
        ShortLived(), steps=STEPS, probes=3, **options
    ),
}  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, function: Callable[..., Any], before: bool = True) -> Callable[..., Any]:
    """The function, whose call with this number kills the process, before it or in its midst."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and before:
            die()
        result = function(*args, **kwargs)
        if calls == number:
            die()
        return result

    return wrapped


def in_progress(number: int) -> dict[str, Any]:
    return {"progress": at_call(number, lambda: None)}


def before_the_state(number: int) -> dict[str, Any]:
    """The vectors are there, the state that counts them is not."""
    _run_file.np.savez = at_call(number, np.savez)
    return {}


def amid_the_state(number: int) -> dict[str, Any]:
    """The temporary file is there, and not renamed."""
    _run_file.np.savez = at_call(number, np.savez, before=False)
    return {}


def amid_the_vectors(number: int) -> dict[str, Any]:
    """Some vectors of a step are there, others are not."""
    _run_file._raw = at_call(number, _run_file._raw)
    return {}


DEATHS = {
    "in step 1": (in_progress, 1),
    "early": (in_progress, 4),
    "late": (in_progress, 25),
    "before the first state": (before_the_state, 1),
    "before a state": (before_the_state, 7),
    "amid a state": (amid_the_state, 9),
    "amid the vectors": (amid_the_vectors, 19),
}


def die_elsewhere(folder: Path) -> None:
    """Runs each kind in a process of its own, which saves after every step and dies each death."""
    torch.set_num_threads(1)
    _run_file.pause = lambda took: 0.0
    for kind, run in RUNS.items():
        for death, (prepare, number) in DEATHS.items():
            if (child := os.fork()) == 0:
                run(resume=folder / kind / death / "run.npz", **prepare(number))
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    code = (
        "import sys, runpy, pathlib; sys.path[:0] = sys.argv[2:4]; "
        "runpy.run_path(sys.argv[1])['die_elsewhere'](pathlib.Path(sys.argv[4]))"
    )
    tests = Path(__file__).parents[2]
    arguments = [__file__, str(tests.parent), str(tests), str(folder)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    return folder


def assert_same(result: Spectrum, expected: Spectrum) -> None:
    for name, array in expected.to_arrays().items():
        np.testing.assert_array_equal(result.to_arrays()[name], array, err_msg=name)


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_goes_on_bitwise(kind: str, death: str, killed_elsewhere: Path) -> None:
    path = killed_elsewhere / kind / death / "run.npz"
    assert path.exists() == (death not in ("in step 1", "before the first state")), "no such death"
    assert_same(RUNS[kind](resume=path), RUNS[kind]())
    assert not path.parent.exists() or not list(path.parent.iterdir())


class Interrupted(Exception):
    pass


@pytest.fixture
def _always_saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_run_file, "pause", lambda took: 0.0)
    yield


def interrupted(path: Path, step: int, operator: Any = None, **options: Any) -> list[int]:
    """Runs until after ``step`` calls of progress. Returns the sizes of the files."""
    calls: list[None] = []

    def interrupt() -> None:
        calls.append(None)
        if len(calls) == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        operator = Reflected(EIGENVALUES) if operator is None else operator
        spectrum(operator, **{"steps": STEPS, **options}, resume=path, progress=interrupt)
    return [file.stat().st_size for file in sorted(path.parent.iterdir())]


pytestmark = pytest.mark.usefixtures("_always_saved")


def test_progress_counts_the_steps_that_were_taken_before(tmp_path: Path) -> None:
    path, calls = tmp_path / "run.npz", []
    interrupted(path, 9, probes=2)
    operator = Reflected(EIGENVALUES)
    spectrum(operator, steps=STEPS, probes=2, resume=path, progress=lambda: calls.append(None))
    assert len(calls) == 2 * STEPS
    # Four steps were taken and saved; one product checks the operator.
    assert len(operator.applied) == STEPS - 4 + 1


@pytest.mark.parametrize("kind", ["full", "none"])
def test_more_steps_continue_an_unfinished_run(kind: str, tmp_path: Path) -> None:
    path, options = tmp_path / "a folder" / "run.state", {"reorthogonalize": kind}
    interrupted(path, 12, **options)
    assert [file.name for file in path.parent.glob("*.npz")] == []
    longer = spectrum(Reflected(EIGENVALUES), steps=50, resume=path, **options)
    assert_same(longer, spectrum(Reflected(EIGENVALUES), steps=50, **options))
    assert not list(path.parent.iterdir())


def test_auto_goes_on_as_it_began(tmp_path: Path) -> None:
    """What fits into memory now is not what fitted then."""
    for memory, resumed in ((10**6, 1), (1, 10**6)):
        interrupted(tmp_path / "run.npz", 5, memory=memory)
        result = spectrum(
            Reflected(EIGENVALUES), steps=STEPS, memory=resumed, resume=tmp_path / "run.npz"
        )
        assert result.reorthogonalized == (memory == 10**6)


def test_the_basis_is_appended_and_the_state_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    append = _run_file.RunFile._append

    def note(self: _run_file.RunFile, index: int, rows: Tensor) -> None:
        written.append(index)
        append(self, index, rows)

    monkeypatch.setattr(_run_file.RunFile, "_append", note)
    (tmp_path / "run.npz.basis").write_bytes(b"of another run" * 9999)
    state, basis = interrupted(tmp_path / "run.npz", 12)
    assert written == list(range(12))
    assert basis == 12 * 100 * 8
    assert state < 8000
    state, _ = interrupted(tmp_path / "other" / "run.npz", 12, reorthogonalize="none"), None
    assert len(state) == 1


def test_states_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds apart, or twenty times what the last one took."""
    monkeypatch.undo()
    assert _run_file.pause(0.0) == 5.0
    assert _run_file.pause(2.0) == 40.0
    now = iter(range(0, 1000))
    monkeypatch.setattr(_run_file.time, "monotonic", lambda: next(now) * 1.0)
    saved: list[int] = []
    savez = np.savez
    monkeypatch.setattr(
        _run_file.np, "savez", lambda *args, **kw: [saved.append(kw["step"]), savez(*args, **kw)]
    )
    spectrum(Reflected(EIGENVALUES), steps=STEPS, resume=tmp_path / "run.npz")
    # The clock moves by a second at every look, one a step. A state takes a second.
    assert saved == [5, 25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"probes": 2}, "its probes is 1, not 2"),
        ({"reorthogonalize": "none"}, "reorthogonalize='full', not 'none'"),
        ({"steps": 11}, "a run of 11 steps already: steps=11 has to be more"),
        ({"operator": Reflected(EIGENVALUES[1:])}, "its size is 100, not 99"),
        ({"operator": Reflected(EIGENVALUES, torch.float32)}, "its dtype is 'torch.float64', not"),
        ({"operator": Reflected(EIGENVALUES * 1.001)}, "another operator"),
        ({"operator": rotated(EIGENVALUES)}, "another operator"),
        ({"operator": torch.full((100, 100), torch.nan).double()}, "another operator"),
    ],
)
@pytest.mark.parametrize("kind", ["full"])
def test_another_run_is_refused(options, message, kind, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    interrupted(path, 12)
    before = path.read_bytes()
    options = {"operator": Reflected(EIGENVALUES), "steps": STEPS, **options}
    with pytest.raises(ValueError, match=message):
        spectrum(**options, resume=path)
    assert path.read_bytes() == before


def test_an_operator_that_only_rounds_otherwise_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path / "run.npz", 12)
    nearly = Reflected(EIGENVALUES * (1 + 1e-13))
    result = spectrum(nearly, steps=STEPS, resume=tmp_path / "run.npz")
    assert result.eigenvalues[0] == pytest.approx(60)


def test_another_operator_is_refused_without_a_basis_too(tmp_path: Path) -> None:
    interrupted(tmp_path / "run.npz", 12, reorthogonalize="none")
    with pytest.raises(ValueError, match="another operator"):
        spectrum(Reflected(EIGENVALUES + 0.01), steps=STEPS, resume=tmp_path / "run.npz")


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty", "text", "npy", "other npz", "pickle"])
def test_a_damaged_state_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    interrupted(path, 12, reorthogonalize="none")
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    contents = {"cut": whole[:-99], "flipped": flipped, "empty": b"", "text": b"hello\n"}
    with path.open("wb") as file:
        if kind in contents:
            file.write(contents[kind])
        elif kind == "npy":
            np.save(file, np.zeros(3))
        elif kind == "pickle":
            np.savez(file, kind=np.array({}, dtype=object))
        else:
            np.savez(file, values=np.zeros(3))
    with pytest.raises(ValueError, match=r"run\.npz (is damaged|holds another computation)"):
        spectrum(Reflected(EIGENVALUES), steps=STEPS, resume=path)


@pytest.mark.parametrize("length", [None, 0, 12 * 800 - 1])
def test_a_damaged_basis_is_refused(length: int | None, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    interrupted(path, 12)
    basis = tmp_path / "run.npz.basis"
    whole = basis.read_bytes()
    basis.unlink() if length is None else basis.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"basis is damaged: it has \d+ bytes.*counts 9600"):
        spectrum(Reflected(EIGENVALUES), steps=STEPS, resume=path)
    basis.write_bytes(whole + b"what the state does not count")
    assert_same(
        spectrum(Reflected(EIGENVALUES), steps=STEPS, resume=path),
        spectrum(Reflected(EIGENVALUES), steps=STEPS),
    )
