"""LightningCLI's conventions kept, this project's additions, and errors of a few lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.demos import boring_classes  # noqa: F401  (short names: DemoModel)
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from lightning_opt.callbacks import EvaluationWeights, SVRGSnapshot
from lightning_opt.cli import main
from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError
from lightning_opt.lightning_cli import OptLightningCLI
from lightning_opt.optimizers import Yogi

DEMO = ["--model", "DemoModel"]
CLASSIFIER = ["--model", "ImageClassifier", "--model.network", "ShallowCNN"]

pytestmark = [
    # Lightning 2.6 with torch 2.9 and later.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Lightning 2.6 with jsonargparse 4.49 and later.
    pytest.mark.filterwarnings("ignore:(?s).*(By default only one Jsonargparse|deprecated in v4)"),
]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build(args: Sequence[str] | dict[str, Any], **overrides: Any) -> OptLightningCLI:
    """Model, data and a quiet trainer of ``args``, without running anything."""
    if not isinstance(args, dict):
        args = list(args)
        if "--seed_everything" not in args:
            args += ["--seed_everything", "0"]
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return OptLightningCLI(args, run=False, trainer_overrides={**quiet, **overrides})


def config(args: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of ``args``."""
    resolved: dict[str, Any] = yaml.safe_load(build(args).resolved_config())
    return resolved


def _callbacks(cli: OptLightningCLI) -> list[Callback]:
    return cli.trainer.callbacks  # type: ignore[attr-defined,no-any-return]


# ---------------------------------------------------------------- shipped configurations, classes


def test_later_configs_override_earlier_ones_and_options_override_both() -> None:
    Path("mine.yaml").write_text("trainer: {max_epochs: 3}\ndata: {init_args: {batch_size: 7}}\n")
    given = ["--config", "digits", "--config", "mine.yaml", "--trainer.max_epochs", "2"]
    resolved = config(given)
    assert resolved["data"]["init_args"]["batch_size"] == 7
    assert resolved["trainer"]["max_epochs"] == 2
    assert resolved["trainer"]["log_every_n_steps"] == 1  # digits.yaml's


@pytest.mark.parametrize("name", sorted(shipped("optimizers")))
def test_every_shipped_optimizer_builds_and_steps(name: str) -> None:
    cli = build([*CLASSIFIER, "--config", name])
    optimizer = cli.model.configure_optimizers()
    before = [parameter.detach().clone() for parameter in cli.model.parameters()]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = cli.model.loss((torch.rand(4, 1, 8, 8), torch.arange(4)))
        loss.backward()
        return loss

    if hasattr(optimizer, "snapshot"):  # SVRG's steps need one
        optimizer.snapshot([closure])
    optimizer.step(closure)
    after = list(cli.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("given", [["--optimizer", "amsgrad"], ["--optimizer=amsgrad"]])
def test_a_shipped_optimizer_is_chosen_by_name_and_its_options_still_count(
    given: list[str],
) -> None:
    optimizer = config([*CLASSIFIER, *given, "--optimizer.lr", "0.5"])["optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert optimizer["init_args"]["amsgrad"] is True and optimizer["init_args"]["lr"] == 0.5


def test_a_file_wins_over_the_shipped_configuration_of_the_same_name() -> None:
    Path("digits").write_text("model: DemoModel\n")
    assert config(["--config=digits"])["model"]["class_path"].endswith("DemoModel")


def test_short_names_of_what_the_project_ships() -> None:
    given = ["--data", "Digits", "--optimizer", "Yogi", "--lr_scheduler", "StepLR"]
    given += ["--lr_scheduler.step_size", "1", "--trainer.callbacks+=DeviceStatsMonitor"]
    given += ["--trainer.callbacks+=HessianSpectrum", "--trainer.callbacks.steps=5"]
    resolved = config([*CLASSIFIER, *given])
    network = resolved["model"]["init_args"]["network"]
    assert network["class_path"] == "lightning_opt.models.ShallowCNN"
    assert resolved["data"]["class_path"] == "lightning_opt.datamodules.Digits"
    assert resolved["optimizer"]["class_path"] == "lightning_opt.optimizers.Yogi"
    stats, spectrum = resolved["trainer"]["callbacks"]
    assert stats["class_path"] == "pytorch_lightning.callbacks.DeviceStatsMonitor"
    assert spectrum["class_path"] == "lightning_opt.callbacks.HessianSpectrum"
    assert spectrum["init_args"]["steps"] == 5


def test_an_optimizer_over_another_one_from_the_command_line() -> None:
    given = ["--optimizer", "Lookahead", "--optimizer.base", "SGD", "--optimizer.base.lr", "0.3"]
    optimizer = build([*CLASSIFIER, *given]).model.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.3


# ------------------------------------------------------------------------- configure_optimizers


def test_a_model_aware_optimizer_is_attached_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    attached: list[tuple[object, object]] = []
    monkeypatch.setattr(
        Yogi, "attach", lambda self, module: attached.append((self, module)), raising=False
    )
    cli = build([*CLASSIFIER, "--optimizer", "Yogi"])
    optimizer = cli.model.configure_optimizers()
    assert attached == [(optimizer, cli.model)]


@pytest.mark.parametrize("interval", [None, "epoch", "step"])
def test_a_scheduler_steps_per_epoch_or_per_step(interval: str | None) -> None:
    given = ["--optimizer", "SGD", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "4"]
    cli = build([*CLASSIFIER, *given, *(["--lr_interval", interval] if interval else [])])
    configured = cli.model.configure_optimizers()
    assert isinstance(configured["optimizer"], SGD)
    assert isinstance(configured["lr_scheduler"]["scheduler"], StepLR)
    assert configured["lr_scheduler"]["interval"] == (interval or "epoch")


def test_the_interval_reaches_the_training() -> None:
    given = ["--config", "digits", "--optimizer", "SGD", "--optimizer.lr", "1"]
    given += ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1", "--lr_interval", "step"]
    cli = build(given, max_epochs=1, limit_train_batches=3, limit_val_batches=0)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1**3)


def test_a_plateau_scheduler_keeps_its_monitor() -> None:
    given = ["--optimizer", "SGD", "--lr_scheduler", "ReduceLROnPlateau"]
    cli = build([*CLASSIFIER, *given, "--lr_scheduler.monitor", "val_loss"])
    assert cli.model.configure_optimizers()["lr_scheduler"]["monitor"] == "val_loss"


def test_replacing_the_optimizer_of_a_foreign_module_is_still_warned_of() -> None:
    with pytest.warns(UserWarning, match="DemoModel.configure_optimizers` will be overridden"):
        build([*DEMO, "--optimizer", "SGD"])


# ------------------------------------------------------------------------- in-process, from a dict


def digits_config() -> dict[str, Any]:
    merged: dict[str, Any] = yaml.safe_load(shipped("tasks")["digits"].read_text())
    return {**merged, **yaml.safe_load(shipped("optimizers")["ranger"].read_text())}


def test_overrides_stay_out_of_the_configuration() -> None:
    timer = Timer()
    given = {**digits_config(), "trainer": {"callbacks": ["DeviceStatsMonitor"], "max_epochs": 9}}
    cli = build(given, max_epochs=2, callbacks=[timer])
    names = [type(callback).__name__ for callback in _callbacks(cli)]
    assert names[:3] == ["EvaluationWeights", "DeviceStatsMonitor", "Timer"]
    assert cli.trainer.max_epochs == 2
    resolved = yaml.safe_load(cli.resolved_config())["trainer"]
    assert resolved["max_epochs"] == 9
    assert [c["class_path"].rpartition(".")[2] for c in resolved["callbacks"]] == names[1:2]


def test_evaluation_weights_come_first_once_and_without_being_asked_for() -> None:
    callbacks = _callbacks(build(DEMO))
    assert isinstance(callbacks[0], EvaluationWeights)
    assert sum(isinstance(callback, EvaluationWeights) for callback in callbacks) == 1


def test_snapshots_for_svrg_come_without_being_asked_for() -> None:
    """With an SVRG there is nothing else to configure; its module is attached for the guard."""
    cli = build(["--config", "digits", "--optimizer", "svrg"], max_epochs=1, limit_train_batches=3)
    (callback,) = (c for c in _callbacks(cli) if isinstance(c, SVRGSnapshot))
    assert callback.optional
    cli.trainer.fit(cli.model, cli.datamodule)
    (optimizer,) = cli.trainer.optimizers
    assert optimizer.has_snapshot and optimizer.model is cli.model
    assert optimizer.param_groups[0]["steps"] == 3


def test_snapshots_for_svrg_may_be_configured() -> None:
    """From the command line or in-process; then no others are added."""
    given = ["--trainer.callbacks+=SVRGSnapshot", "--trainer.callbacks.every_n_steps=5"]
    for cli in (build([*DEMO, *given]), build(DEMO, callbacks=[SVRGSnapshot(every_n_steps=5)])):
        (callback,) = (c for c in _callbacks(cli) if isinstance(c, SVRGSnapshot))
        assert callback.every_n_steps == 5 and not callback.optional


def test_the_coefficient_of_svrg_from_the_command_line() -> None:
    given = ["--optimizer", "svrg", "--optimizer.coefficient.steps", "100"]
    given[2:2] = ["--optimizer.coefficient", "lightning_opt.optimizers.LinearDecay"]
    optimizer = build([*CLASSIFIER, *given]).model.configure_optimizers()
    assert [optimizer.coefficient(step) for step in (0, 50, 100)] == [0.75, 0.375, 0.0]


def test_the_process_own_arguments_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here: LightningCLI warns of arguments that it would otherwise read."""
    monkeypatch.setattr(sys, "argv", ["study", "--nonsense"])
    assert build(digits_config()).subcommand is None


def test_the_resolved_configuration_repeats_the_run_from_the_command_line() -> None:
    given = {**digits_config(), "trainer": {"max_epochs": 1, "limit_train_batches": 3}}
    first = build(given)
    first.trainer.fit(first.model, first.datamodule)
    Path("resolved.yaml").write_text(first.resolved_config())
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    quiet += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    again = OptLightningCLI(["fit", "--config", "resolved.yaml", *quiet], save_config_callback=None)
    assert again.trainer.global_step == 3
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_wrong_dict_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"Did you mean --trainer.max_epochs"):
        build({**digits_config(), "trainer": {"max_epohcs": 1}})


# ------------------------------------------------------------------------- from the command line


def test_a_printed_configuration_is_accepted_again(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--config", "digits", "--config", "lookahead", "--print_config"]
    assert main(["fit", *given]) == 0
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed)
    assert main(["fit", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_fit_saves_its_configuration_and_a_checkpoint_that_test_takes(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    quiet = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "out"]
    quiet += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    given = ["--config", "digits", "--config", "yogi", *quiet]
    assert main(["fit", *given, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]) == 0
    (saved,) = Path("out").rglob("config.yaml")
    assert yaml.safe_load(saved.read_text())["optimizer"]["class_path"].endswith("Yogi")
    (checkpoint,) = Path("out").rglob("*.ckpt")
    assert main(["test", *given, "--ckpt_path", str(checkpoint)]) == 0
    assert "test_accuracy" in capsys.readouterr().out
    assert "GPU available" in caplog.text and "💡" not in caplog.text  # no advertisements


def test_class_help_lists_the_arguments_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.help", "ImageClassifier"]) == 0
    assert "--model.network" in capsys.readouterr().out


def test_a_config_before_the_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    Path("all.yaml").write_text("fit:\n  model: DemoModel\n  trainer: {max_epochs: 5}\n")
    assert main(["--config", "all.yaml", "fit", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 5


# ------------------------------------------------------------------------- mistakes

OPTIONS = [
    (["--optimzer", "Adam"], "no option --optimzer. Did you mean --optimizer?"),
    (["--optimzer.lr", "1"], "Did you mean --optimizer.lr?"),
    (["--max_epochs", "3"], "Did you mean --trainer.max_epochs?"),
    (["--trainer.max_epohcs", "3"], "Did you mean --trainer.max_epochs"),
    (["--trainr.max_epochs", "3"], "Did you mean --trainer.max_epochs?"),
    (["--print_confg"], "Did you mean --print_config?"),
    (["stray"], "one argument too many: 'stray'"),
    (["--optimizer", "Adam", "--optimizer.lrr", "3"], "Did you mean --optimizer.lr?"),
    (["--optimizer", "yogi", "--optimizer.bettas", "3"], "Did you mean --optimizer.betas?"),
    (["--optimizer.lr", "3"], "--optimizer needs a class first, for instance"),
    (["--model.lerning_rate", "3"], "DemoModel takes no 'lerning_rate'. Did you mean --model.lea"),
    (["--trainer.callbacks+=Timer", "--trainer.callbacks.intervall=3"], "callbacks.interval?"),
    (
        ["--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.monitr", "x"],
        "ReduceLROnPlateau takes no 'monitr'. Did you mean --lr_scheduler.monitor?",
    ),
]
CLASSES = [
    (["--model", "ImageClasifier"], "--model: there is no class 'ImageClasifier'. Did you mean Im"),
    (["--model.help", "ImageClasifier"], "Did you mean ImageClassifier?"),
    (["--optimizer", "Adamm"], "Did you mean Adam or"),
    (["--optimizer", "torch.optim.Adamm"], "Did you mean Adam or"),
    (["--optimizer", "nowhere.Adamm"], "Did you mean Adam or"),
    (["--optimizer", "yogy"], "Did you mean"),
    (["--optimizer", "Xyzzy"], "It takes, for instance, "),
    (["--optimizer", "torch.nn.Linear"], "torch.nn.Linear is no Optimizer."),
    (["--optimizer", "mine.yaml"], "--optimizer: there is no file mine.yaml."),
    (["--data", "Digitss"], "Did you mean Digits?"),
    (["--trainer.callbacks+=HessianSpectrm"], "Did you mean HessianSpectrum?"),
    (["--lr_scheduler", "StepLRR"], "Did you mean StepLR or"),
    (["--trainer.logger", "CSVLoger"], "Did you mean CSVLogger"),
]
VALUES = [
    (["--optimizer", "SGD", "--optimizer.lr", "abc"], "--optimizer.lr: 'abc' does not fit. It tak"),
    (["--optimizer", "SGD", "--optimizer.nesterov", "3"], "It takes bool."),
    (["--trainer.max_epochs", "x"], "--trainer.max_epochs: 'x' does not fit. It takes int or null"),
    (["--lr_interval", "batch"], "It takes epoch or step."),
    (["--trainer.max_epochs"], "expected one argument"),
    (["--lr_scheduler", "StepLR", "--optimizer", "SGD"], "StepLR needs --lr_scheduler.step_size."),
    (
        ["--lr_scheduler", "ReduceLROnPlateau", "--optimizer", "SGD"],
        "ReduceLROnPlateau needs --lr_scheduler.monitor.",
    ),
    (["--lr_scheduler", "StepLR", "--lr_scheduler.step_size=1"], "--lr_scheduler needs --optimiz"),
    (["--lr_interval", "step"], "--lr_interval needs --lr_scheduler"),
    (["--ckpt_path", "no.ckpt"], "--ckpt_path: there is no checkpoint no.ckpt."),
    (["--ckpt_path", "foreign.ckpt"], "--ckpt_path: foreign.ckpt is not a checkpoint of Lightn"),
    (["--ckpt_path", "other.ckpt"], "--ckpt_path: other.ckpt is not a checkpoint of Lightning's"),
    (["--config", "binary.yaml"], "binary.yaml cannot be read"),
    (["--trainer.accelerator", "gpuu"], "invalid accelerator name: `accelerator='gpuu'`"),
    (["--config", "digts"], "nor a shipped configuration of that name. Did you mean digits?"),
    (["--config", "a/b.yaml"], "there is no file a/b.yaml"),
]


@pytest.mark.parametrize(("given", "expected"), OPTIONS + CLASSES + VALUES)
def test_a_mistake_is_answered_with_the_way_out(
    given: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("foreign.ckpt").write_text("hello")
    torch.save({"a": 1}, "other.ckpt")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    check_message(["fit", "--seed_everything=0", *DEMO, *given], expected, capsys)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "lightning-opt fit needs --model."),
        (["--model", "ImageClassifier"], "ImageClassifier needs --model.network."),
        ([*CLASSIFIER, "--model.ntwork", "x"], "Did you mean --model.network?"),
        (
            [*CLASSIFIER, "--model.network.num_clases", "3"],
            "--model.network.num_clases: ShallowCNN takes no 'num_clases'. "
            "Did you mean --model.network.num_classes?\n"
            "All it takes: lightning-opt fit --model.help ImageClassifier "
            "--model.network.help ShallowCNN",
        ),
        ([*CLASSIFIER, "--model.network", "ShalowCNN"], "Did you mean ShallowCNN?"),
        ([*CLASSIFIER, "--model.network.width", "0"], "ShallowCNN needs width >= 1, got 0."),
        ([*CLASSIFIER, "--optimizer", "Yogi", "--optimizer.lr", "-1"], "Yogi"),
        ([*CLASSIFIER, "--optimizer", "SGD", "--optimizer.lr", "-1"], "SGD: Invalid learning rate"),
        (["--config", "digits", "--data.batch_size", "0"], "Digits needs batch_size >= 1, got 0."),
        (DEMO, "`train_dataloader` must be implemented"),
    ],
)
def test_a_missing_or_refused_argument(
    given: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    quiet += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    check_message(["fit", "--seed_everything=0", *quiet, *given], expected, capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modell: DemoModel", "no option --modell. Did you mean --model?"),
        ("trainer: {max_epohcs: 3}\nmodel: DemoModel", "Did you mean --trainer.max_epochs"),
        (
            "model: {class_path: DemoModl}",
            "In bad.yaml: --model: there is no class 'DemoModl'. Did",
        ),
        ("model: {class_pth: DemoModel}", "there is no key 'class_pth'. Did you mean class_path?"),
        (
            "optimizer: {class_path: SGD, init_args: {lrr: 1}}",
            "In bad.yaml: --optimizer.lrr: SGD t",
        ),
        (
            "model: {class_path: ImageClassifier, init_args: {network: "
            "{class_path: ResNet18, init_args: {num_clases: 3}}}}",
            "In bad.yaml: --model.network.num_clases: ResNet18 takes no 'num_clases'. Did you mean",
        ),
        (
            "trainer: {callbacks: [{class_path: Timer, init_args: {intervall: 3}}]}",
            "In bad.yaml: --trainer.callbacks.intervall: Timer takes no 'intervall'. Did you mean",
        ),
        ("model: [\n - x: {\n", "In bad.yaml: this is not valid YAML: "),
        ("just text", "In bad.yaml: a configuration has keys and values, not just 'just text'."),
    ],
)
def test_a_mistake_in_a_file(text: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(text)
    check_message(["fit", "--config", "bad.yaml"], expected, capsys)


def check_message(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    message = "\n".join(line for line in told.splitlines() if "Seed set" not in line)
    assert expected in message
    assert len(message.splitlines()) <= 6
    assert "Traceback" not in message and "Union" not in message


def test_a_bug_in_a_users_class_keeps_its_traceback(tmp_path: Path) -> None:
    """jsonargparse would turn it into a ValueError about a Union."""
    module = tmp_path / "broken_module.py"
    module.write_text(
        "from pytorch_lightning import LightningModule\n"
        "class Broken(LightningModule):\n"
        "    def __init__(self, size: int = 1) -> None:\n"
        "        super().__init__()\n"
        "        self.size = size + None\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(TypeError, match="unsupported operand"):
            main(["fit", "--seed_everything=0", "--model", "broken_module.Broken"])
    finally:
        sys.path.remove(str(tmp_path))
