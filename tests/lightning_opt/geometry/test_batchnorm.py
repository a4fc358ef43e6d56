"""BatchNorm's statistics along a line against what they are by hand, and left as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_opt.geometry import line, plane
from lightning_opt.geometry.batchnorm import running_statistics


def build(momentum=0.1):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Tanh(), nn.Linear(4, 2)
    ).double()
    for _ in range(3):
        network(torch.randn(8, 3, dtype=torch.float64))
    return network.eval()


@pytest.fixture
def model():
    return build()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 7)]


def loss_of(model):
    return lambda batch: (model(batch).square().mean(), len(batch))


def ends(tensors, scale=1.0):
    generator = torch.Generator().manual_seed(2)
    return [
        [
            t.detach() + scale * torch.rand(t.shape, generator=generator, dtype=t.dtype)
            for t in tensors
        ]
        for _ in range(2)
    ]


def by_hand(model, batches, state, estimate=False):
    """The loss of a copy with this state."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor, value in state:
            dict([*other.named_parameters(), *other.named_buffers()])[tensor].copy_(value)
        if estimate:
            hidden = [other[0](batch) for batch in batches]
            other[1].running_mean.copy_(sum(h.mean(0) for h in hidden) / len(hidden))
            other[1].running_var.copy_(sum(h.var(0) for h in hidden) / len(hidden))
        sums = [other(batch).square().mean() * len(batch) for batch in batches]
        return (sum(sums) / sum(map(len, batches))).item()


COEFFICIENTS = [0.0, 0.3, 1.0]


@pytest.mark.parametrize("choice", ["kept", "interpolated", "estimated"])
def test_a_line_has_the_statistics_that_it_says(model, batches, choice):
    names = [name for name, _ in model.named_parameters()]
    moving = list(model.parameters())
    if choice == "interpolated":
        names += ["1.running_mean", "1.running_var"]
        moving += running_statistics(model)
    start, end = ends(moving)
    result = line(
        *(loss_of(model), moving, batches, start, end, COEFFICIENTS), batchnorm=choice, model=model
    )
    expected = []
    for c in COEFFICIENTS:
        state = [(n, (1 - c) * a + c * b) for n, a, b in zip(names, start, end, strict=True)]
        expected.append(by_hand(model, batches, state, estimate=choice == "estimated"))
    torch.testing.assert_close(result.values.tolist(), expected, rtol=1e-12, atol=0)
    assert result.to_arrays()["batchnorm"] == choice


def test_planes_estimate_too_and_the_choices_differ(model, batches):
    params = list(model.parameters())
    directions = ends([torch.zeros_like(p) for p in params])
    values = {
        choice: plane(
            *(loss_of(model), params, batches, directions, [0.0, 1.0], [0.5]),
            batchnorm=choice,
            model=model,
        ).values[1, 0]
        for choice in ("kept", "estimated")
    }
    names = [name for name, _ in model.named_parameters()]
    state = [(n, p + a + 0.5 * b) for n, p, a, b in zip(names, params, *directions, strict=True)]
    for choice, value in values.items():
        hand = by_hand(model, batches, state, estimate=choice == "estimated")
        assert value == pytest.approx(hand, rel=1e-12)
    assert values["kept"] != pytest.approx(values["estimated"], rel=0.01)


@pytest.mark.parametrize("stop_after", [None, 1, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_everything_is_as_it_was_also_after_an_interruption(batches, momentum, stop_after):
    """The first two calls estimate, the others evaluate."""
    model = build(momentum)
    before = copy.deepcopy(model.state_dict())
    calls = []

    def loss(batch):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(model[1].training)
        return model(batch).mean()

    params = list(model.parameters())
    try:
        line(
            *(loss, params, batches, *ends(params), COEFFICIENTS),
            batchnorm="estimated",
            model=model,
        )
        assert calls == [True, True, False, False] * 3
    except KeyboardInterrupt:
        assert len(calls) == stop_after
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(layer.training for layer in model.modules())
    assert model[1].momentum == momentum


def test_statistics_that_training_mode_moves_are_put_back_where_the_model_is_known(batches):
    model = build().train()
    before = copy.deepcopy(model.state_dict())
    params = list(model.parameters())
    line(loss_of(model), params, batches, *ends(params), [0.5], model=model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_running_statistics_are_those_of_batchnorm_once():
    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(
        *(shared, nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm2d(3), shared)
    )
    found = running_statistics(model)
    assert [id(t) for t in found] == [id(shared.running_mean), id(shared.running_var)]


def test_what_does_not_fit_is_named(model, batches):
    params = list(model.parameters())
    moving = [*params, *running_statistics(model)]

    def walk(tensors, **options):
        line(loss_of(model), tensors, batches, *ends(tensors), [0.0], **options)

    with pytest.raises(ValueError, match="batchnorm is 'frozen'"):
        walk(params, batchnorm="frozen")
    for choice in ("interpolated", "estimated"):
        with pytest.raises(ValueError, match="pass model="):
            walk(params, batchnorm=choice)
    with pytest.raises(ValueError, match="running statistics among the tensors"):
        walk(params, batchnorm="interpolated", model=model)
    for choice in ("kept", "estimated"):
        with pytest.raises(ValueError, match=f"batchnorm is '{choice}'"):
            walk(moving, batchnorm=choice, model=model)
    model[1].train()
    with pytest.raises(ValueError, match="1 is in training mode"):
        walk(params, batchnorm="estimated", model=model)


def test_a_synchronized_layer_does_not_mix_points(model, batches):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    params = list(model.parameters())
    arguments = (loss_of(model), params, batches, *ends(params), [0.0])
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        line(*arguments, batchnorm="estimated", model=model, group=object())
