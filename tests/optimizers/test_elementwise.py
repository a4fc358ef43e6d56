"""One rule, run block by block, packed or compiled: whatever the way, the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_opt.optimizers import Lookahead, Ranger, Yogi, _blocks, _elementwise
from lightning_opt.optimizers._blocks import blocks, flat

METHODS = {
    "Yogi": Yogi,
    "YogiL2": partial(Yogi, weight_decay=0.1, bias_correction=False),
    "YogiAdamW": partial(Yogi, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    "Ranger": partial(Ranger, k=3),
    "RangerL2": partial(Ranger, k=3, weight_decay=0.1, centralize=False),
    "RangerAdamW": partial(Ranger, k=3, weight_decay=0.1, decoupled_weight_decay=True),
}
SHAPES = [(7, 3, 2, 2), (5, 4), (6,), (3,), (), (1,), (4, 1), (1, 4)]

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def train(
    method: Any,
    *,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> list[Tensor]:
    """Parameters after ten steps, past Lookahead's period and RAdam's first five, whose last
    parameter gets its first gradient late."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor

    parameters = [nn.Parameter(draw(shape)) for shape in [*SHAPES, (6,)]]
    optimizer = method(parameters, lr=0.01, **options)
    for step in range(10):
        for parameter in parameters[: None if step > 3 else -1]:
            parameter.grad = draw(tuple(parameter.shape))
        optimizer.step()
    return [p.detach() for p in parameters]


@every_method
@pytest.mark.parametrize("size", [1, 5, 64])
def test_blocks_change_nothing(method: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that do not divide the tensors, and that are smaller than a row."""
    whole = train(method)
    monkeypatch.setattr(_blocks, "_BLOCK", size)
    for expected, actual in zip(whole, train(method), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-15)


@every_method
def test_packing_changes_nothing(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = train(method)
    monkeypatch.setattr(_elementwise, "_SHORT", 0)
    for expected, actual in zip(packed, train(method), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-15)


@every_method
@pytest.mark.parametrize("size", [4, 10_000])
def test_memory_format_changes_nothing(
    method: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    contiguous = train(method)
    monkeypatch.setattr(_blocks, "_BLOCK", size)
    last = train(method, memory_format=torch.channels_last)
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    for expected, actual in zip(contiguous, last, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)


def test_gradient_laid_out_unlike_its_parameter() -> None:
    """As autograd leaves it for a weight that is used transposed."""
    for method in (Yogi, Ranger):
        like, unlike = (nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
        gradient = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]])
        like.grad, unlike.grad = gradient, gradient.T.contiguous().T
        method([like], lr=0.1).step()
        method([unlike], lr=0.1).step()
        assert torch.equal(like, unlike)


def test_blocks_are_views_of_all_elements_in_order() -> None:
    a, b = torch.arange(600_000.0), torch.arange(600_000.0) + 0.5
    pieces = list(blocks(a, b))
    assert len(pieces) > 1
    assert torch.equal(torch.cat([x for x, _ in pieces]), a)
    assert torch.equal(torch.cat([x for _, x in pieces]), b)
    pieces[-1][0][-1] = -1.0
    assert a[-1] == -1.0
    rows = list(blocks(a.view(3, -1)))
    assert [x.shape for (x,) in rows] == [(1, 200_000)] * 3


def test_flat_keeps_the_order_of_memory_and_shares_it() -> None:
    kernel = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    (view,) = flat(kernel)
    assert view.shape == (120,) and view.data_ptr() == kernel.data_ptr()
    gaps = torch.randn(4, 6)[:, ::2]
    assert flat(gaps)[0] is gaps


def peak_of_new_memory(step: Any) -> int:
    """Bytes allocated beyond what was there, at the most, while ``step`` runs."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in profile.events():
        if event.name == "[memory]":
            now += event.cpu_memory_usage
            peak = max(peak, now)
    return peak


def test_rule_allocates_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra memory of a step does not grow with the parameters."""
    monkeypatch.setattr(_blocks, "_BLOCK", 1024)
    for method in (Yogi, Ranger, partial(Lookahead, base=partial(Yogi, lr=0.1), k=1)):
        parameter = nn.Parameter(torch.randn(512, 256))
        parameter.grad = torch.randn(512, 256)
        optimizer = method([parameter])
        for _ in range(6):
            optimizer.step()
        assert peak_of_new_memory(optimizer.step) < 0.05 * parameter.nbytes


# Each compiles in the first step, which takes seconds.
COMPILED = {
    "Yogi": METHODS["YogiL2"],
    "Ranger": METHODS["RangerAdamW"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", COMPILED.values(), ids=COMPILED.keys())
def test_compiled_rule_is_the_same(method: Any) -> None:
    """With numbers that change from step to step, and with a tensor as learning rate."""
    plain = train(method)
    for expected, actual in zip(plain, train(method, compile=True), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_compiled_rule_compiles_once() -> None:
    """Not in every step, for every learning rate, or for another optimizer of the same shapes."""
    from torch._dynamo.utils import counters

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    def steps(lr: float) -> None:
        parameter = nn.Parameter(torch.ones(3, 2))
        optimizer = Yogi([parameter], lr=lr, compile=True)
        for step in range(3):
            parameter.grad = torch.full((3, 2), 1.0 + step)
            optimizer.param_groups[0]["lr"] = lr / (1 + step)
            optimizer.step()

    before = graphs()
    steps(0.1)
    assert graphs() == before + 1
    steps(0.2)
    assert graphs() == before + 1


@pytest.mark.slow
def test_compiled_code_is_found_in_the_cache_by_another_process(tmp_path: Path) -> None:
    code = (
        "import torch; from lightning_opt.optimizers import Yogi\n"
        "from torch._dynamo.utils import counters\n"
        "p = torch.nn.Parameter(torch.ones(3, 2)); p.grad = torch.ones(3, 2)\n"
        "Yogi([p], compile=True).step()\n"
        "print(counters['inductor']['fxgraph_cache_hit'], p.sum().item())"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    def run() -> list[str]:
        command = [sys.executable, "-c", code]
        output = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        return output.stdout.split()

    (first_hits, first), (hits, second) = run(), run()
    assert (first_hits, hits) == ("0", "1")
    assert first == second


def test_compile_stays_what_this_process_asked_for() -> None:
    """A checkpoint from a machine with a compiler goes on where there is none."""
    compiled, plain = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    state = Yogi([compiled], compile=True).state_dict()
    optimizer = Yogi([plain])
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["compile"] is False
