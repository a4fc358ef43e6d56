"""Where the basis lives, what is available there, and that it does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_opt.geometry import _basis, spectrum
from lightning_opt.geometry._basis import Basis, home_of_basis
from lightning_opt.geometry._shards import Shards
from lightning_opt.memory import UNKNOWN, available
from oracles.curvature import rotated

CPU, DEVICE = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("reorthogonalize", "memory", "on_device", "on_host", "home"),
    [
        # 2 probes × 10 steps × 100 entries × 4 bytes; a third of what is free may be taken.
        ("auto", None, 24_000, 0, DEVICE),
        ("auto", None, 23_990, 24_000, CPU),
        ("auto", None, 23_990, 23_990, None),
        ("auto", 8_000, 24_000, 0, DEVICE),
        ("auto", 8_000, 0, 0, CPU),
        ("auto", 7_999, 99_999, 99_999, None),
        ("full", None, 24_000, 0, DEVICE),
        ("full", None, 0, 0, CPU),
        ("none", None, 99_999, 99_999, None),
    ],
)
def test_home(monkeypatch, reorthogonalize, memory, on_device, on_host, home):
    free = {CPU: on_host, DEVICE: on_device}
    monkeypatch.setattr(_basis, "available", free.__getitem__)
    shards = Shards(100, CPU)
    found = home_of_basis(reorthogonalize, memory, 2, 10, shards, torch.float32, DEVICE)
    assert found == home


def test_home_of_a_basis_on_the_host_of_a_cpu(monkeypatch):
    shards = Shards(100, CPU)
    for free, home in ((24_000, CPU), (23_990, None)):
        monkeypatch.setattr(_basis, "available", lambda device, free=free: free)
        assert home_of_basis("auto", None, 2, 10, shards, torch.float32, CPU) == home


def test_processes_on_one_host_share_its_memory(monkeypatch):
    """Three of them; each has its own device."""
    monkeypatch.setattr(Shards, "on_this_host", lambda self: 3)
    for device, on_device, on_host, home in (
        (CPU, 0, 72_010, CPU),
        (CPU, 0, 71_990, None),
        (DEVICE, 24_010, 0, DEVICE),
        (DEVICE, 0, 72_010, CPU),
        (DEVICE, 0, 71_990, None),
    ):
        free = {DEVICE: on_device, CPU: on_host}
        monkeypatch.setattr(_basis, "available", free.__getitem__)
        shards = Shards(100, CPU)
        assert home_of_basis("auto", None, 2, 10, shards, torch.float32, device) == home


def test_a_vector_is_made_orthogonal_even_when_little_of_it_is_left():
    shards = Shards(50, CPU)
    basis = Basis(2, 3, shards, torch.float64, CPU)
    Q, _ = torch.linalg.qr(torch.randn(50, 8, dtype=torch.float64))
    for index in range(3):
        basis.put(index, [0, 1], Q.T[[index, index + 3]])
    rest = Q.T[[6, 7]]
    w = rest * 1e-9 + Q.T[[0, 3]] - 2 * Q.T[[2, 5]]
    squares = basis.orthogonalize(w, [0, 1], 3)
    # Of the vector 1e-9 is left, to which rounding is 1e-7; it is orthogonal nevertheless.
    torch.testing.assert_close(w, rest * 1e-9, rtol=1e-5, atol=1e-15)
    np.testing.assert_allclose(squares, 1e-18, rtol=1e-5)
    for row, kept in zip(w, (Q.T[:3], Q.T[3:6]), strict=True):
        assert float((kept @ row).abs().max()) < 1e-9 * 1e-13
    combined = basis.combine(1, np.array([[1.0, 2.0], [0.0, 1.0]]))
    torch.testing.assert_close(combined, torch.stack([Q.T[3] + 2 * Q.T[4], Q.T[4]]))
    # Only the vectors there are, and only the probes in question.
    w = Q.T[[5]].clone()
    basis.orthogonalize(w, [1], 2)
    torch.testing.assert_close(w, Q.T[[5]])
    basis.orthogonalize(w, [1], 3)
    assert float(w.abs().max()) < 1e-15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_basis_on_the_host_is_one_on_the_device(monkeypatch):
    matrix = rotated(torch.linspace(-1, 5, 200)).cuda()
    on_device = spectrum(matrix, steps=50, probes=2)
    monkeypatch.setattr(_basis, "available", lambda device: 0)
    on_host = spectrum(matrix, steps=50, probes=2, reorthogonalize="full")
    np.testing.assert_allclose(on_host.nodes, on_device.nodes, atol=1e-10)


def test_vectors_that_move_to_the_basis_come_back(monkeypatch):
    """As between two devices, every move makes a copy."""
    matrix = rotated(torch.linspace(-1, 5, 200))
    here = spectrum(matrix, steps=50, probes=2)
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **options: move(*args, **options).clone())
    np.testing.assert_array_equal(spectrum(matrix, steps=50, probes=2).nodes, here.nodes)


def host(root: Path, **files: str) -> int:
    """What is available where ``proc`` and ``sys`` have these files; ``__`` is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available(CPU, root)


def test_available_is_what_the_system_says(tmp_path):
    meminfo = "MemTotal:       8000 kB\nMemFree:  1000 kB\nMemAvailable:   5000 kB\nHuge: 0\n"
    assert host(tmp_path, proc__meminfo=meminfo) == 5000 * 1024


def test_available_is_within_the_limits_of_control_groups(tmp_path):
    """Also of those further up; the cache of files gives way."""
    files = {
        "proc__meminfo": "MemAvailable: 5000 kB\n",
        "proc__self__cgroup": "0::/job/step\n",
        "sys__fs__cgroup__job__step__memory.max": "max\n",
        "sys__fs__cgroup__job__step__memory.current": "700000\n",
        "sys__fs__cgroup__job__memory.max": "1000000\n",
        "sys__fs__cgroup__job__memory.current": "800000\n",
        "sys__fs__cgroup__job__memory.stat": "anon 650000\ninactive_file 150000\n",
    }
    assert host(tmp_path, **files) == 350_000
    assert host(tmp_path, **{"sys__fs__cgroup__job__memory.current": "2000000\n"}) == 0


def test_available_with_control_groups_of_version_1(tmp_path):
    files = {
        "proc__meminfo": "MemAvailable: 5000 kB\n",
        "proc__self__cgroup": "9:cpu:/a\n4:memory:/a\n0::/\n",
        "sys__fs__cgroup__memory__a__memory.limit_in_bytes": "1000000\n",
        "sys__fs__cgroup__memory__a__memory.usage_in_bytes": "400000\n",
        "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n",
        "sys__fs__cgroup__memory__memory.usage_in_bytes": "900000\n",
    }
    assert host(tmp_path, **files) == 600_000


def test_available_where_nothing_tells(tmp_path, monkeypatch):
    assert available(CPU, tmp_path) > 2**20  # half of the machine
    monkeypatch.delattr("os.sysconf")
    assert available(CPU, tmp_path) == UNKNOWN
    assert available(torch.device("mps")) == 0  # it shares the memory of the host


def test_available_here():
    assert 2**20 < available(CPU) < 2**50
