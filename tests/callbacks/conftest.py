from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are slower on several threads, by far where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    """``fit(module, *callbacks, datamodule=, ckpt_path=, **trainer_options)`` without noise."""

    def run(
        module: LightningModule,
        *callbacks: Any,
        datamodule: Any = None,
        ckpt_path: Any = None,
        **options: Any,
    ) -> Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
        }
        trainer = Trainer(**{**quiet, **options}, callbacks=list(callbacks))
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
        return trainer

    return run
