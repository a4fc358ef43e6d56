"""Roberta: transformers' numbers from a part of its work, one tensor at both ends, safe loading."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, RobertaForMaskedLM, RobertaModel

from lightning_opt.models import Roberta

SIZES = {"vocab_size": 50, "layers": 3, "width": 16, "heads": 4, "max_length": 12}
POSITIONS = torch.tensor([2, 3, 11, 20])


def small(**options) -> Roberta:
    torch.manual_seed(0)
    network = Roberta(**{**SIZES, **options}).double()
    with torch.no_grad():  # at its own initialization every token is as likely as the others
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def ids() -> Tensor:
    return torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(1))


def mask() -> Tensor:
    return (torch.arange(12) < torch.tensor([[12], [9]])).long()


def tied(network: Roberta) -> bool:
    model = network.model
    head, table = model.lm_head.decoder, model.roberta.embeddings.word_embeddings
    return head.weight is table.weight and head.bias is model.lm_head.bias


def test_parameter_counts():
    """82M of the defaults; the table of the words is counted once."""
    with torch.device("meta"):
        assert sum(p.numel() for p in Roberta().parameters()) == 82_170_201
    table = 50 * 16 + (12 + 2) * 16 + 16 + 2 * 16
    layer = 4 * (16 * 16 + 16) + 2 * (16 * 64) + 64 + 16 + 4 * 16
    head = 16 * 16 + 16 + 2 * 16 + 50
    assert sum(p.numel() for p in small().parameters()) == table + 3 * layer + head


@pytest.mark.parametrize("attention_mask", [None, mask()])
def test_logits_are_those_of_transformers(attention_mask: Tensor | None):
    network = small().eval()
    theirs = network.model(input_ids=ids(), attention_mask=attention_mask).logits
    ours = network(ids(), attention_mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    some = network(ids(), attention_mask, POSITIONS)
    torch.testing.assert_close(some, ours.flatten(0, 1)[POSITIONS], rtol=0, atol=1e-13)


def test_attention_is_fused(tmp_path: Path):
    """Also where a checkpoint asks for another."""
    network = small()
    assert network.model.config._attn_implementation == "sdpa"
    network.model.set_attn_implementation("eager")
    network.model.save_pretrained(tmp_path)
    loaded = Roberta.from_pretrained(str(tmp_path))
    assert loaded.model.config._attn_implementation == "sdpa"


def test_masked_tokens_are_not_looked_at():
    network = small().eval()
    changed = ids()
    changed[1, 9:] = 7
    before, after = (network(each, mask()) for each in (ids(), changed))
    assert torch.equal(before[1, :9], after[1, :9])
    assert not torch.equal(network(ids())[1, :9], before[1, :9])


def test_a_sequence_of_nothing_but_padding_spoils_nothing():
    network = small().eval()
    nothing = mask() * torch.tensor([[1], [0]])
    network(ids(), nothing, POSITIONS[:3]).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_only_the_positions_asked_for_are_projected():
    rows = []
    network = small()
    last = network.model.roberta.encoder.layer[-1]
    for module in (last.attention.output, last.intermediate, last.output, network.model.lm_head):
        module.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    network(ids(), positions=POSITIONS)
    assert rows == [4, 4, 4, 4]


@pytest.mark.parametrize("place", ["self", "output", "feed_forward", "embeddings", "first"])
def test_dropout_is_everywhere_that_transformers_has_it(place: str):
    network = small(dropout=0.0).train()
    roberta = network.model.roberta
    first, last = roberta.encoder.layer[0], roberta.encoder.layer[-1]
    module = {
        "self": last.attention.self,
        "output": last.attention.output,
        "feed_forward": last.output,
        "embeddings": roberta.embeddings,
        "first": first.output,
    }[place]
    module.dropout.p = 0.5
    module.dropout_prob = 0.5  # what attention reads before transformers 5
    one, other = (network(ids(), positions=POSITIONS) for _ in range(2))
    assert not torch.equal(one, other)
    network.eval()
    assert torch.equal(*(network(ids(), positions=POSITIONS) for _ in range(2)))


def test_dropout_probability_reaches_every_layer():
    found = [m.p for m in small(dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert found == [0.3] * (1 + 3 * 3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(dropout: float):
    def gradients(checkpointing: bool) -> list[Tensor]:
        network = small(dropout=dropout, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(3)
        loss = network(ids(), mask(), POSITIONS).square().mean()
        return list(torch.autograd.grad(loss, list(network.parameters())))

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_checkpointing_computes_layers_again_and_differentiates_twice():
    network = small(dropout=0.0, gradient_checkpointing=True).train()
    calls = []
    for layer in network.model.roberta.encoder.layer:
        layer.intermediate.register_forward_hook(lambda *_: calls.append(1))
    weight = network.model.lm_head.dense.weight
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = network(ids(), positions=POSITIONS).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        gradient.square().sum().backward()
    assert len(calls) > 3
    assert weight.grad.abs().sum() > 0


def trained(network: Roberta) -> Roberta:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(ids(), positions=POSITIONS).square().mean().backward()
    optimizer.step()
    return network


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network,
        copy.deepcopy,
        trained,
        lambda network: network.float(),
        lambda network: (small().load_state_dict(network.state_dict()), network)[1],
    ],
    ids=["new", "copied", "trained", "cast", "loaded"],
)
def test_weights_stay_tied(change: Callable[[Roberta], Roberta]):
    network = change(small())
    assert tied(network)
    names = [name for name, _ in network.named_parameters()]
    assert sum("word_embeddings" in name or "decoder" in name for name in names) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_checkpoint_gives_the_same_network(folder: Path):
    torch.manual_seed(1)
    loaded = Roberta.from_pretrained(str(folder), gradient_checkpointing=True)
    assert isinstance(loaded, Roberta) and tied(loaded)
    assert all(module.training for module in loaded.modules())
    assert (loaded.vocab_size, loaded.max_length, loaded.pad_token_id) == (50, 12, 1)
    assert loaded.gradient_checkpointing
    loaded, network = loaded.eval(), small().float().eval()
    assert torch.equal(loaded(ids(), mask(), POSITIONS), network(ids(), mask(), POSITIONS))


def test_a_checkpoint_in_half_precision_is_trained_in_float32(tmp_path: Path):
    small().model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = Roberta.from_pretrained(str(tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_transformers_reads_what_is_saved(folder: Path):
    theirs = RobertaForMaskedLM.from_pretrained(folder, dtype=torch.float64).eval()
    logits = small().eval()(ids())
    torch.testing.assert_close(theirs(input_ids=ids()).logits, logits, rtol=0, atol=1e-13)


def test_pickled_weights_are_not_read(folder: Path):
    model = RobertaForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="by safetensors"):
        Roberta.from_pretrained(str(folder))


def test_another_network_is_refused(tmp_path: Path):
    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of the kind 'bert', not 'roberta'"):
        Roberta.from_pretrained(str(tmp_path))


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL)
    RobertaModel(small().model.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of .* head: lm_head"):
        Roberta.from_pretrained(str(tmp_path))


def test_missing_checkpoints_say_where_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/none"):
        Roberta.from_pretrained(f"{tmp_path}/none")
    with pytest.raises(ValueError, match=r"No RoBERTa could be loaded from .*model.safetensors"):
        small().model.config.save_pretrained(tmp_path / "empty")
        Roberta.from_pretrained(str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody/nothing'.*(?s:.)*hf download nobody/nothing"):
        Roberta.from_pretrained("nobody/nothing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab_size": 0}, "vocab_size >= 1, got 0"),
        ({"layers": 0}, "layers >= 1, got 0"),
        ({"width": 0}, "width >= 1, got 0"),
        ({"heads": 0}, "heads >= 1, got 0"),
        ({"max_length": 0}, "max_length >= 1, got 0"),
        ({"heads": 3}, "heads divide: 16 / 3"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        ({"pad_token_id": 50}, "below vocab_size=50, got 50"),
    ],
)
def test_sizes_out_of_range_are_named(options, words: str):
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_the_longest_sequence_is_max_length():
    network = small()
    network(torch.full((1, 12), 7))
    with pytest.raises(ValueError, match=r"13 tokens.*max_length=13.*block_size of 12"):
        network(torch.full((1, 13), 7))
