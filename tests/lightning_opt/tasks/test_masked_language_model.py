"""MaskedLanguageModel: transformers' loss and gradients, means over tokens, any optimizer."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_opt.callbacks import FisherScale, HessianSpectrum, SVRGSnapshot
from lightning_opt.models import Roberta
from lightning_opt.optimizers import KFAC, SVRG, Lookahead, Ranger, Shampoo, Yogi
from lightning_opt.tasks import MaskedLanguageModel

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
Batch = dict[str, Tensor]


def network(**options) -> Roberta:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "layers": 2, "width": 32, "heads": 4, "max_length": 16}
    return Roberta(**{**sizes, "dropout": 0.0, **options})


def task(make: Any = None, *, compile: bool = False, **options) -> MaskedLanguageModel:
    return MaskedLanguageModel(
        network(**options), optimizer=make or (lambda p: torch.optim.SGD(p, 0.1)), compile=compile
    )


def batch(seed: int = 0, rows: int = 4, share: float = 0.2, padded: bool = False) -> Batch:
    """Sentences in which every word is the one before it plus one: what can be learned."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 60, (rows, 1), generator=generator) + torch.arange(16)
    masked = torch.rand(words.shape, generator=generator) < share
    found = {"input_ids": words.masked_fill(masked, 4), "labels": words.masked_fill(~masked, -100)}
    if padded:
        present = torch.arange(16) < torch.randint(5, 17, (rows, 1), generator=generator)
        found["input_ids"][~present] = 1
        found["labels"][~present] = -100
        found["attention_mask"] = present.long()
    return found


def loader(*batches: Batch) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def losses(module: MaskedLanguageModel, batches: list[Batch]) -> Tensor:
    """The loss of every masked token, from all logits."""
    found, module = [], copy.deepcopy(module).eval()
    with torch.no_grad():
        for each in batches:
            logits = module(each["input_ids"], each.get("attention_mask")).flatten(0, 1)
            labels = each["labels"].flatten()
            every = F.cross_entropy(logits, labels, reduction="none")
            found.append(every[labels != -100])
    return torch.cat(found)


# Transformers' numbers


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_loss_and_gradients_are_those_of_transformers(padded: bool, checkpointing: bool):
    module = task(gradient_checkpointing=checkpointing).double().train()
    theirs = copy.deepcopy(module.network.model)
    given = batch(padded=padded)
    loss, expected = module.loss(given), theirs(**given).loss
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward(), expected.backward()
    ours = dict(module.network.model.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-12, atol=1e-13)


def test_loss_under_bf16_is_that_of_transformers():
    module, given = task(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = module.loss(given), module.network.model(**given).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_a_batch_that_masks_nothing_has_the_loss_zero():
    """Transformers' is NaN. Every parameter has a gradient, or DDP would wait for it."""
    module, given = task(), batch(share=0.0)
    assert module.loss_terms(given) == 0
    loss = module.loss(given)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_terms_are_masked_tokens():
    given = batch()
    assert task().loss_terms(given) == (given["labels"] != -100).sum() != 4


# Metrics


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_means_over_tokens(stage: str):
    module = task()
    batches = [batch(0), batch(1, rows=1), batch(2, share=0.9), batch(3, share=0.0)]
    trainer = Trainer(**QUIET)
    evaluate = trainer.validate if stage == "val" else trainer.test
    for _ in range(2):  # the second starts from nothing
        (metrics,) = evaluate(module, loader(*batches), verbose=False)
        mean = losses(module, batches).mean().item()
        assert metrics[f"{stage}_loss"] == pytest.approx(mean, rel=1e-6)
        assert metrics[f"{stage}_perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def test_training_loss_is_logged_every_step():
    module = task()
    trainer = Trainer(max_steps=1, **QUIET)
    expected = losses(module, [batch()]).mean().item()
    trainer.fit(module, loader(batch()))
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("weight", "loss"), [(math.nan, math.nan), (1e4, None)])
def test_a_run_that_diverged_shows_it(weight: float, loss: float | None):
    module = task()
    with torch.no_grad():
        module.network.model.lm_head.bias[:50] = weight
    (metrics,) = Trainer(**QUIET).validate(module, loader(batch(), batch(1)), verbose=False)
    if loss is None:
        assert 100 < metrics["val_loss"] < math.inf
        assert metrics["val_perplexity"] == math.inf
    else:
        assert math.isnan(metrics["val_loss"]) and math.isnan(metrics["val_perplexity"])


def as_rank(folder: Path, devices: int) -> None:
    """What each process does: validate its share of the batches, then take a step on one."""
    batches = [batch(0), batch(1, rows=1), batch(2, share=0.9), batch(3, share=0.0)]

    class Shared(LightningDataModule):
        def val_dataloader(self) -> Any:
            rank, world = self.trainer.global_rank, self.trainer.world_size
            sampler = DistributedSampler(batches, world, rank, shuffle=False)
            return DataLoader(batches, batch_size=None, sampler=sampler)

        train_dataloader = val_dataloader

    module = task()
    # The last two batches, of which one masks nothing, are the ranks' last.
    trainer = Trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        accumulate_grad_batches=4 // devices,
        num_sanity_val_steps=0,
        **QUIET,
    )
    (metrics,) = trainer.validate(module, Shared(), verbose=False)
    trainer.fit(module, Shared())
    if trainer.is_global_zero:
        torch.save((metrics, module.state_dict()), folder / f"{devices}.pt")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path):
    """Perplexity, and a step on the mean of the batches' means, one of which has no term."""
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    # Lightning leaves a test's seed there, and a distributed run takes it.
    environment.pop("PL_GLOBAL_SEED", None)
    for devices in (1, 2):
        command = [sys.executable, __file__, str(tmp_path), str(devices)]
        subprocess.run(command, check=True, timeout=120, env=environment)
    (one, weights), (two, others) = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-6)
    torch.testing.assert_close(weights, others, rtol=0, atol=1e-6)
    assert not torch.equal(weights[key := next(iter(weights))], task().state_dict()[key])


# Predictions


def test_prediction_fills_in_what_is_masked():
    module, given = task().eval(), batch()
    everywhere = module(given["input_ids"]).argmax(-1)
    filled = module.predict_step(given, 0)
    masked = given["labels"] != -100
    assert torch.equal(filled[masked], everywhere[masked])
    assert torch.equal(filled[~masked], given["input_ids"][~masked])
    assert torch.equal(module.predict_step({"input_ids": given["input_ids"]}, 0), everywhere)
    (predicted,) = Trainer(**QUIET).predict(module, loader(given))
    assert torch.equal(predicted, filled)


# What is refused


class Data(LightningDataModule):
    def __init__(self, given: Batch | None = None, **attributes: Any) -> None:
        super().__init__()
        self.given = given or batch()
        self.__dict__.update(attributes)

    def train_dataloader(self) -> Any:
        return loader(self.given)


class Tokenizer:
    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"vocab_size": 101}, "Data has vocab_size=101 .*Roberta has vocab_size=100: .*=101"),
        ({"block_size": 17}, "Data has block_size=17 .*Roberta has max_length=16: .*length=17"),
        ({"tokenizer": Tokenizer(0)}, "pad_token_id=0 and Roberta has pad_token_id=1"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(attributes: Any, words: str):
    with pytest.raises(ValueError, match=words):
        Trainer(max_steps=1, **QUIET).fit(task(), Data(**attributes))


def test_data_that_fit_are_taken():
    data = Data(vocab_size=100, block_size=16, tokenizer=Tokenizer(1))
    Trainer(max_steps=1, **QUIET).fit(task(), data)


@pytest.mark.parametrize(
    ("name", "token"), [("input_ids", 100), ("input_ids", -1), ("labels", 100)]
)
def test_tokens_outside_of_the_vocabulary_are_refused(name: str, token: int):
    given = batch()
    given[name][1, 2] = token
    with pytest.raises(ValueError, match=f"tokens .* reach .*{token}.* from 0 to 99"):
        Trainer(max_steps=1, **QUIET).fit(task(), loader(given))


def test_without_an_optimizer_it_says_how_to_give_one():
    with pytest.raises(ValueError, match=r"MaskedLanguageModel has no optimizer: pass optimizer="):
        MaskedLanguageModel(network()).configure_optimizers()


def test_scheduler_is_used():
    module = MaskedLanguageModel(
        network(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
    )
    trainer = Trainer(max_epochs=2, **QUIET)
    trainer.fit(module, loader(batch()))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025


# Every optimizer

Make = Callable[[MaskedLanguageModel], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.3),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 1e-2),
    "yogi": lambda m: Yogi(m.parameters(), 1e-2),
    "lookahead": lambda m: Lookahead(m.parameters(), lambda p: torch.optim.Adam(p, 1e-2)),
    "ranger": lambda m: Ranger(m.parameters(), 2e-2),
    "shampoo": lambda m: Shampoo(m.parameters(), 1e-2),
    "svrg": lambda m: SVRG(m.parameters(), 0.3, model=m),
    "kfac": lambda m: KFAC(m.parameters(), m, 0.1),
    "kfac, blocks": lambda m: KFAC(m.parameters(), m, 0.1, block_size=16),
    "kfac, reduce": lambda m: KFAC(m.parameters(), m, 0.1, weight_sharing="reduce"),
    "kfac, sampled": lambda m: KFAC(m.parameters(), m, 0.1, fisher="sampled"),
    "lookahead, kfac": lambda m: Lookahead(
        m.parameters(), lambda p: KFAC(p, lr=0.1, fisher="sampled")
    ).attach(m),
}

BATCHES = [batch(seed, share=0.4) for seed in range(3)]


def fit(make: Make, steps: int, *, precision: str = "32-true", **options: Any):
    module = task(**options)
    module._make_optimizer = lambda _: make(module)
    trainer = Trainer(
        max_steps=steps,
        precision=precision,
        callbacks=[FisherScale(), SVRGSnapshot(optional=True)],
        **QUIET,
    )
    trainer.fit(module, loader(*BATCHES))
    return module, trainer.optimizers[0]


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed", "dropout": 0.1}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_trains_all(name: str, options: Any):
    start = task()
    module, _ = fit(OPTIMIZERS[name], 30, **options)
    print(name, losses(module, BATCHES).mean(), losses(start, BATCHES).mean())
    assert losses(module, BATCHES).mean() < losses(start, BATCHES).mean() - 0.2
    before = dict(start.named_parameters())
    for parameter_name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[parameter_name]), parameter_name


def test_accumulated_batches_count_the_same():
    module, given = task(), [batch(0), batch(1, share=0.9)]
    trainer = Trainer(max_steps=1, accumulate_grad_batches=2, **QUIET)
    expected = copy.deepcopy(module)
    (sum(expected.loss(each) for each in given) / 2).backward()
    trainer.fit(module, loader(*given))
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.1 * other.grad, rtol=0, atol=1e-6)


def kfac_factors(make: Make = OPTIMIZERS["kfac"], **options) -> tuple[Roberta, Any, Any]:
    module, optimizer = fit(make, 1, **options)
    return module.network, optimizer, optimizer.state


def test_kfac_preconditions_the_tied_table_and_all_linear_layers():
    _, optimizer, _ = kfac_factors()
    rows = {row.name: row for row in optimizer.coverage().rows}
    left_out = {name for name, row in rows.items() if not row.preconditioned}
    assert all("norm" in name.lower() for name in left_out)
    (table,) = (row for name, row in rows.items() if "word_embeddings" in name)
    assert table.preconditioned and not any("decoder" in name for name in rows)


def test_kfac_has_the_factor_of_masked_tokens():
    """G of the head is n Σ δ δᵀ over the n masked tokens, A a mean over them."""
    network_, _, state = kfac_factors()
    start, given = network().train(), BATCHES[0]
    seen: dict[str, Tensor] = {}
    dense = start.model.lm_head.dense

    def watch(_: nn.Module, args: Any, output: Tensor) -> None:
        seen["a"] = torch.cat([args[0], torch.ones(len(output), 1)], 1).detach()
        output.register_hook(lambda delta: seen.update(g=delta))

    dense.register_forward_hook(watch)
    MaskedLanguageModel(start).loss(given).backward()
    terms = len(seen["g"])
    found = state[network_.model.lm_head.dense.weight]
    torch.testing.assert_close(found["A"][0][0], seen["a"].T @ seen["a"] / terms)
    torch.testing.assert_close(found["G"][0][0], terms * seen["g"].T @ seen["g"])


def test_kfac_draws_its_labels_from_the_model():
    network_, _, sampled = kfac_factors(OPTIMIZERS["kfac, sampled"])
    other, _, empirical = kfac_factors()
    drawn, given = (
        state[net.model.lm_head.dense.weight]["G"][0]
        for net, state in ((network_, sampled), (other, empirical))
    )
    assert not torch.allclose(drawn, given)


def test_kfac_is_refused_on_a_compiled_network():
    """At each of its hooks compiled code would stop."""
    for name in ("kfac", "lookahead, kfac"):
        with pytest.raises(ValueError, match="take compile=False with KFAC"):
            fit(OPTIMIZERS[name], 1, compile=True)


def test_compiled_network_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    """Traced in one piece, once for all numbers of masked tokens, and not compiled for the test."""
    compiled = nn.Module.compile
    backends = []

    def counted(graph: Any, _: Any) -> Any:
        backends.append(1)
        return graph.forward

    monkeypatch.setattr(
        nn.Module, "compile", lambda self: compiled(self, backend=counted, fullgraph=True)
    )
    batches = [batch(seed) for seed in range(4)]
    module, other = task(compile=True), task()
    for each in batches:
        torch.testing.assert_close(module.loss(each), other.loss(each))
    assert 1 <= len(backends) <= 2
    assert list(module.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_curvature_is_weighted_by_tokens(tmp_path: Path, checkpointing: bool):
    """Seen in the mean loss that is kept with the spectrum."""
    callback = HessianSpectrum(steps=3, batches=2, top=1)
    trainer = Trainer(max_steps=1, callbacks=[callback], default_root_dir=tmp_path, **QUIET)
    module = task(gradient_checkpointing=checkpointing)
    batches = [batch(0), batch(1, share=0.9)]
    trainer.fit(module, loader(*batches))
    (found,) = tmp_path.rglob("spectrum.npz")
    with np.load(found) as content:
        assert content["loss"] == pytest.approx(losses(module, batches).mean().item(), rel=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_rank(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order
