"""Who may import whom: read from the source, so that it holds for every file."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD = set(sys.stdlib_module_names)

# A folder to the packages it may import besides the standard library, itself, and the leaves.
LEAVES = {
    "lightning_opt.errors",
    "lightning_opt.files",
    "lightning_opt.memory",
    "lightning_opt._version",
    "typing_extensions",
}
CONFIGS = {"lightning_opt.configs", "yaml"}
ALLOWED = {
    "optimizers": {"torch"},
    "lightning_opt/geometry": {"torch", "numpy", "scipy"},
    "lightning_opt/models": {"torch", "torchvision", "transformers"},
    "lightning_opt/figures": {"numpy", "matplotlib", "plotly"},
    "datamodules": {
        "pytorch_lightning",
        "torch",
        "torchvision",
        "datasets",
        "tokenizers",
        "transformers",
        "huggingface_hub",
        "sklearn",
        "numpy",
        "filelock",
        "tqdm",
    },
    "callbacks": {
        "lightning_opt.geometry",
        "lightning_opt.figures",
        "lightning_opt.optimizers",
        "pytorch_lightning",
        "lightning",
        "torch",
        "torchmetrics",
        "numpy",
        "tqdm",
    },
    "lightning_opt/tasks": {"lightning_opt.models", "pytorch_lightning", "torch", "torchmetrics"},
    "lightning_opt/study": {*CONFIGS, "numpy", "scipy", "tqdm", "filelock"},
    "lightning_opt/report": {
        "lightning_opt.figures",
        "lightning_opt.study",
        "numpy",
        "pandas",
        "scipy",
        "jinja2",
    },
    "lightning_opt/configs": set(),
}
# What runs inside a worker process needs torch; nothing else of the study does.
IN_THE_WORKER = {"worker.py", "logger.py", "meters.py"}
WORKER = {"torch", "pytorch_lightning", "lightning_opt.callbacks", "lightning_opt.lightning_cli"}


def imported(path: Path) -> set[str]:
    """Absolute imports anywhere in a file, those inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
            found.add("a relative import across folders")
    return {name for name in found if name.split(".")[0] not in STANDARD}


FILES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path):
    folder = next(f for f in ALLOWED if (ROOT / f) in path.parents)
    allowed = ALLOWED[folder] | LEAVES
    if folder == "lightning_opt/study" and path.name in IN_THE_WORKER:
        allowed |= WORKER
    strangers = {
        name
        for name in imported(path)
        if not any(name == known or name.startswith(f"{known}.") for known in allowed)
    }
    assert not strangers


def test_the_study_knows_the_worker_only_from_inside_a_process():
    """A module-level import of the worker would make every study import torch."""
    for path in (ROOT / "lightning_opt/study").glob("*.py"):
        if path.name in IN_THE_WORKER:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                assert f"{node.module}.py" not in IN_THE_WORKER, path
