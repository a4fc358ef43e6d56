"""What is installed: one import name, everything in the wheel, nothing at the top."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "checkout"
    # From a copy, since setuptools leaves build/ and *.egg-info in the tree that it builds.
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_only_one_name_is_installed(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lightning_opt"}


def test_wheel_holds_every_module_and_data_file(wheel: Path):
    """A folder forgotten in pyproject.toml would only show on somebody else's machine."""
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    expected = set()
    for folder in ("lightning_opt", "callbacks", "datamodules", "optimizers"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = str(path.relative_to(ROOT))
                expected.add(name if folder == "lightning_opt" else f"lightning_opt/{name}")
    assert expected <= installed
    assert "lightning_opt/py.typed" in installed
    assert "lightning_opt/configs/studies/demo.yaml" in installed


def test_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path):
    """Unpacked as pip would, beside the dependencies of this environment."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)
    code = (
        "import lightning_opt.callbacks, lightning_opt.optimizers, lightning_opt.datamodules;"
        "from lightning_opt.configs import shipped;"
        "print(lightning_opt.callbacks.__file__, *shipped('studies'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(target) in run.stdout and "demo" in run.stdout
    assert (target / "bin" / "lightning-opt").exists()
