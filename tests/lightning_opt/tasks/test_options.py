"""Options that change how a step is computed: with every shipped optimizer, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_opt.callbacks import HessianSpectrum, LossSurface
from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError
from lightning_opt.lightning_cli import OptLightningCLI
from lightning_opt.models import ShallowCNN
from lightning_opt.tasks import ImageClassifier

OPTIONS = {
    "channels_last": ["--model.channels_last=true"],
    "compile": ["--model.compile=true"],
    "bf16-mixed": ["--trainer.precision=bf16-mixed"],
    "accumulation": ["--trainer.accumulate_grad_batches=2"],
}
REFUSED = {
    ("svrg", "accumulation"): "SVRG .* accumulate_grad_batches=1",
    ("kfac", "compile"): "KFAC .* compile=False",
}
COMPILE = nn.Module.compile
STEPS = 7  # Lookahead and Ranger synchronize within


@pytest.fixture(autouse=True)
def _as_fast_as_eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch.compile traces is run as it is; making C++ code of it takes seconds each time."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(COMPILE, backend="aot_eager"))
    yield
    torch.compiler.reset()


def build(optimizer: str, *options: str, **overrides) -> OptLightningCLI:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return OptLightningCLI(
        ["--config", "digits", "--optimizer", optimizer, *options],
        run=False,
        trainer_overrides={
            "accelerator": "cpu",
            "max_epochs": 1,
            "limit_train_batches": STEPS,
            "limit_val_batches": 1,
            **quiet,
            **overrides,
        },
    )


def train(optimizer: str, *options: str, **overrides) -> Tensor:
    """How far all weights have moved after a few steps."""
    cli = build(optimizer, *options, **overrides)
    start = vector(cli.model)
    cli.trainer.fit(cli.model, cli.datamodule)
    return vector(cli.model) - start


def vector(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def difference(moved: Tensor, expected: Tensor) -> float:
    """Relative to the way: small beside the weights says nothing after a few steps."""
    return ((moved - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("optimizer", shipped("optimizers"))
def test_every_option_works_with_every_optimizer_or_is_refused(optimizer: str, option: str):
    if words := REFUSED.get((optimizer, option)):
        with pytest.raises(UsageError, match=words):
            train(optimizer, *OPTIONS[option])
        return
    always, steps = [], STEPS
    given, tolerance = OPTIONS[option], 1e-3
    if option == "accumulation":  # two batches of 32 are one of 64
        given, steps = [*given, "--data.batch_size=32"], 2 * STEPS
        if optimizer == "kfac":  # which otherwise looks at as many examples of each
            always = ["--optimizer.conv_examples=null"]
    if option == "bf16-mixed":
        tolerance = 0.15
    moved = train(optimizer, *always, *given, limit_train_batches=steps)
    found = difference(moved, train(optimizer, *always))
    assert found < tolerance


def test_all_options_at_once():
    given = [option for options in OPTIONS.values() for option in options]
    moved = train("ranger", *given, "--data.batch_size=32", limit_train_batches=2 * STEPS)
    assert difference(moved, train("ranger")) < 0.15


def test_compiling_keeps_the_names_and_runs_compiled_code(monkeypatch: pytest.MonkeyPatch):
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(COMPILE, backend=backend))
    batch = torch.rand(4, 1, 8, 8), torch.arange(4)
    plain, compiled = (ImageClassifier(ShallowCNN(), compile=choice) for choice in (False, True))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.load_state_dict(plain.state_dict())
    assert torch.equal(compiled.loss(batch), plain.loss(batch))
    assert len(graphs) == 1  # the whole network


def test_a_compiled_network_is_looked_at_as_any_other(tmp_path: Path):
    def looks(*options: str) -> tuple[HessianSpectrum, LossSurface]:
        callbacks = HessianSpectrum(steps=4, batches=2), LossSurface(resolution=(3, 3), batches=2)
        train("adam", *options, callbacks=list(callbacks), default_root_dir=tmp_path)
        return callbacks

    (spectrum, surface), (expected, surface_expected) = looks(*OPTIONS["compile"]), looks()
    np.testing.assert_allclose(spectrum.result.eigenvalues, expected.result.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(surface.result.values, surface_expected.result.values, rtol=1e-5)


def test_channels_come_last_in_images_and_convolutions():
    torch.manual_seed(0)
    plain = ImageClassifier(ShallowCNN(in_channels=3))
    task = ImageClassifier(ShallowCNN(in_channels=3), channels_last=True)
    task.load_state_dict(plain.state_dict())
    seen = []
    convolution = task.network.features[2]
    task.network.features[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(task(images), plain(images))
    for tensor in (*seen, convolution.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


@pytest.mark.slow
def test_compiled_to_machine_code(monkeypatch: pytest.MonkeyPatch):
    """By torch's own backend, which needs a C++ compiler, and with all other options."""
    monkeypatch.setattr(nn.Module, "compile", COMPILE)
    given = [option for options in OPTIONS.values() for option in options]
    moved = train("svrg", *OPTIONS["compile"], *OPTIONS["channels_last"])
    assert difference(moved, train("svrg")) < 1e-3
    moved = train("ranger", *given, "--data.batch_size=32", limit_train_batches=2 * STEPS)
    assert difference(moved, train("ranger")) < 0.15
