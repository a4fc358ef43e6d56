"""``lightning-opt fit|validate|test|predict``: LightningCLI with what optimizers need.

Any LightningModule and LightningDataModule by class path or short name, every convention of
LightningCLI kept. Added are: shipped configurations by name, ``--lr_interval``, model-aware
optimizers attached to the module, evaluation with an optimizer's slow weights, snapshots for SVRG,
the length of the training for schedules, and errors of a few lines.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_module  # type: ignore[attr-defined]
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerTypeUnion,
    ReduceLROnPlateau,
)
from torch.optim import Optimizer

# jsonargparse finds a class by its short name once its module is imported.
from lightning_opt import (  # noqa: F401
    callbacks,
    datamodules,
    models,
    optimizers,
    schedules,
    tasks,
)
from lightning_opt.callbacks import EvaluationWeights, FisherScale, ScheduleLength, SVRGSnapshot
from lightning_opt.configs import shipped
from lightning_opt.errors import UsageError
from lightning_opt.parser_errors import explain

Interval = Literal["epoch", "step"]

# How messages begin that Lightning and torch raise as RuntimeError and that need no traceback: a
# checkpoint of another model, and a configuration file that is already there (and is kept).
_ANSWERED = ("Error(s) in loading state_dict", "SaveConfigCallback expected")

# Modules whose constructors check their arguments, and those that call a constructor.
_CHECKING = ("lightning_opt", "torch.optim", "pytorch_lightning", "jsonargparse")


class OptParser(LightningArgumentParser):
    """LightningCLI's parser, answering a mistake with a :class:`UsageError` of a few lines."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside another one, which adds its own context
            super().error(message, ex)
        raise UsageError(explain(self, message, ex)) from ex

    def _add_signature_parameter(
        self, container: Any, nested_key: str | None, param: Any, *args: Any, **kwargs: Any
    ) -> None:
        # HeavyBall's defaults are objects that stand for "not given", which no file can hold.
        if type(param.default) is object:
            kwargs["default"] = SUPPRESS
        super()._add_signature_parameter(container, nested_key, param, *args, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        try:
            parsed: Namespace = super().parse_path(path, *args, **kwargs)
            return parsed
        except UsageError as error:
            raise UsageError(f"In {os.path.relpath(path)}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}.") from error


class OptLightningCLI(LightningCLI):
    """LightningCLI for comparing optimizers, from a command line or in-process from a dict.

    Args:
        args: A command line, or a configuration as a dict; the process' own command line by
            default. ``--config`` and ``--optimizer`` take the names of shipped configurations.
        run: Whether ``args`` begins with a subcommand, which is run. Otherwise ``model``,
            ``datamodule`` and ``trainer`` are built and left to the caller.
        trainer_overrides: Keyword arguments of the Trainer that are no part of the configuration:
            they replace its values, except that callbacks are added to its own.
        kwargs: As LightningCLI's.

    Raises:
        UsageError: the command line or the configuration is wrong, or a class refuses its values.

    >>> cli = OptLightningCLI(
    ...     {"model": {"class_path": "pytorch_lightning.demos.DemoModel"}, "seed_everything": 0},
    ...     run=False,
    ...     trainer_overrides={"logger": False, "enable_checkpointing": False},
    ... )
    >>> type(cli.model).__name__
    'DemoModel'
    """

    def __init__(
        self,
        args: ArgsType = None,
        *,
        run: bool = True,
        trainer_overrides: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.trainer_overrides = trainer_overrides or {}
        kwargs.setdefault("parser_class", OptParser)
        prog = "lightning-opt" if run else "lightning-opt fit"  # as the messages name it
        kwargs.setdefault("parser_kwargs", {"prog": prog})
        if not run:
            kwargs.setdefault("save_config_callback", None)
        super().__init__(args=args, run=run, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--lr_interval",
            type=Interval,
            default="epoch",
            help="Whether --lr_scheduler steps once an epoch or once an optimizer step.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        if isinstance(args, (dict, Namespace)):
            self.config = parser.parse_object(deepcopy(args))  # which it would change
        else:
            given = sys.argv[1:] if args is None else args
            self.config = parser.parse_args(_with_shipped_files(given))

    def before_instantiate_classes(self) -> None:
        self.configure_optimizers = partial(  # type: ignore[method-assign]
            type(self).configure_optimizers, interval=self._get(self.config, "lr_interval")
        )
        self._check_lr_scheduler()

    def instantiate_classes(self) -> None:
        with _constructor_errors_as_usage(), warnings.catch_warnings():
            # That --optimizer replaces their own is what this project's tasks document.
            names = "|".join(tasks.__all__)
            warnings.filterwarnings(
                "ignore", message=rf"`({names})\.configure_optimizers` will be overridden"
            )
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        kwargs = {**self.trainer_overrides, **kwargs}
        configured = self._get(self.config_init, "trainer").get("callbacks") or []
        if not isinstance(configured, list):
            configured = [configured]
        given = [*configured, *kwargs.get("callbacks", [])]
        if not any(isinstance(callback, SVRGSnapshot) for callback in given):
            given.append(SVRGSnapshot(optional=True))
        given += [FisherScale(), ScheduleLength()]
        # First, so that what runs at the same hook later sees the weights that are evaluated.
        kwargs["callbacks"] = [EvaluationWeights(), *given]
        return super().instantiate_trainer(**kwargs)

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
        interval: Interval = "epoch",
    ) -> Any:
        """Gives a model-aware optimizer its model, and the scheduler its interval."""
        if hasattr(optimizer, "attach"):
            optimizer.attach(lightning_module)
        if lr_scheduler is None:
            return optimizer
        scheduler: dict[str, Any] = {"scheduler": lr_scheduler, "interval": interval}
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            scheduler["monitor"] = lr_scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def resolved_config(self) -> str:
        """The configuration with every default filled in, as YAML.

        ``lightning-opt fit --config`` takes it and repeats the run, but for ``trainer_overrides``.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        text: str = self._parser(self.subcommand).dump(config, skip_none=False)
        return text

    def _check_ckpt_path(self, subcommand: str) -> None:
        path = self.config[subcommand].ckpt_path
        if path is None or path.startswith("registry") or "://" in path:
            return
        if path == "best" and subcommand != "fit":
            raise UsageError(
                f"--ckpt_path best is the best checkpoint of a fit in the same process, and "
                f"{subcommand} runs alone: name the file."
            )
        if path in ("best", "last", "hpc"):
            return
        if not Path(path).exists():
            raise UsageError(f"--ckpt_path: there is no checkpoint {path}.")
        trusted = self.config[subcommand].get("weights_only") is False
        if Path(path).is_file() and not trusted and not _is_checkpoint(path):
            raise UsageError(
                f"--ckpt_path: {path} is not a checkpoint of Lightning's, with the module's "
                "weights under 'state_dict'."
            )

    def _check_lr_scheduler(self) -> None:
        """Refuses what LightningCLI would ignore without a word."""
        if self.subcommand not in (None, "fit"):
            return
        if self._get(self.config, "lr_scheduler") is not None:
            if self._get(self.config, "optimizer") is None:
                raise UsageError("--lr_scheduler needs --optimizer, whose rate it changes.")
        elif self._get(self.config, "lr_interval") != "epoch":
            raise UsageError("--lr_interval needs --lr_scheduler, whose steps it places.")

    def _parse_ckpt_path(self) -> None:
        subcommand = self.config.get("subcommand")
        if subcommand is None:
            return
        self._check_ckpt_path(subcommand)
        try:
            super()._parse_ckpt_path()
        except UsageError as error:
            path = self.config[subcommand].ckpt_path
            raise UsageError(f"In the hyperparameters saved in {path}: {error}") from error


def run(argv: Sequence[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict`` and returns the exit code."""
    # Lightning logs advertisements for other products as tips. Where both of its flavors are
    # installed, all that either one logs goes where the one imported last has it.
    rank_zero_module.log.addFilter(_is_no_advertisement)
    try:
        OptLightningCLI(list(argv))
    except MisconfigurationException as error:  # what Lightning finds wrong only once it runs
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        if not str(error).startswith(_ANSWERED):
            raise
        raise UsageError(str(error)) from error
    return 0


def _is_checkpoint(path: str) -> bool:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception:  # torch.load raises whatever a foreign file makes it raise
        return False
    return isinstance(content, dict) and {"state_dict", "pytorch-lightning_version"} <= set(content)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "💡 Tip" not in record.getMessage()


def _with_shipped_files(arguments: Sequence[str]) -> list[str]:
    """Puts the file of a shipped configuration where its name is given.

    ``--config NAME`` stands for a task's or an optimizer's file, ``--optimizer NAME`` for
    ``--config`` with the optimizer's. A file of the same name in the working directory wins.
    """
    arguments = list(arguments)
    files = {"--config": {**shipped("optimizers"), **shipped("tasks")}}
    files["-c"] = files["--config"]
    files["--optimizer"] = shipped("optimizers")
    for position, argument in enumerate(arguments):
        option, equals, name = argument.partition("=")
        if option not in files:
            continue
        if not equals:
            name = arguments[position + 1] if position + 1 < len(arguments) else ""
        if name in files[option] and not Path(name).is_file():
            path = str(files[option][name])
            arguments[position] = f"--config={path}" if equals else "--config"
            if not equals:
                arguments[position + 1] = path
    return arguments


@contextmanager
def _constructor_errors_as_usage() -> Iterator[None]:
    """A constructor that refuses its arguments is answered in a few lines.

    Anything else, such as a TypeError out of the user's own code, is more likely a bug: it keeps
    its traceback.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ and str(cause).startswith("Does not validate against any"):
            cause = cause.__cause__  # jsonargparse hides what a constructor raises behind its own
        frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        where = frames[-1]
        ours = where.f_globals.get("__name__", "").startswith(_CHECKING)
        refused = isinstance(cause, (ValueError, MisconfigurationException))
        if not refused and not (ours and isinstance(cause, TypeError)):
            raise cause from cause.__cause__
        message = str(cause)
        constructed = [
            type(frame.f_locals["self"]).__name__
            for frame in frames
            if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
        ]
        if constructed and constructed[0] not in message:
            message = f"{constructed[0]}: {message}"
        if not ours:
            message += f"\n(raised at {where.f_code.co_filename}:{where.f_lineno})"
        raise UsageError(message) from cause
