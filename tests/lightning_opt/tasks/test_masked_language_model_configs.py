"""The language tasks as shipped: they fit, on text in its true format, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lightning_opt.cli import main
from lightning_opt.configs import shipped
from lightning_opt.lightning_cli import OptLightningCLI
from wikitext import write_wikitext

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

QUIET = [
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--trainer.logger=false"),
    "--trainer.enable_checkpointing=false",
]
ADAM = ["--optimizer", "Adam", "--optimizer.lr=0.001"]

# Without the hub there is no roberta-base: a vocabulary of the articles that were written.
TOKENIZER = ["--data.tokenizer=null", "--data.vocab_size=400", "--data.batch_size=2"]
SMALL = ["--model.network.layers=2", "--model.network.width=24", "--model.network.heads=4"]
OWN = ["--model.network.vocab_size=400"]


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wikitext(tmp_path / "data")
    monkeypatch.chdir(tmp_path)


def arguments(name: str, *more: str) -> list[str]:
    return ["--config", name, *ADAM, *QUIET, *more]


def test_wikitext_is_as_the_thesis_has_it():
    config = yaml.safe_load(shipped("tasks")["wikitext103_roberta"].read_text())
    assert config["trainer"] == {"max_epochs": 1}
    data = config["data"]["init_args"]
    assert (data["tokenizer"], data["block_size"], data["batch_size"]) == ("roberta-base", 128, 32)
    with torch.device("meta"):
        cli = OptLightningCLI(arguments("wikitext103_roberta"), run=False)
    assert sum(p.numel() for p in cli.model.parameters()) == 82_170_201


def test_a_trial_run_on_wikitext():
    more = [*TOKENIZER, *SMALL, *OWN, "--trainer.fast_dev_run=true"]
    assert main(["fit", *arguments("wikitext103_roberta", *more)]) == 0


@pytest.mark.slow
def test_a_trial_run_on_wikitext_at_full_size():
    more = [*TOKENIZER, "--trainer.fast_dev_run=true"]
    assert main(["fit", *arguments("wikitext103_roberta", *more)]) == 0


def test_a_trial_run_on_python_docs():
    assert main(["fit", *arguments("python_docs", "--trainer.fast_dev_run=true")]) == 0


def test_a_vocabulary_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]):
    more = ["--model.network.vocab_size=300", *TOKENIZER, *SMALL, "--trainer.fast_dev_run=true"]
    assert main(["fit", *arguments("wikitext103_roberta", *more)]) == 2
    words = "WikiText103 has vocab_size=400 and Roberta has vocab_size=300"
    assert words in capsys.readouterr().err


def test_a_checkpoint_is_named_in_a_configuration(tmp_path: Path):
    """``from_pretrained`` is a class path like any other, and can be tuned on."""
    torch.manual_seed(0)
    cli = OptLightningCLI(arguments("wikitext103_roberta", *SMALL, *OWN), run=False)
    cli.model.network.model.save_pretrained("saved")
    network = "--model.network=lightning_opt.models.Roberta.from_pretrained"
    more = [*TOKENIZER, network, "--model.network.checkpoint=saved"]
    tuned = OptLightningCLI(arguments("wikitext103_roberta", *more), run=False)
    tensors = zip(cli.model.parameters(), tuned.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in tensors)
    assert (
        main(["fit", *arguments("wikitext103_roberta", *more, "--trainer.fast_dev_run=true")]) == 0
    )
