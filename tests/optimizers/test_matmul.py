"""Products of matrices by whichever library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_opt.optimizers import KFAC, Shampoo, _matmul
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


def test_large_products_are_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def noticed(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        return torch.zeros(())

    monkeypatch.setattr(_matmul, "_onednn", noticed)
    matmul(torch.randn(1, 200, 200), torch.randn(1, 200, 200))
    matmul(torch.randn(1, 20, 20), torch.randn(1, 20, 20))
    assert len(calls) == 1


@pytest.mark.parametrize("method", [KFAC, Shampoo])
def test_training_is_the_same_through_onednn(
    method: type[KFAC] | type[Shampoo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hooks of KFAC call it, too, and on whatever views the methods make."""
    monkeypatch.setattr(_matmul, "_ONEDNN_FROM", 0)
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(54, 7))
        options = {"model": model} if method is KFAC else {"block_size": 4}
        optimizer = method(model.parameters(), **options)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 3, 5, 5)).square().mean().backward()
            optimizer.step()
        trained.append(list(model.parameters()))
        monkeypatch.setattr(_matmul, "_onednn", None)
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
