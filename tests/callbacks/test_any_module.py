"""Whatever a LightningModule may be made of, trained and fed by."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BatchEncoding, RobertaConfig, RobertaForMaskedLM

from classifier import Plain, examples, plain, read
from lightning_opt.callbacks import HessianSpectrum, LossLine, LossSurface
from lightning_opt.errors import UsageError
from oracles.curvature import full_hessian


def spectrum(**options: Any) -> HessianSpectrum:
    return HessianSpectrum(**{"steps": 3, "batches": 2, **options})


def surface(**options: Any) -> LossSurface:
    return LossSurface(**{"resolution": (3, 3), "batches": 2, **options})


def line(**options: Any) -> LossLine:
    return LossLine(**{"resolution": 3, "reach": (0.0, 1.0), "batches": 2, **options})


ALL = pytest.mark.parametrize("make", [spectrum, surface, line])


class Roberta(Plain):
    """Tied embeddings, attention, dropout, a HuggingFace batch, masked tokens as terms."""

    loss_terms = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 4, "intermediate_size": 5, "max_position_embeddings": 10}
        config = RobertaConfig(
            vocab_size=7, num_hidden_layers=1, num_attention_heads=1, pad_token_id=1, **sizes
        )
        self.network = RobertaForMaskedLM(config)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.network(**batch).loss

    def batches(self) -> list[BatchEncoding]:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(2, 7, (5, 6), generator=generator)
        labels = tokens.masked_fill(torch.rand(5, 6, generator=generator) < 0.6, -100)
        cut = ((0, 2), (2, 5))
        return [BatchEncoding({"input_ids": tokens[a:b], "labels": labels[a:b]}) for a, b in cut]

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches(), batch_size=None)


def test_a_masked_language_model(fit):
    """Every masked token counts the same, whatever its batch; the tied weights count once."""
    module, analysis, plane = Roberta(), spectrum(steps=20, top=3, bottom=0), surface()
    fit(module, analysis, plane, precision="64-true")
    first, second = module.batches()
    module.eval()

    def loss(network: nn.Module) -> Any:
        logits = torch.cat([network(batch["input_ids"]).logits for batch in (first, second)])
        labels = torch.cat([first["labels"], second["labels"]])
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    exact = loss(module.network).item()
    assert plane.result.values[1, 1] == pytest.approx(exact, rel=1e-12)
    assert plane.result.terms == sum((b["labels"] != -100).sum() for b in (first, second))
    assert analysis.result.dimension == sum(p.numel() for p in module.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        top = np.linalg.eigvalsh(full_hessian(module.network, loss).numpy())[::-1][:1]
    np.testing.assert_allclose(analysis.result.eigenvalues[:1], top, rtol=1e-3)


class Parts(Plain):
    """A frozen layer, one that the loss does not use, and one that two places share."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.network[0].requires_grad_(False)
        self.unused = nn.Linear(2, 3)
        self.shared = nn.Linear(2, 2)
        self.again = self.shared

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.again(torch.tanh(self.shared(self.network(batch[0]))))
        return F.cross_entropy(logits, batch[1])


@ALL
def test_frozen_unused_and_shared_parameters(fit, make, tmp_path):
    module, analysis = Parts(), make()
    frozen = plain(module.network[0].state_dict())
    fit(module, analysis)
    arrays = read(tmp_path / f"{analysis.name}.npz")
    assert arrays["parameters"] == (4 * 2 + 2) + (2 * 3 + 3) + (2 * 2 + 2)
    assert plain(module.network[0].state_dict()) == frozen


@ALL
def test_layers_that_configure_model_builds(fit, make):
    class Late(Plain):
        def __init__(self) -> None:
            super().__init__()
            del self.network

        def configure_model(self) -> None:
            if not hasattr(self, "network"):
                self.network = nn.Linear(6, 2)

    analysis = make()
    fit(Late(), analysis)
    assert analysis.result is not None


@ALL
def test_several_optimizers(fit, make):
    class Two(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def energy(self, batch: Any) -> Any:
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.energy(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in self.network[::2]]

    analysis = make(loss="energy")
    fit(Two(), analysis)
    assert analysis.result is not None


@ALL
def test_several_validation_loaders(fit, make, tmp_path):
    """A limit is each loader's own."""

    class Several(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

        def val_dataloader(self) -> Any:
            return [DataLoader(examples(count), batch_size=2) for count in (8, 5)]

    analysis = make(split="val", batches=8)
    fit(Several(), analysis, limit_val_batches=3)
    assert read(tmp_path / f"{analysis.name}.npz")["terms"] == 6 + 5


class Penalized(Plain):
    """A penalty on the gradient with respect to the input, as in WGAN-GP."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.network(x).sum(), x, create_graph=True)
        return F.cross_entropy(self.network(x), batch[1]) + gradient.square().mean()


@ALL
def test_a_loss_that_needs_gradients_itself(fit, make, tmp_path):
    module, analysis = Penalized(), make(batches=3)
    fit(module, analysis, precision="64-true")
    exact = sum(
        module.training_step((x[None].double(), y[None]), 0).item()
        for x, y in zip(*examples().tensors, strict=True)
    )
    assert float(read(tmp_path / f"{analysis.name}.npz")["loss"]) == pytest.approx(exact / 22)
    if make is surface:
        assert analysis.result.values[1, 1] == pytest.approx(exact / 22)
        assert np.ptp(analysis.result.values) > 0.01


def test_a_loss_without_that_need_runs_without_gradients(fit):
    enabled = []

    class Spied(Plain):
        def spy(self, batch: Any) -> Any:
            enabled.append(torch.is_grad_enabled())
            return self.training_step(batch, 0)

    fit(Spied(), surface(loss="spy"))
    assert enabled
    assert not any(enabled)


def test_an_error_of_the_loss_itself_arrives(fit):
    class Broken(Plain):
        def broken(self, batch: Any) -> Any:
            return self.network(batch[0][:, :2])

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(Broken(), surface(loss="broken"))


@ALL
def test_an_interruption_restores_everything_and_writes_nothing(fit, make, tmp_path, monkeypatch):
    class Interrupted(Plain):
        calls = 0

        def analyzed(self, batch: Any) -> Any:
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            return self.training_step(batch, 0)

    before: dict[str, Any] = {}

    class Look(HessianSpectrum):
        def on_train_end(self, trainer, pl_module):
            before.update(state=plain(pl_module.state_dict()), calls=vars(pl_module).get("calls"))

    monkeypatch.setattr(signal, "signal", lambda *args: None)  # Lightning would keep it ignored
    module = Interrupted()
    with pytest.raises(SystemExit):
        fit(module, Look(name="look"), make(loss="analyzed", every_n_epochs=None))
    assert plain(module.state_dict()) == before["state"]
    assert vars(module).get("calls") == before["calls"]
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("kinds", [(spectrum, surface), (spectrum, spectrum)])
def test_two_of_one_name_are_refused_before_training(fit, kinds):
    first, second = kinds
    with pytest.raises(UsageError, match=r"name='twice'.*another name="):
        fit(Plain(), first(name="twice"), second(name="twice"))


def test_several_of_one_kind_side_by_side(fit, tmp_path):
    fit(Plain(), spectrum(name="one"), spectrum(name="other", split="train", seed=1))
    assert {path.name for path in tmp_path.glob("*.npz")} == {"one.npz", "other.npz"}


def test_where_the_files_are_is_said_in_one_line(fit, tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(Plain(), spectrum(every_n_epochs=1), surface())
    said = [record.getMessage() for record in caplog.records if str(tmp_path) in record.message]
    files = "spectrum.npz, spectrum.png, spectrum-history.npz, spectrum-history.png"
    assert said == [
        f"HessianSpectrum: {files} in {tmp_path}",
        f"LossSurface: surface.npz, surface.png in {tmp_path}",
    ]


def test_gradients_are_out_of_the_way_meanwhile(fit):
    """They are memory of the device."""
    held = []

    class Spied(Plain):
        def on_train_end(self) -> None:
            held.append([param.grad is not None for param in self.parameters()])

        def spy(self, batch: Any) -> Any:
            held.append([param.grad is not None for param in self.parameters()])
            return self.training_step(batch, 0)

    fit(Spied(), surface(loss="spy"))
    assert not any(map(any, held[:-1]))
    assert all(held[-1])


# ------------------------------------------------------------------------------------- metrics


class Measured(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.updated = torchmetrics.Accuracy("multiclass", num_classes=2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.network(batch[0])
        self.accuracy(logits, batch[1])
        self.updated.update(logits, batch[1])
        right = (logits.argmax(dim=1) == batch[1]).float().mean()
        self.log("object", self.accuracy)
        self.log_dict({"updated": self.updated, "tensor": right, "number": right.item()})
        return F.cross_entropy(logits, batch[1])


@pytest.mark.parametrize("make", [surface, line])
def test_metrics_are_what_the_step_logs(fit, make, tmp_path):
    """Objects, with state or not, count their own batch only; batches count by their terms."""
    names = ["object", "updated", "tensor", "number"]
    module, analysis = Measured(), make(batches=3, metrics=names)
    fit(module, analysis)
    x, y = examples().tensors
    exact = (module.network(x).argmax(dim=1) == y).float().mean().item()
    center = (1, 1) if make is surface else (2,)
    arrays = read(tmp_path / f"{analysis.name}.npz")
    for name in names:
        values = arrays[f"metric_{name}"]
        assert values.shape == arrays["values"].shape
        assert values[center] == pytest.approx(exact, abs=1e-6)
        np.testing.assert_allclose(values, arrays["metric_tensor"], atol=1e-6)
    assert np.ptp(arrays["metric_tensor"]) > 0


def test_metrics_do_not_grow_with_the_evaluations(fit):
    """A metric that collects its input would collect that of every point."""
    longest = []

    class Collects(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.collected = torchmetrics.CatMetric()

        def spy(self, batch: Any) -> Any:
            self.collected.update(batch[0][:, 0])
            longest.append(len(self.collected.value))
            return self.training_step(batch, 0)

    fit(Collects(), surface(loss="spy"))
    assert max(longest) == 1


def test_a_metric_that_is_not_logged_is_told_after_the_first_batch(fit):
    class Counts(Measured):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            assert batch_idx == 0

    with pytest.raises(UsageError, match=r"logs no 'acuracy'.*|Did you mean"):
        fit(Counts(), surface(metrics=["acuracy"]))
    with pytest.raises(UsageError, match=r"metrics: Counts.training_step logs no 'objct'.*object"):
        fit(Counts(), surface(metrics=["tensor", "objct"]))


def test_a_metric_that_another_loss_does_not_log_is_told(fit):
    class Other(Measured):
        def quiet(self, batch: Any) -> Any:
            return F.cross_entropy(self.network(batch[0]), batch[1])

    with pytest.raises(UsageError, match=r"Other.quiet logs no 'tensor'"):
        fit(Other(), surface(metrics=["tensor"], loss="quiet"))
