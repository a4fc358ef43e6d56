"""KFAC's layers: what it sees of each kind, wherever and however often a weight is used.

Most of them are held by one identity. Whatever the layer, its inputs ā and the gradients δ of its
outputs give the gradient of its weight, Σ_rows δ āᵀ: a patch, a row or a use that is missing, twice
there or in the wrong place would show.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_opt.optimizers import _kfac_layers, _kfac_recorder
from lightning_opt.optimizers._kfac_layers import EmbeddingSite, Layer, Use
from lightning_opt.optimizers._kfac_recorder import Recorder
from lightning_opt.optimizers.kfac import KFAC


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Use, Tensor]]]:
    """The uses whose gradients have come, with these."""
    uses: list[tuple[Use, Tensor]] = []
    arrive = Recorder.arrive

    def remember(self: Recorder, use: Use, delta: Tensor) -> None:
        uses.append((use, delta.detach()))
        arrive(self, use, delta)

    monkeypatch.setattr(Recorder, "arrive", remember)
    yield uses


def gradient_of(layer: Layer, seen: list[tuple[Use, Tensor]]) -> Tensor:
    """Σ δ āᵀ over all uses of a layer, (maps, outputs, inputs)."""
    maps, outputs, _ = layer.shape
    total = torch.zeros(maps, outputs, layer.inputs, dtype=layer.dtype)
    for use, delta in seen:
        if use.layer is not layer:
            continue
        if isinstance(use.site, EmbeddingSite):
            one_hot = F.one_hot(use.x.reshape(-1), use.site.shape[2]).to(layer.dtype)
            if use.site.padding is not None:
                one_hot[:, use.site.padding] = 0
            of_words = delta.reshape(len(one_hot), -1).T @ one_hot
            total[..., : layer.shape[2]] += of_words if layer.transposed else of_words.T
        else:
            a, d = use.site.columns(use, delta)
            if layer.bias is not None:
                a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
            total[use.maps] += d @ a.mT
    return total


def attached(model: nn.Module, **options: Any) -> KFAC:
    """Its first step is due for everything."""
    return KFAC(model.parameters(), model, conv_examples=None, **options)


def assert_explains_the_gradient(
    model: nn.Module, optimizer: KFAC, seen: list[tuple[Use, Tensor]], layers: int
) -> None:
    """Of so many layers, and whatever else the model has."""
    assert len(optimizer._layers) == layers
    for layer in optimizer._layers:
        gradients = {p: p.grad for p in (layer.weight, layer.bias) if p is not None}
        expected = layer.matrix(gradients)  # type: ignore[arg-type]
        assert expected.abs().max() > 0, layer.name
        torch.testing.assert_close(
            gradient_of(layer, seen), expected, rtol=1e-9, atol=1e-12, msg=layer.name
        )


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scrambled(output: Tensor) -> Tensor:
    """A loss whose gradient by every element of the output is another."""
    return (output * random(*output.shape, seed=9)).mean() + output.pow(3).mean()


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(2, 3, 3), (4, 2, 7)),
    "2d": (nn.Conv2d(2, 3, 3), (4, 2, 5, 6)),
    "3d": (nn.Conv3d(2, 3, 2), (4, 2, 3, 4, 3)),
    "oblong": (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0)), (4, 2, 5, 6)),
    "unbatched": (nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (3, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (3, 4, 5, 5)),
    "dilation": (nn.Conv2d(2, 3, 3, dilation=(1, 2), padding=2), (3, 2, 5, 6)),
    "stride": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (3, 2, 8)),  # leaves the last one out
    "same": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (3, 2, 6, 6)),
    "same-even": (nn.Conv2d(2, 3, (2, 4), padding="same"), (3, 2, 6, 6)),  # more on one side
    "valid": (nn.Conv1d(2, 3, 3, padding="valid"), (3, 2, 6)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (3, 2, 5, 6)),
    "replicate": (nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 2, 3, 4, 3)),
    "circular": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (3, 2, 6)),
    "everything": (
        nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 1), (2, 1), groups=2, padding_mode="circular"),
        (3, 4, 6, 5),
    ),
}
each_convolution = pytest.mark.parametrize(
    "conv, shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys()
)
even_kernels = pytest.mark.filterwarnings("ignore:.*even kernel lengths")  # PyTorch pads a copy


@even_kernels
@each_convolution
def test_convolutions(
    conv: nn.Module, shape: tuple[int, ...], seen: list[tuple[Use, Tensor]]
) -> None:
    conv = conv.double()
    conv.zero_grad()
    optimizer = attached(conv)
    scrambled(conv(random(*shape))).backward()
    assert_explains_the_gradient(conv, optimizer, seen, layers=1)
    optimizer.detach()


@even_kernels
@each_convolution
def test_patches(conv: Any, shape: tuple[int, ...]) -> None:
    """A against patches that PyTorch's convolution shows itself, and G against its output's grad.

    An output of a kernel that is 1 at one place and 0 elsewhere is that place of the patch.
    """
    conv = conv.double()
    x = random(*shape)
    conv.zero_grad()
    optimizer = attached(conv)
    output = conv(x)
    output.retain_grad()
    scrambled(output).backward()
    optimizer.step()
    A, G = (optimizer.state[conv.weight][name][0] for name in ("A", "G"))
    optimizer.detach()
    maps, inputs = conv.groups, conv.weight[0].numel()
    patches = []
    examples = len(x) if x.ndim == conv.weight.ndim else 1
    delta = output.grad.reshape(examples, maps, conv.out_channels // maps, -1).permute(1, 2, 0, 3)
    delta = delta.flatten(2)
    torch.testing.assert_close(G, examples * delta @ delta.mT, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        bias = None if conv.bias is None else conv.bias.zero_()
        for place in range(inputs):
            conv.weight.zero_()
            conv.weight.flatten(1)[:, place] = 1
            outputs = conv(x).reshape(examples, maps, conv.out_channels // maps, -1)
            patches.append(outputs[:, :, 0].transpose(0, 1).reshape(maps, -1))
    if bias is not None:
        patches.append(torch.ones_like(patches[0]))
    columns = torch.stack(patches, 1)
    expected = columns @ columns.mT / columns.shape[2]
    torch.testing.assert_close(A, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 2, 4), (3, 2, 2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool, seen: list[tuple[Use, Tensor]]) -> None:
    model = nn.Linear(4, 3, bias=bias).double()
    optimizer = attached(model)
    scrambled(model(input=random(*shape))).backward()
    assert_explains_the_gradient(model, optimizer, seen, layers=1)


@pytest.mark.parametrize("shape", [(), (6,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("padding", [None, 1])
def test_embedding(
    shape: tuple[int, ...], padding: int | None, seen: list[tuple[Use, Tensor]]
) -> None:
    """A is the frequencies of the words; padding is no word."""
    model = nn.Embedding(5, 3, padding_idx=padding).double()
    optimizer = attached(model)
    words = torch.randint(5, shape, generator=torch.Generator().manual_seed(1))
    scrambled(model(words)).backward()
    assert_explains_the_gradient(model, optimizer, seen, layers=1)
    optimizer.step()
    counts = torch.bincount(words.reshape(-1), minlength=5).double()
    delta = seen[0][1].reshape(-1, 3)
    if padding is not None:
        counts[padding] = 0
        delta = delta[words.reshape(-1) != padding]
    state = optimizer.state[model.weight]
    torch.testing.assert_close(state["A"][0][0], counts / counts.sum())
    examples = shape[0] if shape else 1
    torch.testing.assert_close(state["G"][0][0], examples * delta.T @ delta)


class Attention(nn.Module):
    """Calls its attention in one of the ways that run through different code of PyTorch's."""

    def __init__(self, call: str, **options: Any) -> None:
        super().__init__()
        self.call = call
        self.attention = nn.MultiheadAttention(4, 2, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        attend = self.attention
        if self.call == "self":
            output, weights = attend(x, x, x)
            return output.sum() + scrambled(output) + weights.square().sum()
        if self.call == "memory":
            return scrambled(attend(x, y, y, need_weights=False)[0])
        if self.call == "masked":
            mask = torch.tensor([[False, True, False], [False, False, True], [False] * 3])
            return scrambled(attend(x, x, x, attn_mask=mask)[0])
        return scrambled(attend(query=x, key=y, value=y + 1)[0])


@pytest.mark.parametrize(
    "call, options, layers",
    [
        ("self", {}, 2),
        ("self", {"batch_first": True}, 2),
        ("self", {"bias": False}, 2),
        ("masked", {"batch_first": True}, 2),
        ("memory", {}, 2),
        ("memory", {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, 2),
        ("three", {"batch_first": True}, 2),
        ("three", {"kdim": 5, "vdim": 5}, 4),
        ("memory", {"kdim": 5, "vdim": 5, "batch_first": True}, 4),
        ("three", {"kdim": 5, "vdim": 5, "bias": False}, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("batched", [True, False])
def test_attention(
    call: str,
    options: dict[str, Any],
    layers: int,
    sharing: str,
    batched: bool,
    seen: list[tuple[Use, Tensor]],
) -> None:
    """Whose projections never go through a module's forward: peers leave them out."""
    model = Attention(call, **options).double()
    optimizer = attached(model, weight_sharing=sharing)
    x, y = random(3, 3, 4), random(3, 3, options.get("kdim", 4), seed=1)
    model(x, y).backward() if batched else model(x[0], y[0]).backward()
    if sharing == "expand":
        assert_explains_the_gradient(model, optimizer, seen, layers)
    left = {row.name for row in optimizer.coverage().rows if not row.preconditioned}
    assert left <= {"attention.bias_k", "attention.bias_v"}
    optimizer.step()
    for layer in optimizer._layers:
        assert len(optimizer.state[layer.weight]["A"][0]) == layer.shape[0]
        assert optimizer.state[layer.weight]["updates"] == 1


def test_attention_with_one_weight_for_queries_and_keys(seen: list[tuple[Use, Tensor]]) -> None:
    """Their biases are two, which then go with none of them."""
    attention = nn.MultiheadAttention(4, 2, vdim=5)
    attention.k_proj_weight = attention.q_proj_weight
    attention = attention.double()
    optimizer = attached(attention)
    scrambled(attention(random(3, 2, 4), random(3, 2, 4), random(3, 2, 5))[0]).backward()
    assert_explains_the_gradient(attention, optimizer, seen, layers=3)
    biases = {layer.name: layer.bias is not None for layer in optimizer._layers}
    assert biases == {"out_proj.weight": True, "q_proj_weight": False, "v_proj_weight": True}


@pytest.mark.parametrize("first", [True, False])
def test_attention_by_reduce(first: bool) -> None:
    """Whether examples come first or positions, what is put together are an example's positions."""
    attention = nn.MultiheadAttention(4, 2, batch_first=first).double()
    optimizer = attached(attention, weight_sharing="reduce")
    x, y, weight = random(3, 5, 4), random(3, 2, 4, seed=1), random(3, 5, 4, seed=2)
    query, key, of_output = (t if first else t.transpose(0, 1) for t in (x, y, weight))
    (attention(query, key, key)[0] * of_output).sum().backward()
    optimizer.step()

    def second_moment(each: Tensor) -> Tensor:
        return each.T @ each

    means = [F.pad(t.mean(1), (0, 1), value=1.0) for t in (x, y, y)]
    A = torch.stack([second_moment(mean) / 3 for mean in means])
    torch.testing.assert_close(optimizer.state[attention.in_proj_weight]["A"][0], A)
    G = 3 * second_moment(weight.sum(1))
    torch.testing.assert_close(optimizer.state[attention.out_proj.weight]["G"][0][0], G)


@pytest.mark.parametrize("first", [True, False])
def test_transformer_layers(first: bool, seen: list[tuple[Use, Tensor]]) -> None:
    """PyTorch's own, in training mode, with dropout."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=first)
    decoder = nn.TransformerDecoderLayer(4, 2, 6, batch_first=first)
    model = nn.ModuleList([encoder, decoder]).double()
    optimizer = attached(model)
    x = random(3, 3, 4)
    scrambled(decoder(x, encoder(x))).backward()
    assert_explains_the_gradient(model, optimizer, seen, layers=4 + 6)
    assert optimizer.coverage().share > 0.8  # all but the norms


def test_module_used_several_times(seen: list[tuple[Use, Tensor]]) -> None:
    """Rows of all uses, of different lengths too, are rows of the layer; n stays the batch."""
    model = nn.Linear(3, 3).double()
    optimizer = attached(model)
    x = random(4, 3)
    y = model(x)
    scrambled(model(torch.stack([y, x], 1))).backward()
    assert_explains_the_gradient(model, optimizer, seen, layers=1)
    optimizer.step()
    one = torch.ones(4, 1, dtype=torch.float64)
    rows = torch.cat([torch.cat([t, one], 1) for t in (x, y, x)]).detach()
    deltas = torch.cat([delta.reshape(-1, 3) for _, delta in seen])
    state = optimizer.state[model.weight]
    torch.testing.assert_close(state["A"][0][0], rows.T @ rows / 12)
    torch.testing.assert_close(state["G"][0][0], 4 * deltas.T @ deltas)


class Tied(nn.Module):
    """A language model with one weight for its words; peers keep the factors of one use."""

    def __init__(self, bias: bool, padding: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3, padding_idx=padding)
        self.head = nn.Linear(3, 5, bias=bias)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.words(words)))
        return logits


WORDS = torch.tensor([[0, 3, 1], [1, 1, 4]])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [None, 3])
def test_embedding_tied_to_a_linear_layer(
    bias: bool, padding: int | None, seen: list[tuple[Use, Tensor]]
) -> None:
    model = Tied(bias, padding).double()
    optimizer = attached(model)
    scrambled(model(WORDS)).backward()
    assert_explains_the_gradient(model, optimizer, seen, layers=1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_size", [None, 2])
def test_factors_of_a_tied_embedding(
    bias: bool, block_size: int | None, seen: list[tuple[Use, Tensor]]
) -> None:
    """Both uses' products, balanced, added factor by factor, scaled to the trace of the sum."""
    model = Tied(bias).double()
    optimizer = attached(model, block_size=block_size)
    scrambled(model(WORDS)).backward()
    optimizer.step()
    (of_words, delta_words), (of_head, delta_head) = sorted(
        seen, key=lambda pair: not isinstance(pair[0].site, EmbeddingSite)
    )
    a = of_head.x.reshape(-1, 3)
    d = delta_words.reshape(-1, 3)
    if bias:
        a, d = F.pad(a, (0, 1), value=1.0), F.pad(d, (0, 1))
    e = F.one_hot(of_words.x.reshape(-1), 5).double()
    g = delta_head.reshape(-1, 5)
    linear = a.T @ a / 6, 2 * g.T @ g
    embedding = 2 * d.T @ d, e.T @ e / 6  # the roles exchanged
    state = optimizer.state[model.head.weight]
    A, G = (torch.block_diag(*[block[0] for block in state[name]]) for name in ("A", "G"))

    def mean_trace(M: Tensor) -> Tensor:
        return M.trace() / len(M)

    total = sum(mean_trace(A) * mean_trace(G) for A, G in (linear, embedding))
    torch.testing.assert_close(mean_trace(A) * mean_trace(G), total)
    sizes = [(mean_trace(A) * mean_trace(G)).sqrt() for A, G in (linear, embedding)]
    for k, ours in enumerate((A, G)):
        parts = zip((linear, embedding), sizes, strict=True)
        expected = sum(pair[k] * size / mean_trace(pair[k]) for pair, size in parts)
        torch.testing.assert_close(ours, expected * (ours != 0) * (ours.trace() / expected.trace()))


def test_linear_layers_with_one_weight(seen: list[tuple[Use, Tensor]]) -> None:
    """As one module that is used twice; biases of their own are not the weight's."""
    together = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3)).double()
    together[2].weight = together[0].weight
    optimizer = attached(together)
    scrambled(together(random(4, 3))).backward()
    assert_explains_the_gradient(together, optimizer, seen, layers=1)
    assert len(seen) == 2
    assert optimizer._layers[0].bias is None
    assert [row.preconditioned for row in optimizer.coverage().rows] == [True, False]


def test_combining_with_a_kind_that_was_not_used() -> None:
    """On no rank: the factors are those of the other kind, balanced."""
    model = Tied(bias=True).double()
    (layer,) = attached(model)._layers
    A, G = random(4, 4) @ random(4, 4).T, random(5, 5) @ random(5, 5).T
    ours = _kfac_layers.combined(([A[None]], [G[None]]), layer.zeros(embedding=True).means(3))
    expected = torch.kron(A, G)
    torch.testing.assert_close(torch.kron(ours[0][0][0], ours[1][0][0]), expected)
    nothing = _kfac_layers.combined(
        layer.zeros(embedding=False).means(3), layer.zeros(embedding=True).means(3)
    )
    assert not nothing[0][0].isfinite().any()  # and so is not averaged


def test_bias_of_two_weights_goes_with_neither() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(4, 2)])
    model[1].bias = model[0].bias
    rows = attached(model).coverage().rows
    assert {row.name: row.preconditioned for row in rows} == {
        "0.weight": True,
        "0.bias": False,
        "1.weight": True,
    }


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    """A forward that is made again, to save memory, is not seen twice, nor is one without it."""
    factors = []
    for save_memory in (True, False):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(4, 2, batch_first=True)
        inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model = nn.ModuleList([nn.Linear(4, 4), attention, inner]).double()
        optimizer = attached(model)
        for examples in (3, 2):  # accumulated
            x = model[0](random(examples, 2, 4))

            def block(x: Tensor, attention: Any = attention, inner: Any = inner) -> Tensor:
                x = attention(x, x, x)[0]
                result: Tensor = inner(x)
                return result

            for _ in range(2):
                x = checkpoint(block, x, use_reentrant=reentrant) if save_memory else block(x)
            scrambled(x).backward()
        assert len(optimizer._recorder.passes) == 2
        optimizer.step()
        factors.append([optimizer.state[layer.weight]["G"] for layer in optimizer._layers])
        assert len(factors[-1]) == 5
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-10, atol=1e-14)


def test_only_training_with_gradients_is_seen(seen: list[tuple[Use, Tensor]]) -> None:
    """Not evaluation, not what is computed without gradients, not other weights put in."""
    model = nn.Sequential(nn.Linear(3, 3), nn.MultiheadAttention(4, 2)).double()
    linear, attention = model
    optimizer = attached(model)
    x = random(2, 2, 4)
    model.eval()
    (linear(x[..., :3]).sum() + attention(x, x, x)[0].sum()).backward()
    model.train()
    with torch.no_grad():
        linear(x[..., :3])
        attention(x, x, x)
    others = {name: p.detach().clone().requires_grad_() for name, p in linear.named_parameters()}
    torch.func.functional_call(linear, others, x[..., :3]).sum().backward()
    assert not seen and optimizer._recorder.first is None
    optimizer.step()
    rows = optimizer.coverage().rows
    assert not any(row.preconditioned for row in rows)
    assert all("not called in training mode" in row.note for row in rows)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated")  # PyTorch's own use of it
def test_functional_transforms_do_not_break() -> None:
    """Hessians are taken of training modules, and their derivatives by the input are losses."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    optimizer = attached(model)
    weights, x = dict(model.named_parameters()), random(2, 3)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, x).sum()

    torch.func.hessian(loss)(weights)
    torch.func.jvp(torch.func.grad(loss), (weights,), (weights,))
    torch.func.vmap(torch.func.jacrev(model))(x).square().sum().backward()
    assert not optimizer._recorder.moments


class Odd(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2 * self.weight)


def test_what_is_not_known_is_trained_by_sgd() -> None:
    """A peer leaves it as it was, after a warning."""
    generator = torch.Generator().manual_seed(0)
    frozen = nn.Linear(2, 2)
    frozen.weight.requires_grad_(False)
    shared = nn.ConvTranspose1d(2, 2, 1, bias=False)
    also = nn.Conv1d(2, 2, 1, bias=False)
    also.weight = shared.weight
    grouped, whole = nn.Conv1d(4, 4, 1, groups=2, bias=False), nn.Conv1d(2, 4, 1, bias=False)
    whole.weight = grouped.weight
    model = nn.ModuleDict(
        {
            "norm": nn.BatchNorm1d(3),
            "odd": Odd(2, 2, bias=False),
            "frozen": frozen,
            "frequencies": nn.Embedding(3, 2, scale_grad_by_freq=True),
            "bag": nn.EmbeddingBag(3, 2),
            "shared": shared,
            "also": also,
            "grouped": grouped,
            "whole": whole,
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, bias=False)),
        }
    )
    model["known"] = nn.Linear(2, 2)
    outside = nn.Parameter(torch.ones(2))
    optimizer = KFAC([*model.parameters(), outside], model, lr=0.5, momentum=0.0)
    coverage = optimizer.coverage()
    assert {row.name for row in coverage.rows if row.preconditioned} == {
        "known.weight",
        "known.bias",
    }
    notes = {row.name: row.note for row in coverage.rows}
    assert notes["norm.weight"] == "SGD: weight of BatchNorm1d"
    assert notes["odd.weight"] == "SGD: weight of Odd"
    assert notes["shared.weight"] == "SGD: weight of ConvTranspose1d"
    assert notes["grouped.weight"] == "SGD: shared by layers that read it differently"
    assert notes["frozen.bias"] == "SGD: bias that does not go with one preconditioned weight"
    assert coverage.rows[-1].note == "SGD: not in the model"
    before = {}
    for p in optimizer.param_groups[0]["params"]:
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=generator)
            before[p] = p.detach().clone()
    optimizer.step()
    for p, start in before.items():
        torch.testing.assert_close(p.detach(), start - 0.5 * p.grad)


def test_coverage_prints_a_table() -> None:
    model = nn.Sequential(
        nn.Embedding(6, 4),
        nn.Conv1d(4, 8, 3, groups=4, bias=False),
        nn.LayerNorm(5),
        nn.Linear(5, 2),
    )
    coverage = KFAC(model.parameters(), model, block_size=4).coverage()
    assert str(coverage).splitlines() == [
        "0.weight  (6, 4)     A 6 diagonal, G 4",
        "1.weight  (8, 1, 3)  A 3, G 2, 4 times",
        "2.weight  (5,)       SGD: weight of LayerNorm",
        "2.bias    (5,)       SGD: bias of LayerNorm",
        "3.weight  (2, 5)     A 6 in 2 blocks, G 2",
        "3.bias    (2,)       with 3.weight",
        "85.7 % of 70 parameters are preconditioned, the others trained by SGD.",
    ]
    assert coverage.total == 70 and coverage.share == 60 / 70


def test_hugging_face(seen: list[tuple[Use, Tensor]]) -> None:
    """Attention of plain linear layers, positions of one example for all, and a tied head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import, against this Python
        from transformers import BertConfig, BertModel, RobertaConfig, RobertaForMaskedLM
    sizes = {
        "vocab_size": 17,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 8,
        "pad_token_id": 1,
    }
    words = torch.tensor([[3, 4, 5, 1], [6, 7, 3, 9], [2, 2, 8, 4]])
    roberta = RobertaForMaskedLM(RobertaConfig(**sizes)).double().train()
    optimizer = attached(roberta)
    labels = words.masked_fill(words > 5, -100)
    roberta(words, attention_mask=words != 1, labels=labels).loss.backward()
    # Words, positions, types; q, k, v and three more; the head's dense layer, its output tied.
    assert_explains_the_gradient(roberta, optimizer, seen, layers=3 + 6 + 1)
    tied = next(layer for layer in optimizer._layers if "word_embeddings" in layer.name)
    assert tied.kinds == [False, True] and tied.bias is not None

    seen.clear()
    bert = BertModel(BertConfig(**sizes)).double().train()
    optimizer = attached(bert)
    scrambled(bert(words).pooler_output).backward()
    assert_explains_the_gradient(bert, optimizer, seen, layers=3 + 6 + 1)
    # The positions' embeddings have one row for all three examples, and yet n = 3 terms.
    assert {use.of.number for use, _ in seen} == {3}


def test_capture_of_attention_is_local() -> None:
    """PyTorch's functions are what they were, during and after a recorded forward."""
    attention = nn.MultiheadAttention(4, 2)
    attached(attention)
    before = F.linear, F.multi_head_attention_forward
    x = torch.ones(2, 2, 4)
    with pytest.raises(AssertionError, match="embedding dimension"):
        attention(torch.ones(2, 2, 3), x, x)
    attention(x, x, x)
    assert (F.linear, F.multi_head_attention_forward) == before
    assert torch._C._len_torch_function_stack() == 0
    assert _kfac_recorder._attention_with(F.linear) is not F.multi_head_attention_forward
