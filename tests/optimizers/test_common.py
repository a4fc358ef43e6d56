"""What every optimizer does, PyTorch's included. A new one joins by a line in ``OPTIMIZERS``."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RAdam, lr_scheduler

from lightning_opt.optimizers import Lookahead, Ranger, Yogi

Build = Callable[..., Optimizer]


def over(base: Build) -> Build:
    """Lookahead with the base's options; its period of 3 falls on no step of interest below."""
    return lambda params, **options: Lookahead(params, partial(base, **options), k=3)


# How each is built from parameters and the options that all know: lr, weight_decay, maximize.
OPTIMIZERS: dict[str, Build] = {
    "SGD": partial(SGD, momentum=0.9),
    "Adam": Adam,
    "AMSGrad": partial(Adam, amsgrad=True),
    "RAdam": RAdam,
    "Yogi": Yogi,
    "Ranger": partial(Ranger, k=3),
    "LookaheadSGD": over(partial(SGD, momentum=0.9)),
    "LookaheadAdam": over(Adam),
    "LookaheadYogi": over(Yogi),
}
# Ours keep at least float32 in their state, and refuse what they have no rule for.
OURS = ("Yogi", "Ranger")
LOOKAHEADS = ("Ranger", "LookaheadSGD", "LookaheadAdam", "LookaheadYogi")

every = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_of_ours = pytest.mark.parametrize("build", [OPTIMIZERS[name] for name in OURS], ids=OURS)
each_lookahead = pytest.mark.parametrize(
    "build", [OPTIMIZERS[name] for name in LOOKAHEADS], ids=LOOKAHEADS
)


class Net(nn.Module):
    """A matrix, a vector, a convolution kernel, and the loss of a small regression."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.kernel = nn.Parameter(draw(2, 1, 2, 2))
        self.matrix = nn.Parameter(draw(3, 8))
        self.vector = nn.Parameter(draw(3))
        self.x, self.y = draw(6, 1, 3, 3), draw(6, 3)

    def loss(self) -> Tensor:
        hidden = torch.conv2d(self.x, self.kernel).flatten(1)
        return (hidden @ self.matrix.T + self.vector - self.y).square().mean()

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named_parameters()}


def train(net: Net, optimizer: Optimizer, steps: int, sign: float = 1.0) -> list[float]:
    """Steps on the net's loss, which is returned from before each step."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net.loss()
        (sign * loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_different(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert not torch.equal(a[name], b[name]), name


def through_a_file(state: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """As it comes back from a checkpoint that is loaded the safe way."""
    torch.save(state, tmp_path / "state.pt")
    loaded: dict[str, Any] = torch.load(tmp_path / "state.pt", weights_only=True)
    return loaded


@every
def test_descends_from_the_first_step(build: Build) -> None:
    """A peer's Ranger climbs for its first six steps."""
    x = nn.Parameter(torch.tensor([6.0, -3.0], dtype=torch.float64))
    scales = torch.tensor([1.0, 0.1], dtype=torch.float64)
    optimizer = build([x], lr=0.01)
    start = (scales * x.detach().square()).sum()
    for step in range(10):
        optimizer.zero_grad()
        before = x.detach().clone()
        loss = (scales * x.square()).sum()
        loss.backward()
        optimizer.step()
        if step == 0:
            assert torch.equal((x.detach() - before).sign(), -before.sign())
        assert (scales * x.detach().square()).sum() < start


@every
def test_missing_and_zero_gradients_move_nothing(build: Build) -> None:
    missing, zero = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    zero.grad = torch.zeros(2)
    optimizer = build([missing, zero], lr=0.1)
    for _ in range(4):
        optimizer.step()
    assert torch.equal(missing, torch.ones(2)) and torch.equal(zero, torch.ones(2))
    assert not optimizer.state.get(missing)


@every
def test_gradient_that_comes_late(build: Build) -> None:
    """A parameter without a gradient is not an error, and its own steps count from its first."""
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = build([early, late], lr=0.1)
    early.grad = torch.ones(2)
    for _ in range(3):
        optimizer.step()
    moved = early.detach().clone()
    early.grad, late.grad = None, torch.ones(2)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(late, moved)


@every
def test_maximize_is_minimizing_the_negative(build: Build) -> None:
    up, down = Net(), Net()
    train(up, build(up.parameters(), lr=0.01, maximize=True, weight_decay=0.1), 7)
    train(down, build(down.parameters(), lr=0.01, weight_decay=0.1), 7, sign=-1.0)
    assert_same(up.weights(), down.weights())
    assert up.loss() > Net().loss()


@every
def test_tensor_learning_rate_with_an_axis_moves_a_scalar(build: Build) -> None:
    """A tensor of one element has the shape (1,) as often as (), and a scalar parameter none."""
    scalar = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = build([scalar], lr=torch.tensor([0.02], dtype=torch.float64))
    scalar.square().backward()
    optimizer.step()
    assert scalar.shape == () and scalar < 1


@every
def test_tensor_learning_rate(build: Build) -> None:
    """Same path as with a number, and changes to the tensor count."""
    with_number, with_tensor = Net(), Net()
    number = build(with_number.parameters(), lr=0.02)
    lr = torch.tensor(0.02, dtype=torch.float64)
    tensor = build(with_tensor.parameters(), lr=lr)
    train(with_number, number, 5)
    train(with_tensor, tensor, 5)
    number.param_groups[0]["lr"] = 0.01
    tensor.param_groups[0]["lr"].fill_(0.01)
    train(with_number, number, 5)
    train(with_tensor, tensor, 5)
    for name, weight in with_number.weights().items():
        torch.testing.assert_close(with_tensor.weights()[name], weight, rtol=1e-12, atol=1e-12)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.9),
}


@every
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_schedulers_act(build: Build, schedule: Callable[[Optimizer], Any]) -> None:
    """The path is that of an optimizer whose learning rate (and momentum) is set by hand."""
    scheduled, by_hand = Net(), Net()
    optimizer = build(scheduled.parameters(), lr=0.05)
    reference = build(by_hand.parameters(), lr=0.05)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(8):
        for name in ("lr", "momentum", "betas"):  # OneCycleLR moves momentum, too
            if name in optimizer.param_groups[0]:
                reference.param_groups[0][name] = optimizer.param_groups[0][name]
        rates.append(optimizer.param_groups[0]["lr"])
        loss = train(scheduled, optimizer, 1)[0]
        train(by_hand, reference, 1)
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(loss) if plateau else scheduler.step()
    assert len(set(rates)) > 1
    assert_same(scheduled.weights(), by_hand.weights())


@every
def test_group_added_in_the_middle_of_a_run(build: Build, tmp_path: Path) -> None:
    """It trains with its own options, and what is saved after it can be loaded."""
    net = Net()
    optimizer = build([net.matrix], lr=0.01)
    train(net, optimizer, 4)
    start = net.weights()
    optimizer.add_param_group({"params": [net.kernel], "lr": 0.0})
    optimizer.add_param_group({"params": net.vector})
    train(net, optimizer, 4)
    assert torch.equal(net.kernel, start["kernel"])
    assert not torch.equal(net.vector, start["vector"])

    other = Net()
    other.load_state_dict(net.state_dict())
    resumed = build([other.matrix], lr=0.5)
    resumed.add_param_group({"params": [other.kernel]})
    resumed.add_param_group({"params": [other.vector]})
    resumed.load_state_dict(through_a_file(optimizer.state_dict(), tmp_path))
    train(net, optimizer, 4)
    train(other, resumed, 4)
    assert_same(net.weights(), other.weights())


@every
def test_groups_have_their_own_options(build: Build) -> None:
    """Each group moves as under an optimizer of its own with its options."""
    together, apart = Net(), Net()
    train(
        together,
        build(
            [
                {"params": [together.matrix], "lr": 0.03},
                {"params": [together.kernel, together.vector], "weight_decay": 0.5},
            ],
            lr=0.01,
        ),
        1,
    )
    one = build([apart.matrix], lr=0.03)
    two = build([apart.kernel, apart.vector], lr=0.01, weight_decay=0.5)
    apart.loss().backward()
    one.step()
    two.step()
    assert_same(together.weights(), apart.weights())


@every
def test_named_parameters(build: Build) -> None:
    named, plain = Net(), Net()
    train(named, build(named.named_parameters(), lr=0.01), 4)
    train(plain, build(plain.parameters(), lr=0.01), 4)
    assert_same(named.weights(), plain.weights())


@every
def test_gradients_are_untouched(build: Build) -> None:
    net = Net()
    optimizer = build(net.parameters(), lr=0.01, weight_decay=0.1, maximize=True)
    net.loss().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    values = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    for _ in range(4):
        optimizer.step()
        for name, p in net.named_parameters():
            assert p.grad is gradients[name]
            assert torch.equal(values[name], gradients[name])


@every
def test_closure(build: Build) -> None:
    """It runs once, with gradients, also when called without, and its loss is returned."""
    with_closure, without = Net(), Net()
    optimizer = build(with_closure.parameters(), lr=0.01)
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = with_closure.loss()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    returned = []
    for _ in range(4):
        with torch.no_grad():
            returned.append(optimizer.step(closure))
    assert returned == calls == train(without, build(without.parameters(), lr=0.01), 4)
    assert_same(with_closure.weights(), without.weights())


@every
def test_zero_grad_and_hooks(build: Build) -> None:
    net = Net()
    optimizer = build(net.parameters(), lr=0.01)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    train(net, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after", "saved", "loading", "loaded"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@every
@pytest.mark.parametrize("copy", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("steps", [0, 4])
def test_copies_go_their_own_way(build: Build, copy: Callable[[Any], Any], steps: int) -> None:
    net = Net()
    optimizer = build(net.parameters(), lr=0.01)
    train(net, optimizer, steps)
    start = net.weights()
    other, other_optimizer = copy((net, optimizer))
    train(net, optimizer, 5)
    assert_same(other.weights(), start)
    train(other, other_optimizer, 5)
    assert_same(net.weights(), other.weights())


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precisions(build: Build, dtype: torch.dtype, tmp_path: Path) -> None:
    """Parameters keep theirs, and resume is bitwise in each."""
    net, other = Net(dtype), Net(dtype)
    optimizer = build(net.parameters(), lr=0.01)
    losses = train(net, optimizer, 4)
    assert losses[-1] < losses[0]
    assert all(p.dtype == dtype for p in net.parameters())
    other.load_state_dict(net.state_dict())
    resumed = build(other.parameters(), lr=0.01)
    resumed.load_state_dict(through_a_file(optimizer.state_dict(), tmp_path))
    train(net, optimizer, 4)
    train(other, resumed, 4)
    assert_same(net.weights(), other.weights())


def floating_state(optimizer: Optimizer) -> dict[str, torch.dtype]:
    return {
        name: value.dtype
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


@each_of_ours
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_float32_state(build: Build, dtype: torch.dtype, tmp_path: Path) -> None:
    """PyTorch's load_state_dict would cast it to the parameters' precision."""
    net, other = Net(dtype), Net(dtype)
    optimizer = build(net.parameters(), lr=0.01)
    train(net, optimizer, 4)
    assert set(floating_state(optimizer).values()) == {torch.float32}
    resumed = build(other.parameters(), lr=0.01)
    resumed.load_state_dict(through_a_file(optimizer.state_dict(), tmp_path))
    assert floating_state(resumed) == floating_state(optimizer)


@each_lookahead
def test_half_precision_has_float32_slow_weights(build: Build, tmp_path: Path) -> None:
    """Whatever the base keeps its own state in."""
    net, other = Net(torch.bfloat16), Net(torch.bfloat16)
    optimizer = build(net.parameters(), lr=0.01)
    train(net, optimizer, 4)
    resumed = build(other.parameters(), lr=0.01)
    resumed.load_state_dict(through_a_file(optimizer.state_dict(), tmp_path))
    assert floating_state(resumed) == floating_state(optimizer)
    assert floating_state(resumed)["slow"] == torch.float32


@every
def test_state_loads_into_another_precision(build: Build, tmp_path: Path) -> None:
    """A float32 checkpoint goes on in float64 and the other way round."""
    for saved, loaded in [(torch.float32, torch.float64), (torch.float64, torch.float32)]:
        net, other = Net(saved), Net(loaded)
        optimizer = build(net.parameters(), lr=0.01)
        train(net, optimizer, 4)
        resumed = build(other.parameters(), lr=0.01)
        resumed.load_state_dict(through_a_file(optimizer.state_dict(), tmp_path))
        losses = train(other, resumed, 4)
        assert losses[-1] < losses[0]


@every
def test_loads_state_from_before_an_option_existed(build: Build) -> None:
    net, other = Net(), Net()
    optimizer = build(net.parameters(), lr=0.01)
    train(net, optimizer, 2)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.pop("maximize")
    resumed = build(other.parameters(), lr=0.01)
    resumed.load_state_dict(deepcopy(state))
    train(other, resumed, 2)


def resume(folder: Path) -> None:
    """What the new process does: go on with each optimizer from its file, and save the weights."""
    for name, build in OPTIMIZERS.items():
        net = Net()
        checkpoint = torch.load(folder / f"{name}.pt", weights_only=True)
        net.load_state_dict(checkpoint["model"])
        optimizer = build(net.parameters(), lr=0.5)
        optimizer.load_state_dict(checkpoint["optimizer"])
        train(net, optimizer, 7)
        torch.save(net.weights(), folder / f"{name}-resumed.pt")


@pytest.fixture(scope="module")
def resumed_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Checkpoints of all optimizers, and where another process took each 7 steps further."""
    folder = tmp_path_factory.mktemp("resume")
    uninterrupted = {}
    for name, build in OPTIMIZERS.items():
        net = Net()
        optimizer = build(net.parameters(), lr=0.01)
        train(net, optimizer, 4)
        torch.save(
            {"model": net.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"{name}.pt"
        )
        train(net, optimizer, 7)
        uninterrupted[name] = net.weights()
    code = "import sys, runpy, pathlib; m = runpy.run_path(sys.argv[1]); "
    code += "m['resume'](pathlib.Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, __file__, str(folder)], check=True, timeout=120)
    return folder, uninterrupted


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_in_a_new_process_is_bitwise(
    name: str, resumed_elsewhere: tuple[Path, dict[str, Any]]
) -> None:
    """Peers key their state by live tensors, and cannot."""
    folder, uninterrupted = resumed_elsewhere
    assert_same(torch.load(folder / f"{name}-resumed.pt"), uninterrupted[name])


def fit(build: Build, folder: Path, steps: int, checkpoint: str | None = None) -> dict[str, Any]:
    """The checkpoint after ``steps`` steps of a Lightning fit, which saves every fourth."""
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net.loss()

        def configure_optimizers(self) -> Optimizer:
            return build(self.parameters(), lr=0.01)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
    )
    loader = torch.utils.data.DataLoader(torch.zeros(10, 1))
    trainer.fit(Task(), loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    end: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return end


@every
@pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|is not resumable|exists and is not empty)"
)
def test_resume_through_lightning_is_bitwise(build: Build, tmp_path: Path) -> None:
    """From a step in the middle of an epoch, and of Lookahead's period; clipped, accumulated."""
    uninterrupted = fit(build, tmp_path, steps=9)
    resumed = fit(build, tmp_path, steps=9, checkpoint=str(tmp_path / "step=4.ckpt"))
    assert_same(resumed["state_dict"], uninterrupted["state_dict"])
    ours, theirs = resumed["optimizer_states"][0], uninterrupted["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"]
    for key, state in theirs["state"].items():
        assert_same(ours["state"][key], state)


@each_of_ours
def test_sparse_gradients_are_refused_by_name(build: Build) -> None:
    """Before anything moves: a refusal must not leave half a step done."""
    dense = nn.Parameter(torch.ones(2))
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = build([("dense", dense), ("table.weight", table.weight)], lr=0.1)
    dense.grad = torch.ones(2)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"(Yogi|Ranger).*sparse.*table\.weight.*\(5, 2\)"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2))


@each_of_ours
def test_complex_parameters_are_refused_by_name(build: Build) -> None:
    complex_weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    message = r"(Yogi|Ranger).*complex.*number 1.*\(2,\).*complex64"
    with pytest.raises(ValueError, match=message):
        build([nn.Parameter(torch.ones(1)), complex_weight], lr=0.1)
    optimizer = build([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": [complex_weight]})
    assert len(optimizer.param_groups) == 1


def test_lookahead_takes_sparse_and_complex_if_its_base_does() -> None:
    """Its own update needs the parameters only."""
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = Lookahead(table.parameters(), partial(torch.optim.SparseAdam, lr=0.1), k=2)
    start = table.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    torch.testing.assert_close(table.weight.detach()[1:3], start[1:3] - 0.1)

    z = nn.Parameter(torch.zeros((), dtype=torch.complex128))
    optimizer = Lookahead([z], partial(SGD, lr=1.0), k=2)
    z.grad = torch.tensor(-1j, dtype=torch.complex128)
    optimizer.step()
    assert z.item() == 1j
    optimizer.step()
    assert z.item() == 1j  # half of the way to 2j


def range_cases() -> Iterable[Any]:
    nan, inf = float("nan"), float("inf")
    of_moments: list[tuple[str, Any, str]] = [
        ("lr", -0.1, "lr=-0.1"),
        ("lr", nan, "lr=nan"),
        ("lr", inf, "lr=inf"),
        ("lr", "1e-3", "lr='1e-3'"),
        ("lr", torch.tensor([0.1, 0.2]), r"lr=tensor"),
        ("betas", (1.0, 0.9), r"betas\[0\]=1.0"),
        ("betas", (0.9, -0.1), r"betas\[1\]=-0.1"),
        ("betas", 0.9, "betas=0.9"),
        ("eps", -1e-8, "eps=-1e-08"),
        ("weight_decay", -1.0, "weight_decay=-1.0"),
    ]
    of_lookahead: list[tuple[str, Any, str]] = [
        ("k", 0, "k=0"),
        ("k", 2.5, "k=2.5"),
        ("k", True, "k=True"),
        ("alpha", 1.5, "alpha=1.5"),
        ("alpha", -0.1, "alpha=-0.1"),
    ]
    of_centralization: list[tuple[str, Any, str]] = [
        ("centralize", 2, "centralize=2"),
        ("centralize", -1, "centralize=-1"),
        ("centralize", "yes", "centralize='yes'"),
    ]
    of_yogi: list[tuple[str, Any, str]] = [("initial_accumulator", -1.0, "accumulator=-1.0")]
    for build, cases in [
        (Yogi, of_moments + of_yogi),
        (Ranger, of_moments + of_lookahead + of_centralization),
        (Lookahead, of_lookahead),
    ]:
        for option, value, message in cases:
            yield pytest.param(build, option, value, message, id=f"{build.__name__}-{message}")


@pytest.mark.parametrize("build, option, value, message", list(range_cases()))
def test_ranges_name_the_argument_and_the_value(
    build: Build, option: str, value: Any, message: str
) -> None:
    """In the constructor, in a group, and in a group that is added, which is then not there."""
    matrix = nn.Parameter(torch.ones(2, 2))
    with pytest.raises((TypeError, ValueError), match=message):
        build([matrix], **{option: value})
    with pytest.raises((TypeError, ValueError), match=message):
        build([{"params": [matrix], option: value}])
    optimizer = build([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.add_param_group({"params": [matrix], option: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [matrix]})
    assert len(optimizer.param_groups) == 2
