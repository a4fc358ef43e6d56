"""Hessian-vector products against matrices that are known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lightning_opt.geometry import hessian
from oracles.curvature import full_hessian, rotated


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 4),
    ).double()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(13, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (13,), generator=generator)


def dense(operator) -> Tensor:
    identity = torch.eye(operator.shape[0], dtype=operator.dtype)
    return torch.stack([operator @ column for column in identity], dim=1)


def test_a_rotated_quadratic_has_its_matrix_as_its_hessian():
    matrix = rotated(torch.tensor([-2.0, 0.0, 1.0, 5.0]))
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(dense(hessian(lambda _: x @ matrix @ x / 2, [x], [None])), matrix)


@pytest.mark.parametrize("method", ["kept", "reverse", "forward"])
@pytest.mark.parametrize("training", [False, True])
def test_a_convolutional_network_with_batchnorm_agrees_with_its_full_hessian(
    network, data, training, method
):
    """Forward mode too, through BatchNorm in training mode, where torch.func cannot do it."""
    network.train(training)
    x, y = data
    exact = full_hessian(network, lambda net: F.cross_entropy(net(x), y))
    H = hessian(
        lambda b: F.cross_entropy(network(b[0]), b[1]),
        network.parameters(),
        [data],
        method=method,
    )
    assert H.shape == exact.shape
    torch.testing.assert_close(dense(H), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["kept", "reverse", "forward"])
def test_a_transformer_agrees_with_its_full_hessian(method):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        exact = full_hessian(layer, lambda net: net(x).pow(3).mean())
    H = hessian(lambda b: layer(b).pow(3).mean(), layer.parameters(), [x], method=method)
    torch.testing.assert_close(dense(H), exact, rtol=1e-9, atol=1e-12)


def test_softmax_regression_has_a_kronecker_product_as_its_hessian():
    """Of one example: (diag p − p pᵀ) ⊗ x xᵀ, whatever its label (Böhning 1992)."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (6,), generator=generator)
    exact = torch.zeros(12, 12, dtype=torch.float64)
    for row in x:
        p = torch.softmax(W.detach() @ row, dim=0)
        exact += torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(row, row)) / 6
    H = hessian(lambda _: F.cross_entropy(x @ W.T, y), [W], [None])
    torch.testing.assert_close(dense(H), exact, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaling_the_loss_scales_the_product(network, data, scale):
    network.eval()
    x, y = data
    v = torch.randn(sum(p.numel() for p in network.parameters()), dtype=torch.float64)

    def product(factor: float) -> Tensor:
        return (
            hessian(lambda _: factor * F.cross_entropy(network(x), y), network.parameters(), [None])
            @ v
        )

    torch.testing.assert_close(product(scale), scale * product(1.0), rtol=1e-12, atol=0)


def test_uneven_batches_are_weighted_by_their_terms(network, data):
    """Weighting the batches equally would be off by the ratio of their sizes."""
    network.eval()
    x, y = data
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    exact = full_hessian(network, lambda net: F.cross_entropy(net(x), y))
    H = hessian(
        lambda b: (F.cross_entropy(network(b[0]), b[1]), len(b[1])), network.parameters(), batches
    )
    torch.testing.assert_close(dense(H), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["kept", "reverse", "forward"])
def test_a_batch_without_terms_counts_for_nothing(method):
    """The mean over no masked token is NaN; it must not spread."""
    x = torch.ones(2, requires_grad=True)

    def loss(terms: int) -> tuple[Tensor, int]:
        return x.square().sum() / terms * terms, terms

    H = hessian(loss, [x], [3, 0], method=method)
    torch.testing.assert_close(dense(H), 2 * torch.eye(2))


def test_lists_of_tensors_go_in_and_come_out(network, data):
    network.eval()
    params = list(network.parameters())
    H = hessian(lambda b: F.cross_entropy(network(b[0]), b[1]), params, [data])
    vectors = [torch.randn_like(p) for p in params]
    products = H @ vectors
    assert [p.shape for p in products] == [p.shape for p in params]
    flat = H @ torch.cat([v.reshape(-1) for v in vectors])
    torch.testing.assert_close(torch.cat([p.reshape(-1) for p in products]), flat)


def test_gradients_are_not_touched():
    x = torch.ones(2, requires_grad=True)
    x.grad = torch.tensor([7.0, 8.0])
    _ = hessian(lambda _: x.pow(3).sum(), [x], [None]) @ torch.ones(2)
    assert x.grad.tolist() == [7.0, 8.0]


@pytest.mark.parametrize("method", ["kept", "reverse", "forward"])
def test_unused_and_linear_parameters_have_zero_rows(method):
    x, unused, linear = (torch.ones(1, requires_grad=True) for _ in range(3))
    H = hessian(lambda _: (x**2 + 3 * linear).sum(), [x, unused, linear], [None], method=method)
    assert dense(H).diagonal().tolist() == [2.0, 0.0, 0.0]
    linear_only = hessian(lambda _: 3 * linear.sum(), [linear], [None], method=method)
    assert (linear_only @ torch.ones(1)).tolist() == [0.0]


@pytest.mark.parametrize("method", ["kept", "reverse", "forward"])
def test_fused_attention_and_compiled_functions_work(method):
    """Neither has a double backward of its own."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    x = torch.randn(2, 4, 8)
    compiled = torch.compile(layer, backend="aot_eager")
    v = torch.randn(sum(p.numel() for p in layer.parameters()))
    plain = hessian(lambda b: layer(b).pow(3).mean(), layer.parameters(), [x]) @ v
    assert plain.norm() > 0
    torch.testing.assert_close(
        hessian(lambda b: compiled(b).pow(3).mean(), layer.parameters(), [x], method=method) @ v,
        plain,
    )


def test_the_callers_grad_mode_and_autocast_do_not_matter():
    layer = nn.Linear(3, 1)
    x = torch.randn(5, 3)
    H = hessian(lambda b: layer(b).pow(2).mean(), layer.parameters(), [x], method="reverse")
    expected = H @ torch.ones(4)
    v = torch.ones(4)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(H @ v, expected)
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")


def test_half_precision_parameters_give_float32_products():
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    product = hessian(lambda _: x.square().sum(), [x], [None]) @ torch.ones(2)
    assert product.dtype == torch.float32
    assert product.tolist() == [2.0, 2.0]


X = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "params", "batches", "message"),
    [
        (None, [], [None], "params is empty"),
        (None, X, [None], "params is one tensor"),
        (None, [X, X], [None], "same tensor twice"),
        (None, [torch.ones(2)], [None], "does not require a gradient"),
        (None, [torch.ones(2, dtype=torch.long)], [None], "torch.int64"),
        (None, [X], [], "batches is empty"),
        (lambda _: X**2, [X], [None], r"shape \(2,\)"),
        (lambda _: 3.0, [X], [None], "returned float"),
        (lambda _: X.detach().sum(), [X], [None], "no graph"),
        (lambda _: (X.sum(), -1), [X], [None], "number of terms"),
        (lambda _: (X.sum(), 0), [X], [None], "No batch has any term"),
    ],
)
def test_bad_input_is_named(loss, params, batches, message):
    with pytest.raises((TypeError, ValueError), match=message):
        _ = hessian(loss, params, batches) @ torch.ones(2)


def test_a_vector_of_the_wrong_shape_is_named():
    H = hessian(lambda _: X.square().sum(), [X], [None])
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        _ = H @ torch.ones(3)
    with pytest.raises(ValueError, match=r"v\[0\] has shape \(1,\)"):
        _ = H @ [torch.ones(1)]


def test_reentrant_checkpointing_is_answered_with_what_to_do():
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)

    def product(reentrant: bool) -> Tensor:
        def loss(_: object) -> Tensor:
            hidden = checkpoint(lambda t: layer(t).tanh(), layer(x), use_reentrant=reentrant)
            return layer(hidden).square().sum()

        return hessian(loss, layer.parameters(), [None], method="reverse") @ torch.ones(6)

    assert product(False).abs().sum() > 0
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        product(True)


def test_inference_tensors_are_answered_with_what_to_do():
    with torch.inference_mode():
        x = torch.ones(1, 2)
    layer = nn.Linear(2, 1)
    with pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\)"):
        _ = hessian(lambda _: layer(x).square().sum(), layer.parameters(), [None]) @ torch.ones(3)
    with torch.inference_mode():
        layer = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"torch\.inference_mode\(\)"):
        hessian(lambda _: layer(torch.ones(2)).sum(), layer.parameters(), [None])


def test_modes_are_restored_after_an_exception():
    x = torch.ones(2, requires_grad=True)

    def boom(_: object) -> Tensor:
        raise RuntimeError("boom")

    for method in ("kept", "reverse", "forward"):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            with pytest.raises(RuntimeError, match="boom"):
                _ = hessian(boom, [x], [None], method=method) @ torch.ones(2)
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert forward_ad._current_level == -1
        assert x.tolist() == [1.0, 1.0]
    assert torch.backends.cuda.flash_sdp_enabled()
