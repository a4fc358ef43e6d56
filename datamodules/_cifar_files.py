"""CIFAR's files: checked, downloaded by one process at a time, and read.

torchvision checks every file whenever it reads one. Here training reads no test file, and a set
whose unpacking was interrupted is unpacked again, whichever file is missing.
"""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from lightning_opt.errors import UsageError

# CIFAR10 of torchvision, or its subclass CIFAR100, which say where the files are and their MD5.
Format = type[CIFAR10]


def fetch(source: Format, root: Path, *, train: bool) -> None:
    """Downloads and unpacks a set unless its files are there, checked by their MD5.

    Raises:
        UsageError: files are missing or corrupt and could not be downloaded; the message says
            which, and what to do.
    """
    if not _damage(source, root, train):
        return
    try:
        with FileLock(root / f".{source.filename}.lock"):  # which makes the folder
            if _damage(source, root, train):  # no other process has fetched it meanwhile
                download_and_extract_archive(
                    source.url, root, filename=source.filename, md5=source.tgz_md5
                )
    except (OSError, RuntimeError, HTTPException) as error:
        raise _not_whole(source, root, train, f" and could not be downloaded ({error})") from error


def read(source: Format, root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """The images, ``(count, 3, 32, 32)`` in uint8, and labels of the training or the test files.

    Raises:
        UsageError: one of these files is missing or corrupt.
    """
    other = "test_list" if train else "train_list"
    try:
        data: Any = type(source.__name__, (source,), {other: []})(root, train=train)
    except RuntimeError as error:
        raise _not_whole(source, root, train) from error
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


def _damage(source: Format, root: Path, train: bool) -> list[str]:
    """What is wrong with the files, one by one."""
    meta = (source.meta["filename"], source.meta["md5"])
    found = []
    for name, md5 in [meta, *(source.train_list if train else source.test_list)]:
        path = root / source.base_folder / name
        if not check_integrity(path, md5):
            wrong = "does not have its checksum" if path.exists() else "is missing"
            found.append(f"{source.base_folder}/{name} {wrong}")
    return found


def _not_whole(source: Format, root: Path, train: bool, why: str = "") -> UsageError:
    damage = _damage(source, root, train)
    archive = root / source.filename
    if archive.exists() and not check_integrity(archive, source.tgz_md5):
        damage.append(f"{archive.name} does not have its checksum")
    return UsageError(
        f"{source.__name__} is not whole in {root.resolve()}{why}: {', '.join(damage)}. Download "
        f"{source.url} with a browser, put {source.filename} (MD5 {source.tgz_md5}) into that "
        "folder and run again, which unpacks it; or name the folder that has it: root= or "
        "--data.root FOLDER."
    )
