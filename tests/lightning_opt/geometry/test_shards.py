"""Two processes that keep half of every vector each, against one that keeps all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_opt.geometry import _basis, _run_file, spectrum
from lightning_opt.geometry._shards import Shards
from lightning_opt.geometry.eigenvectors import eigenvectors
from oracles.curvature import rotated

# An odd number of coordinates, so that the halves differ.
EIGENVALUES = torch.cat([torch.linspace(-1, 1, 98), torch.tensor([4.0, 15.0, 60.0])]).double()
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"probes": 3},
    "one probe": {},
    # A few steps, before rounding has grown.
    "none": {"probes": 2, "reorthogonalize": "none", "steps": 7},
    "all dimensions": {"steps": 101},
}


class Summed:
    """The sum of the operators of all processes, each of which has a part of the data."""

    def __init__(self, matrix: Tensor, group: Any = None) -> None:
        self.part = matrix
        self.group = group
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        product = self.part @ v
        if self.group is not None:
            dist.all_reduce(product, group=self.group)
        return product


def parts() -> tuple[Tensor, Tensor]:
    return rotated(EIGENVALUES, seed=1), rotated(EIGENVALUES.flip(0) ** 2 / 60, seed=2)


class Interrupted(Exception):
    pass


def interrupt_at(number: int):
    calls: list[None] = []

    def progress() -> None:
        calls.append(None)
        if len(calls) == number:
            raise Interrupted

    return progress


def raised(**options: Any) -> str:
    try:
        spectrum(**options)
    except (ValueError, FloatingPointError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def as_rank(rank: int, folder: Path) -> None:
    """What each of two processes does; the group is not the default one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    group = dist.new_group([0, 1])
    results: dict[str, Any] = {}
    operator = Summed(parts()[rank], group)

    def analyze(name: str, **options: Any) -> None:
        arrays = spectrum(operator, **{"steps": 30, **options}, group=group).to_arrays()
        results.update({f"{name}/{key}": array for key, array in arrays.items()})

    for name, options in OPTIONS.items():
        analyze(name, **options)
    results["vectors"] = eigenvectors(operator, group=group).vectors.numpy()
    # Less than one coordinate each.
    tiny = spectrum(torch.full((1, 1), 3.0).double(), steps=4, group=group)
    results["tiny"] = tiny.eigenvalues

    _run_file.pause = lambda took: 0.0
    for name in ("full", "none"):
        path = folder / f"resumed {name}" / "run.npz"
        try:
            options = {"steps": 30, **OPTIONS[name], "resume": path}
            spectrum(operator, **options, group=group, progress=interrupt_at(7))
        except Interrupted:
            dist.barrier()
            results[f"files/{name}"] = sorted(file.name for file in path.parent.iterdir())
            dist.barrier()
        analyze(f"resumed {name}", **OPTIONS[name], resume=path)
        dist.barrier()
        results[f"left/{name}"] = len(list(path.parent.iterdir()))

    # Errors are raised by both, and nobody waits.
    (folder / "text").write_text("hello")
    results["error/file"] = raised(operator=operator, resume=folder / "text", group=group)
    results["error/folder"] = raised(operator=operator, resume=folder / "text" / "x", group=group)
    for coordinate in (0, 100):
        broken = parts()[0].clone()
        broken[coordinate] = torch.nan  # in the slice of one process
        results[f"error/nan {coordinate}"] = raised(operator=broken, group=group)

    # One process has no memory left: neither keeps a basis.
    if rank == 1:
        _basis.available = lambda device: 0
    analyze("no memory")
    shards = Shards(101, torch.device("cpu"), group)
    results["host"], results["length"] = shards.on_this_host(), shards.length
    np.savez(folder / f"{rank}.npz", **results)
    dist.barrier()  # a rank that is gone would be an error to the other
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    code = (
        "import sys, runpy, pathlib; sys.path[:0] = sys.argv[2:4]; "
        "runpy.run_path(sys.argv[1])['as_rank'](int(sys.argv[5]), pathlib.Path(sys.argv[4]))"
    )
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, __file__, str(tests.parent), str(tests), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    loaded = []
    for rank in range(2):
        with np.load(folder / f"{rank}.npz") as archive:
            loaded.append({name: archive[name] for name in archive.files})
    return loaded


def test_both_have_the_same_results(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first.keys() == second.keys()
    for name in first.keys() - {"length"}:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert (first["length"], second["length"]) == (51, 50)
    assert first["host"] == 2


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_are_one(name: str, ranks: list[dict[str, Any]]) -> None:
    """To rounding, since sums are in another order."""
    expected = spectrum(Summed(sum(parts())), **{"steps": 30, **OPTIONS[name]}).to_arrays()
    for key, array in expected.items():
        np.testing.assert_allclose(
            ranks[0][f"{name}/{key}"], array, rtol=1e-6, atol=1e-9, err_msg=key
        )


def test_eigenvectors_are_whole(ranks: list[dict[str, Any]]) -> None:
    expected = eigenvectors(Summed(sum(parts()))).vectors.numpy()
    np.testing.assert_allclose(ranks[1]["vectors"], expected, atol=1e-9)
    np.testing.assert_allclose(ranks[1]["tiny"], [3.0])


@pytest.mark.parametrize("name", ["full", "none"])
def test_an_interrupted_run_goes_on_bitwise(name: str, ranks: list[dict[str, Any]]) -> None:
    """One state for all, by the first of them."""
    files = ["run.npz", "run.npz.basis"] if name == "full" else ["run.npz"]
    assert ranks[0][f"files/{name}"].tolist() == files
    assert ranks[0][f"left/{name}"] == 0
    for key in ("nodes", "weights", "eigenvalues", "trace"):
        np.testing.assert_array_equal(ranks[0][f"resumed {name}/{key}"], ranks[0][f"{name}/{key}"])


def test_errors_are_raised_by_both(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert "text is damaged" in str(results["error/file"])
        assert "FileExistsError" in str(results["error/folder"])
        for coordinate in (0, 100):
            error = str(results[f"error/nan {coordinate}"])
            assert error.startswith("FloatingPointError") and "Lanczos step 1" in error


def test_they_decide_alike_though_their_memory_differs(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert not results["no memory/reorthogonalized"]
