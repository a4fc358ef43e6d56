"""An environment with the peers that a benchmark compares with.

It takes torch and all else from the environment that the benchmark was started in. What benchmarks
install into it adds up, and is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch

from _tables import say


def default_environment() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return caches / "lightning_opt" / "benchmarks" / f"{python}-torch{torch.__version__}"


def enter_environment(folder: Path, peers: Sequence[str]) -> None:
    """Go on in the environment that has the peers, made if there is none yet."""
    if Path(sys.prefix).resolve() == folder:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"Making {folder} ...")
        venv.create(folder, with_pip=True)
    # Its own packages come first, then this environment's: torch is not installed a second time.
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    own = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    lines = [f"import site; site.addsitedir({path!r})\n" for path in shared]
    Path(own, "shared.pth").write_text("".join(lines))
    install(python, peers, folder / "tried.txt")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for a GPU, aloud
    os.execv(python, [str(python), *sys.argv])


def install(python: Path, peers: Sequence[str], record: Path) -> None:
    """Install each peer unless an earlier run has tried; one that fails is left out."""
    tried = record.read_text().splitlines() if record.exists() else []
    constraint = record.with_name("constraint.txt")
    constraint.write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    for peer in peers:
        if peer not in tried:
            say(f"Installing {peer} ...")
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            if subprocess.call([*pip, "--constraint", str(constraint), peer]):
                say(f"{peer} is not installable here: its rows will say so.")
            tried.append(peer)
    record.write_text("\n".join(tried))


def versions(names: Iterable[str]) -> str:
    found = {dist.name: dist.version for dist in metadata.distributions()}
    return ", ".join(
        [f"Python {sys.version.split()[0]}", *(f"{n} {found.get(n, 'missing')}" for n in names)]
    )
