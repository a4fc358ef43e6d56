"""Small tensors: threads only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lightning_opt.optimizers import _schedule


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def short_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is amortized is due at the powers of two, and soon at its interval, in short runs."""
    monkeypatch.setattr(_schedule, "_SHARE", 1)
