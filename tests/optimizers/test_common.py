"""What every optimizer does, PyTorch's included. A new one joins by a line in ``OPTIMIZERS``.

Run as a script it is the other process of some tests: see the functions with ``_elsewhere``.
"""

from __future__ import annotations

import os
import pickle
import signal
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

from lightning_opt.optimizers import KFAC, SVRG, Lookahead, Ranger, Shampoo, Yogi

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
    "SVRG": partial(SVRG, momentum=0.5),
    "KFAC": partial(KFAC, factor_every=2, inverse_every=3),
    "Shampoo": partial(Shampoo, root_every=3),
    "LookaheadSGD": over(partial(SGD, momentum=0.9)),
    "LookaheadAdam": over(Adam),
    "LookaheadYogi": over(Yogi),
}
# Ours keep at least float32 in their state, and refuse what they have no rule for.
OURS = ("Yogi", "Ranger", "SVRG", "KFAC", "Shampoo")
LOOKAHEADS = ("Ranger", "LookaheadSGD", "LookaheadAdam", "LookaheadYogi")

every = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
each_of_ours = pytest.mark.parametrize("build", [OPTIMIZERS[name] for name in OURS], ids=OURS)
each_lookahead = pytest.mark.parametrize(
    "build", [OPTIMIZERS[name] for name in LOOKAHEADS], ids=LOOKAHEADS
)


class Net(nn.Module):
    """A convolution kernel, a matrix, a vector, and the loss of a small regression."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.convolution = nn.Conv2d(1, 2, 2, bias=False, dtype=dtype)
        self.linear = nn.Linear(8, 3, dtype=dtype)
        for parameter in self.parameters():
            parameter.data = draw(*parameter.shape)
        self.x, self.y = draw(6, 1, 3, 3), draw(6, 3)

    @property
    def kernel(self) -> nn.Parameter:
        return self.convolution.weight

    @property
    def matrix(self) -> nn.Parameter:
        return self.linear.weight

    @property
    def vector(self) -> nn.Parameter:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convolution(x).flatten(1))

    def loss(self, rows: slice = slice(None), network: nn.Module | None = None) -> Tensor:
        """On some of the six examples, through the module around this one if there is any."""
        prediction = (network or self)(self.x[rows])
        return (prediction - self.y[rows]).square().mean()

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named_parameters()}


def take_step(optimizer: Optimizer, model: nn.Module, closure: Callable[[], Any]) -> Any:
    """A step as the method wants it: knowing the model, after a snapshot, with a closure.

    ``closure`` leaves gradients in the parameters and returns the loss, which is returned.
    """
    if hasattr(optimizer, "attach"):
        optimizer.attach(model)
    if isinstance(optimizer, SVRG):
        if not optimizer.has_snapshot:
            optimizer.snapshot([closure])
        return optimizer.step(closure)
    loss = closure()
    optimizer.step()
    return loss


def step_with(optimizer: Optimizer, gradients: dict[nn.Parameter, Tensor | None]) -> None:
    """A step with given gradients."""

    def closure() -> float:
        for parameter, gradient in gradients.items():
            parameter.grad = None if gradient is None else gradient.clone()
        return 0.0

    take_step(optimizer, nn.ParameterList(gradients), closure)


def train(
    net: Net,
    optimizer: Optimizer,
    steps: int,
    sign: float = 1.0,
    rows: slice = slice(None),
    network: nn.Module | None = None,
) -> list[float]:
    """Steps on the net's loss, which is returned from before each step."""

    def closure() -> float:
        optimizer.zero_grad()
        loss = net.loss(rows, network)
        (sign * loss).backward()
        return loss.item()

    return [take_step(optimizer, net, closure) for _ in range(steps)]


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

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (scales * x.square()).sum()
        loss.backward()
        return loss

    start = (scales * x.detach().square()).sum()
    for step in range(10):
        before = x.detach().clone()
        take_step(optimizer, nn.ParameterList([x]), closure)
        if step == 0:
            assert torch.equal((x.detach() - before).sign(), -before.sign())
        assert (scales * x.detach().square()).sum() < start


@every
def test_missing_and_zero_gradients_move_nothing(build: Build) -> None:
    missing, zero = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = build([missing, zero], lr=0.1)
    for _ in range(4):
        step_with(optimizer, {missing: None, zero: torch.zeros(2)})
    assert torch.equal(missing, torch.ones(2)) and torch.equal(zero, torch.ones(2))
    assert not optimizer.state.get(missing)


@every
def test_gradient_that_comes_late(build: Build) -> None:
    """A parameter without a gradient is not an error, and its own steps count from its first."""
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = build([early, late], lr=0.1)
    for _ in range(3):
        step_with(optimizer, {early: torch.ones(2), late: None})
    moved = early.detach().clone()
    for _ in range(3):
        step_with(optimizer, {early: None, late: torch.ones(2)})
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
    step_with(optimizer, {scalar: torch.tensor(2.0, dtype=torch.float64)})
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
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.1, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.9),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


def test_schedulers_are_all_that_torch_has() -> None:
    names = {
        name
        for name, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler)
    }
    assert names - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys() - {"SWALR"}


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
    assert torch.equal(net.kernel, start["convolution.weight"])
    assert not torch.equal(net.vector, start["linear.bias"])

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
    together = Net()
    # What KFAC clips is the step of all groups.
    extra = {"kl_clip": None} if build is OPTIMIZERS["KFAC"] else {}
    train(
        together,
        build(
            [
                {"params": [together.matrix, together.vector], "lr": 0.03},
                {"params": [together.kernel], "weight_decay": 0.5},
            ],
            lr=0.01,
            **extra,
        ),
        1,
    )
    train(lone := Net(), build([lone.matrix, lone.vector], lr=0.03, **extra), 1)
    train(other := Net(), build([other.kernel], lr=0.01, weight_decay=0.5, **extra), 1)
    assert torch.equal(together.matrix, lone.matrix) and torch.equal(together.vector, lone.vector)
    assert torch.equal(together.kernel, other.kernel)


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
    computed: list[tuple[nn.Parameter, Tensor | None, Tensor]] = []

    def closure() -> None:
        optimizer.zero_grad()
        net.loss().backward()
        computed.clear()
        for p in net.parameters():
            assert p.grad is not None
            computed.append((p, p.grad, p.grad.clone()))

    for _ in range(4):
        take_step(optimizer, net, closure)
        for p, gradient, value in computed:
            assert p.grad is gradient
            assert torch.equal(value, gradient)


@every
def test_closure(build: Build) -> None:
    """It runs with gradients, also when called without, and its loss is returned; once, by all
    but SVRG."""
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
    if hasattr(optimizer, "attach"):
        optimizer.attach(with_closure)
    if isinstance(optimizer, SVRG):
        optimizer.snapshot([closure])
    for _ in range(4):
        calls.clear()
        with torch.no_grad():
            returned.append(optimizer.step(closure))
        assert len(calls) == (2 if isinstance(optimizer, SVRG) else 1)
    assert returned == train(without, build(without.parameters(), lr=0.01), 4)
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
    """The precision of what the state holds, but for SVRG's copy of the parameters."""
    return {
        name: tensor.dtype
        for state in optimizer.state.values()
        for name, value in state.items()
        for tensor in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and name != "snapshot"
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


def run_elsewhere(function: str, *arguments: object) -> None:
    command = [sys.executable, __file__, function, *map(str, arguments)]
    subprocess.run(command, check=True, timeout=300)


def resume_elsewhere(folder: Path) -> None:
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
    run_elsewhere("resume_elsewhere", folder)
    return folder, uninterrupted


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_in_a_new_process_is_bitwise(
    name: str, resumed_elsewhere: tuple[Path, dict[str, Any]]
) -> None:
    """Peers key their state by live tensors, and cannot."""
    folder, uninterrupted = resumed_elsewhere
    assert_same(torch.load(folder / f"{name}-resumed.pt"), uninterrupted[name])


def fit(
    build: Build,
    folder: Path,
    checkpoint: str | None = None,
    *,
    precision: Any = "32-true",
    die_after: int | None = None,
) -> dict[str, Any]:
    """The checkpoint after nine steps of a Lightning fit, which saves every fourth.

    Gradients are clipped and accumulated, except by SVRG, which refuses both.
    """
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint

    from lightning_opt.callbacks import SVRGSnapshot

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(torch.float32 if precision == "bf16-mixed" else torch.float64)
            self.losses: list[float] = []

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.net.loss()
            self.losses.append(loss.item())
            return loss

        def loss_terms(self, batch: Tensor) -> int:
            return len(self.net.x)

        def configure_optimizers(self) -> Optimizer:
            optimizer = build(self.parameters(), lr=0.01)
            if hasattr(optimizer, "attach"):
                optimizer.attach(self)
            return optimizer

    class Die(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    is_svrg = build is OPTIMIZERS["SVRG"]
    save = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=9,
        precision=precision,
        callbacks=[*([SVRGSnapshot(progress_bar=False)] if is_svrg else []), save, Die()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=None if is_svrg else 0.5,
        accumulate_grad_batches=1 if is_svrg else 2,
    )
    loader = torch.utils.data.DataLoader(torch.zeros(5 if is_svrg else 10, 1))
    task = Task()
    trainer.fit(task, loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    end: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return {**end, "losses": task.losses}


def assert_same_state(ours: Any, theirs: Any) -> None:
    """Nested containers of tensors and plain values, bit by bit."""
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same_state(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same_state(one, other)
    else:
        assert ours == theirs


quiet_lightning = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|is not resumable|exists and is not empty)"
)


@every
@quiet_lightning
def test_resume_through_lightning_is_bitwise(build: Build, tmp_path: Path) -> None:
    """From a step in the middle of an epoch, and of Lookahead's period; clipped, accumulated."""
    uninterrupted = fit(build, tmp_path)
    resumed = fit(build, tmp_path, checkpoint=str(tmp_path / "step=4.ckpt"))
    assert_same(resumed["state_dict"], uninterrupted["state_dict"])
    assert_same_state(resumed["optimizer_states"], uninterrupted["optimizer_states"])


def die_elsewhere(folder: Path) -> None:
    """Fits with each optimizer in a process that kills itself without notice, in step 6 or 7."""
    import lightning_opt.callbacks  # noqa: F401  so that the copies of this process have it

    for number, (name, build) in enumerate(OPTIMIZERS.items()):
        if (child := os.fork()) == 0:
            fit(build, folder / name, die_after=6 + number % 2)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    run_elsewhere("die_elsewhere", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@quiet_lightning
def test_killed_fit_goes_on_bitwise(name: str, killed_elsewhere: Path, tmp_path: Path) -> None:
    """From the last checkpoint that the killed process wrote."""
    (checkpoint,) = (killed_elsewhere / name).glob("*.ckpt")
    resumed = fit(OPTIMIZERS[name], killed_elsewhere / name, checkpoint=str(checkpoint))
    uninterrupted = fit(OPTIMIZERS[name], tmp_path)
    assert_same(resumed["state_dict"], uninterrupted["state_dict"])
    assert_same_state(resumed["optimizer_states"], uninterrupted["optimizer_states"])


@every
@quiet_lightning
def test_bf16_mixed(build: Build, tmp_path: Path) -> None:
    """Products in bfloat16, parameters and state in float32."""
    end = fit(build, tmp_path, precision="bf16-mixed")
    assert end["losses"][-1] < end["losses"][0]
    assert all(p.dtype == torch.float32 for p in end["state_dict"].values())
    for state in end["optimizer_states"][0]["state"].values():
        for value in state.values():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                assert not isinstance(tensor, Tensor) or tensor.dtype == torch.float32


def distribute_elsewhere(folder: Path, rank: int) -> None:
    """One of two processes, each with half of every batch, under DistributedDataParallel."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    for name, build in OPTIMIZERS.items():
        net = Net()
        network = nn.parallel.DistributedDataParallel(net)
        rows = slice(0, 3) if rank == 0 else slice(3, 6)
        train(net, build(net.parameters(), lr=0.01), 7, rows=rows, network=network)
        torch.save(net.weights(), folder / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in order


@pytest.fixture(scope="module")
def distributed_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    commands = [
        [sys.executable, __file__, "distribute_elsewhere", str(folder), str(rank)]
        for rank in range(2)
    ]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return folder


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_processes_are_one_on_all_examples(name: str, distributed_elsewhere: Path) -> None:
    """To rounding, since the mean of two halves is summed in another order; ranks bitwise."""
    net = Net()
    train(net, OPTIMIZERS[name](net.parameters(), lr=0.01), 7)
    first, second = (torch.load(distributed_elsewhere / f"{name}-{rank}.pt") for rank in range(2))
    assert_same(first, second)
    for parameter, weight in net.weights().items():
        torch.testing.assert_close(first[parameter], weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OURS)
def test_sparse_gradients_are_refused_by_name(name: str) -> None:
    """Before anything moves: a refusal must not leave half a step done."""
    dense = nn.Parameter(torch.ones(2))
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = OPTIMIZERS[name]([("dense", dense), ("table.weight", table.weight)], lr=0.1)

    def closure() -> None:
        dense.grad = torch.ones(2)
        table(torch.tensor([1, 2])).sum().backward()

    with pytest.raises(ValueError, match=rf"{name}.*sparse.*table\.weight.*\(5, 2\)"):
        take_step(optimizer, nn.ParameterList([dense, table.weight]), closure)
    assert torch.equal(dense, torch.ones(2))


@pytest.mark.parametrize("name", OURS)
def test_complex_parameters_are_refused_by_name(name: str) -> None:
    complex_weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    build = OPTIMIZERS[name]
    message = rf"{name}.*complex.*number 1.*\(2,\).*complex64"
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    function, folder, *rank = sys.argv[1:]
    globals()[function](Path(folder), *map(int, rank))
