"""The configurations shipped with the package, by kind and name.

``tasks/*.yaml`` and ``optimizers/*.yaml`` are LightningCLI configurations, ``studies/*.yaml`` are
study files. A new one is a new file here: nothing else names them.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from lightning_opt.errors import UsageError, did_you_mean

Kind = Literal["tasks", "optimizers", "studies"]
KINDS: tuple[Kind, ...] = ("tasks", "optimizers", "studies")


def shipped(kind: Kind) -> dict[str, Path]:
    """The shipped configurations of one kind: name to file, sorted by name.

    >>> "demo" in shipped("studies")
    True
    """
    folder = Path(str(files(__name__))) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolve(kind: Kind, name_or_path: str, relative_to: Path | None = None) -> Path:
    """The file that a name or a path stands for.

    A text with a separator or a YAML ending is a path, below ``relative_to`` where it is relative;
    anything else is the name of a shipped configuration.

    Raises:
        UsageError: there is no such file or no such name.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = (relative_to or Path()) / Path(name_or_path).expanduser()
        if not path.is_file():
            raise UsageError(f"There is no file {path}.")
        return path
    known = shipped(kind)
    if name_or_path not in known:
        singular = {"tasks": "task", "optimizers": "optimizer", "studies": "study"}[kind]
        raise UsageError(
            f"There is no {singular} named {name_or_path!r}. {did_you_mean(name_or_path, known)} "
            f"(A path to a YAML file works too.)"
        )
    return known[name_or_path]
