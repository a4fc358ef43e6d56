"""EvaluationWeights: who sees which weights of an averaging optimizer, and when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader

from lightning_opt.callbacks.evaluation_weights import EvaluationWeights, evaluation_weights
from lightning_opt.optimizers import Lookahead, Ranger

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|is not resumable|exists and is not empty)"
)
BATCHES = 5


class ScheduleFree(SGD):
    """The contract of schedulefree's optimizers: training mode must be asked for from the start.

    Its average x of the weights z that SGD moves is the mean of all of them.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(train_mode=False, count=0)

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        if not group["train_mode"]:
            raise RuntimeError("not in training mode")
        loss = super().step(closure)
        group["count"] += 1
        with torch.no_grad():
            for p in group["params"]:
                x = self.state[p].setdefault("x", torch.zeros_like(p))
                x.lerp_(p, 1 / group["count"])
        return loss

    @torch.no_grad()
    def _switch(self, train_mode: bool) -> None:
        group = self.param_groups[0]
        assert group["train_mode"] is not train_mode, "asked for the mode that it is in"
        group["train_mode"] = train_mode
        for p in group["params"]:
            if "x" in (state := self.state[p]):
                p_was = p.clone()
                p.copy_(state["x"])
                state["x"].copy_(p_was)

    def eval(self) -> None:
        self._switch(False)

    def train(self) -> None:
        self._switch(True)


def lookahead(params: Any) -> Lookahead:
    return Lookahead(params, partial(Adam, lr=0.05), k=3)


AVERAGING: dict[str, Callable[[Any], Optimizer]] = {
    "Lookahead": lookahead,
    "Ranger": partial(Ranger, lr=0.05, k=3),
    "ScheduleFree": partial(ScheduleFree, lr=0.05),
}
averaging = pytest.mark.parametrize("build", AVERAGING.values(), ids=AVERAGING.keys())


class Task(LightningModule):
    """A regression whose validation remembers the weights that it sees."""

    def __init__(self, build: Callable[[Any], Optimizer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)
        self.build = build
        self.validated: list[Tensor] = []
        self.trained: list[Tensor] = []

    def configure_optimizers(self) -> Optimizer:
        return self.build(self.parameters())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trained.append(self.weight)
        return (self.layer(batch) - batch[:, :2]).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.weight)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight.detach().clone()


class SameBatchTask(Task):
    """Lightning restarts a plain data loader when it resumes within an epoch: let it not matter."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(torch.ones(1, 4), batch_idx)


def loader() -> DataLoader[Tensor]:
    data = torch.randn(4 * BATCHES, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(data, batch_size=4)  # type: ignore[arg-type]


def fit(
    task: Task,
    *callbacks: Callback,
    folder: Path | None = None,
    epochs: int = 2,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=folder is not None,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def by_hand(build: Callable[[Any], Optimizer], steps: int) -> tuple[Tensor, Tensor]:
    """The weights to train and those to evaluate, after a number of steps without Lightning."""
    task = Task(build)
    optimizer: Any = task.configure_optimizers()
    if not optimizer.param_groups[0]["train_mode"]:
        optimizer.train()
    batches = list(loader())
    for step in range(steps):
        optimizer.zero_grad()
        task.training_step(batches[step % BATCHES], 0).backward()
        optimizer.step()
    fast = task.weight
    optimizer.eval()
    return fast, task.weight


class SavesAt(Callback):
    """Saves a checkpoint at one of the moments at which Lightning's own callbacks do."""

    def __init__(self, path: Path, hook: str, weights_only: bool = False) -> None:
        self.path, self.weights_only = path, weights_only
        setattr(self, hook, self._save)

    def _save(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2 * BATCHES - 1 or not self.path.exists():
            trainer.save_checkpoint(self.path, weights_only=self.weights_only)


@averaging
def test_validation_sees_evaluation_weights_and_training_goes_on(build: Any) -> None:
    """The sanity check too, which sees the initial ones; training is as if nothing had been."""
    task = Task(build)
    fit(task, EvaluationWeights(), val_check_interval=2)
    assert torch.equal(task.validated[0], Task(build).weight)
    sanity, first, *rest = task.validated[::BATCHES][:1] + task.validated[2::BATCHES]
    assert torch.equal(sanity, task.trained[0])
    for validated, step in zip([first, *rest], (2, 4, 7, 9), strict=True):
        assert torch.equal(validated, by_hand(build, step)[1])
    for step, trained in enumerate(task.trained):
        torch.testing.assert_close(trained, by_hand(build, step)[0], rtol=0, atol=0)


@averaging
def test_fit_leaves_the_evaluation_weights(build: Any) -> None:
    """And the optimizer in evaluation mode, which a second fit takes up from."""
    task = Task(build)
    trainer = fit(task, EvaluationWeights())
    assert torch.equal(task.weight, by_hand(build, 2 * BATCHES)[1])
    assert trainer.optimizers[0].param_groups[0]["train_mode"] is False
    trainer.validate(task, loader(), verbose=False)
    assert torch.equal(task.validated[-1], task.weight)
    assert trainer.optimizers[0].param_groups[0]["train_mode"] is False


@averaging
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_checkpoints_hold_the_evaluation_weights(
    build: Any, hook: str, weights_only: bool, tmp_path: Path
) -> None:
    """Those with save_weights_only=True, which Lightning calls no callback for, as well."""
    path = tmp_path / "saved.ckpt"
    fit(Task(build), EvaluationWeights(), SavesAt(path, hook, weights_only), num_sanity_val_steps=0)
    checkpoint = torch.load(path, weights_only=True)
    expected = by_hand(build, checkpoint["global_step"])[1]
    assert torch.equal(checkpoint["state_dict"]["layer.weight"], expected)
    assert ("optimizer_states" in checkpoint) is not weights_only


@averaging
@pytest.mark.parametrize("checkpoint", ["step=4", "step=5", "end"])
def test_resume_is_bitwise(build: Any, checkpoint: str, tmp_path: Path) -> None:
    """From the middle of an epoch, from its end, and from a fit that ended."""

    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Tensor, dict[str, Any]]:
        task = SameBatchTask(build)
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = fit(
            task, EvaluationWeights(), saver, folder=tmp_path, epochs=epochs, ckpt_path=ckpt_path
        )
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return task.weight, trainer.optimizers[0].state_dict()

    weight, state = run(epochs=3)
    if checkpoint == "end":
        run(epochs=2)
    resumed, resumed_state = run(epochs=3, ckpt_path=tmp_path / f"{checkpoint}.ckpt")
    assert torch.equal(resumed, weight)
    assert resumed_state["param_groups"] == state["param_groups"]
    for key, entries in state["state"].items():
        for name, value in entries.items():
            assert torch.equal(resumed_state["state"][key][name], value), name


def test_resume_without_the_callback_is_refused_by_the_optimizer(tmp_path: Path) -> None:
    """The slow weights are not to be trained by oversight."""
    path = tmp_path / "saved.ckpt"
    fit(Task(lookahead), EvaluationWeights(), SavesAt(path, "on_train_epoch_end"))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        fit(Task(lookahead), epochs=3, ckpt_path=path)


def test_optimizers_that_do_not_average_are_left_alone(tmp_path: Path) -> None:
    """The CLI always adds the callback: the run must be the one without it."""
    build = partial(Adam, lr=0.05)
    weights = []
    for callbacks in ([], [EvaluationWeights()]):
        task = Task(build)
        path = tmp_path / f"{len(callbacks)}.ckpt"
        fit(task, *callbacks, SavesAt(path, "on_validation_end"))
        saved = torch.load(path, weights_only=True)["state_dict"]["layer.weight"]
        weights.append([task.weight, saved, *task.validated])
    for without, with_callback in zip(*weights, strict=True):
        assert torch.equal(without, with_callback)


def test_trainer_is_left_as_it_was() -> None:
    task = Task(lookahead)
    trainer = fit(task, EvaluationWeights())
    assert trainer.save_checkpoint == Trainer.save_checkpoint.__get__(trainer)


def test_context_restores_the_mode_that_was(build: Any = lookahead) -> None:
    """Of each optimizer: nested blocks and errors included, other optimizers untouched."""
    task = Task(build)
    optimizer = build(task.parameters())
    other = SGD([nn.Parameter(torch.zeros(2))])
    task.training_step(next(iter(loader())), 0).backward()
    slow = task.weight
    optimizer.step()
    fast = task.weight
    with evaluation_weights([optimizer, other]):
        assert torch.equal(task.weight, slow)
        with evaluation_weights([optimizer]):
            assert torch.equal(task.weight, slow)
        assert torch.equal(task.weight, slow)
    assert torch.equal(task.weight, fast)
    with pytest.raises(KeyError), evaluation_weights([optimizer]):
        raise KeyError
    assert torch.equal(task.weight, fast)
