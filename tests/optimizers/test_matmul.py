"""Products of matrices by whichever library."""

from __future__ import annotations

import pytest
import torch

from lightning_opt.optimizers import _matmul
from lightning_opt.optimizers._matmul import matmul

NUMBERS = [(2, 260, 270, 200), (1, 64, 600, 300), (3, 20, 30, 10), (0, 4, 5, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("available", [True, False])
def test_every_library_has_the_same_product(
    numbers: tuple[int, int, int, int],
    dtype: torch.dtype,
    available: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small and large, with oneDNN and without, of matrices that do not lie in memory by rows."""
    if not available:
        monkeypatch.setattr(_matmul, "_onednn", None)
    number, m, n, o = numbers
    x = torch.randn(number, n, m, dtype=dtype).mT
    for w in torch.randn(number, n, o + 3, dtype=dtype)[..., 3:], torch.randn(number, o, n).mT:
        w = w.to(dtype)
        expected = (x.double() @ w.double()).to(dtype)
        torch.testing.assert_close(matmul(x, w), expected, rtol=1e-4, atol=1e-4)


def test_large_matmul_are_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def noticed(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        return torch.zeros(())

    monkeypatch.setattr(_matmul, "_onednn", noticed)
    matmul(torch.randn(1, 200, 200), torch.randn(1, 200, 200))
    matmul(torch.randn(1, 20, 20), torch.randn(1, 20, 20))
    assert len(calls) == 1
