"""Lookahead: when it synchronizes, what it shares with its base, and its two modes."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, Optimizer

from lightning_opt.optimizers import Lookahead


def counting(k: int = 5, alpha: float = 0.5) -> tuple[nn.Parameter, Lookahead]:
    """A scalar at 0 that every base step moves up by 1."""
    theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
    theta.grad = torch.tensor(-1.0, dtype=torch.float64)
    return theta, Lookahead([theta], partial(SGD, lr=1.0), k=k, alpha=alpha)


def values(theta: Tensor, optimizer: Lookahead, steps: int) -> list[float]:
    visited = []
    for _ in range(steps):
        optimizer.step()
        visited.append(theta.item())
    return visited


def test_timing() -> None:
    """Peers synchronize one step late, or skip the first time."""
    theta, optimizer = counting()
    assert values(theta, optimizer, 10) == [1, 2, 3, 4, 2.5, 3.5, 4.5, 5.5, 6.5, 5]


def test_slow_weights_start_where_the_first_step_does() -> None:
    """Weights that are loaded after construction count."""
    theta, optimizer = counting(k=2)
    theta.data.fill_(10.0)
    assert values(theta, optimizer, 2) == [11, 11]


def test_each_group_counts_its_own_steps() -> None:
    """With its own k and α, also when its options are copied from another group."""
    theta, optimizer = counting(k=3)
    optimizer.step()
    other = nn.Parameter(torch.zeros((), dtype=torch.float64))
    other.grad = theta.grad
    options = {**optimizer.param_groups[0], "params": [other], "k": 2, "alpha": 0.25}
    optimizer.add_param_group(options)
    visited = []
    for _ in range(2):
        optimizer.step()
        visited.append((theta.item(), other.item()))
    assert visited == [(2, 1), (1.5, 0.5)]


def test_shares_groups_and_state_with_its_base() -> None:
    """The very same objects, whatever was done: schedulers, devices, savers see one optimizer."""

    def assert_shared(optimizer: Lookahead) -> None:
        assert optimizer.param_groups is optimizer.base.param_groups
        assert optimizer.state is optimizer.base.state

    theta, optimizer = counting()
    assert_shared(optimizer)
    optimizer.step()
    assert_shared(deepcopy(optimizer))
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    assert_shared(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert_shared(optimizer)
    assert [group["lr"] for group in optimizer.base.param_groups] == [1.0, 1.0]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [theta]})
    with pytest.raises(ValueError, match="k=0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "k": 0})
    assert len(optimizer.param_groups) == 2


def test_evaluation_mode_swaps_the_slow_weights_in_and_out() -> None:
    theta, optimizer = counting()
    values(theta, optimizer, 7)
    for _ in range(2):  # both are idempotent
        optimizer.eval()
        optimizer.eval()
        assert theta.item() == 2.5
        optimizer.train()
        optimizer.train()
        assert theta.item() == 4.5
    assert values(theta, optimizer, 3) == [5.5, 6.5, 5]


def test_evaluation_mode_before_the_first_step_changes_nothing() -> None:
    theta, optimizer = counting()
    optimizer.eval()
    assert theta.item() == 0
    optimizer.train()
    assert values(theta, optimizer, 5) == [1, 2, 3, 4, 2.5]


def test_step_in_evaluation_mode_is_refused() -> None:
    """It would move the slow weights from gradients taken there."""
    theta, optimizer = counting()
    optimizer.step()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"evaluation mode.*call optimizer\.train\(\)"):
        optimizer.step()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(RuntimeError, match="evaluation mode"):
        optimizer.step()
    assert theta.item() == 0


def test_evaluation_mode_is_saved(tmp_path: Any) -> None:
    """A checkpoint taken in it resumes from the fast weights."""
    theta, optimizer = counting()
    values(theta, optimizer, 7)
    optimizer.eval()
    torch.save([theta.detach(), optimizer.state_dict()], tmp_path / "state.pt")
    saved_theta, saved_state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved_theta.item() == 2.5

    other, resumed = counting()
    other.data.copy_(saved_theta)
    resumed.load_state_dict(saved_state)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        resumed.step()
    resumed.train()
    assert values(other, resumed, 3) == [5.5, 6.5, 5]


def test_evaluation_mode_does_not_round_slow_weights() -> None:
    """Those of a bfloat16 parameter have float32's precision, which the parameter cannot show."""
    theta = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    theta.grad = torch.full_like(theta, -1.0)
    optimizer = Lookahead([theta], partial(SGD, lr=2.0**-7), k=1, alpha=2.0**-4)
    for _ in range(8):
        optimizer.step()
        optimizer.eval()
        optimizer.train()
    # 8 × 2⁻⁷ × 2⁻⁴ = 2⁻⁸, of which bfloat16, with steps of 2⁻⁷ above 1, would have kept nothing.
    assert optimizer.state[theta]["slow"].item() > 1 + 2.0**-9


@pytest.mark.parametrize("base", [partial(LBFGS, lr=0.5), partial(Adagrad, lr=0.5)])
def test_bases_with_a_will_of_their_own(base: Any) -> None:
    """LBFGS calls the closure often and keeps no state per tensor, Adagrad starts with a state."""
    theta = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    start = theta.detach().clone()
    optimizer = Lookahead([theta], base, k=1, alpha=0.5)
    reference = nn.Parameter(start.clone())
    plain = base([reference])

    def closure_of(weights: Tensor, owner: Optimizer) -> Any:
        def closure() -> Tensor:
            owner.zero_grad()
            loss = weights.square().sum() + weights[0] * weights[1]
            loss.backward()
            return loss

        return closure

    loss = optimizer.step(closure_of(theta, optimizer))
    expected_loss = plain.step(closure_of(reference, plain))
    assert loss == expected_loss
    torch.testing.assert_close(theta.detach(), start + 0.5 * (reference.detach() - start))


def test_closure_has_gradients_whatever_the_base_does() -> None:
    """A base of somebody else may leave the gradient mode as it finds it."""

    class Plain(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> Any:
            loss = closure()
            for p in self.param_groups[0]["params"]:
                p.data.sub_(p.grad)
            return loss

    theta = nn.Parameter(torch.tensor(4.0))

    def closure() -> Tensor:
        loss = theta.square() / 2
        loss.backward()
        return loss

    assert Lookahead([theta], Plain, k=1).step(closure) == 8
    assert theta.item() == 2


def test_what_is_not_a_base_is_refused() -> None:
    """With the way to write it; peers take an optimizer instance."""
    theta = nn.Parameter(torch.zeros(2))
    for arguments in [(Adam([theta]),), ([theta], Adam([theta]))]:
        with pytest.raises(TypeError, match=r"Lookahead\(params, base=functools\.partial"):
            Lookahead(*arguments)
    with pytest.raises(TypeError, match="not an Optimizer"):
        Lookahead([theta], base=lambda params: None)  # type: ignore[arg-type, return-value]


SGD_IN_YAML = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}


# Newer releases of jsonargparse have deprecated this name; older ones have no other.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options, kind, lr, k",
    [({}, Adam, 1e-3, 5), ({"base": SGD_IN_YAML, "k": 7}, SGD, 0.3, 7)],
    ids=["default", "SGD"],
)
def test_base_comes_from_yaml(options: dict[str, Any], kind: type, lr: float, k: int) -> None:
    """As {class_path, init_args}, with LightningCLI's parser, and back to YAML."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(Optimizer, "optimizer", skip={"params"}, instantiate=False)
    config = {"class_path": "lightning_opt.optimizers.Lookahead", "init_args": options}
    parsed = parser.parse_object({"optimizer": config})
    for namespace in (parsed, parser.parse_string(parser.dump(parsed))):
        arguments = parser.instantiate_classes(namespace).optimizer.init_args
        optimizer = Lookahead([nn.Parameter(torch.zeros(2))], **vars(arguments))
        assert type(optimizer.base) is kind
        group = optimizer.param_groups[0]
        assert (group["lr"], group["k"], group["alpha"]) == (lr, k, 0.5)
