"""What is written for people runs: docstring examples, the README's and the pages' code blocks."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_opt

ROOT = Path(__file__).parents[1]
FOLDERS = ("callbacks", "datamodules", "optimizers")  # not below lightning_opt/ in the checkout

MODULES = [
    module.name
    for path, prefix in [
        (lightning_opt.__path__, "lightning_opt."),
        *(([str(ROOT / folder)], f"lightning_opt.{folder}.") for folder in FOLDERS),
    ]
    for module in pkgutil.walk_packages(path, prefix)
    if not module.name.endswith("__main__")
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.failed == 0


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, *pages: Path) -> list[str]:
    block = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [code for page in pages for code in block.findall(page.read_text())]


@pytest.mark.parametrize("code", blocks("python", *PAGES))
def test_python(code: str, tmp_path: Path):
    """Each block stands alone, in a new process, as a reader would paste it."""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in blocks("sh", *PAGES)
        for line in block.splitlines()
        if line.startswith("lightning-opt fit")
        and not any(name in line for name in ("cifar", "wikitext"))  # would download
    ],
)
def test_fit_commands(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lightning_opt.cli import main

    monkeypatch.chdir(tmp_path)
    command = line.split("#")[0].replace("'", "").split()[1:]
    assert main([*command, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]) == 0


def test_readme_study(tmp_path: Path):
    """The study file of the README loads, with the file that its comment shows."""
    from lightning_opt.study import load_study

    (text,) = blocks("yaml", ROOT / "README.md")
    (line,) = (line for line in text.splitlines() if "./nadam.yaml" in line)
    (tmp_path / "nadam.yaml").write_text(line.split("#")[1].strip())
    (tmp_path / "mine.yaml").write_text(text)
    study = load_study(str(tmp_path / "mine.yaml"))
    assert len(study.cells()) == 3 * (5 + 2 + 2)
    assert study.cells()[-1].config["optimizer"]["class_path"] == "torch.optim.NAdam"
