"""Image files, decoded once into a file of bytes that is mapped into memory.

The file's name is a hash of what the images are: their names, sizes and times of change, and the
size in pixels. Processes that want the same images at the same time wait for the first of them, and
share its file's pages.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets.folder import default_loader
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from lightning_opt.errors import UsageError
from lightning_opt.files import remove_leftovers, replacing

_AT_ONCE = 1024  # images that are decoded before they are written


def picture(path: Path, size: int) -> Any:
    """The middle of an image file, in RGB, as a PIL image of ``size`` × ``size`` pixels.

    Raises:
        UsageError: the file is not an image that can be read.
    """
    try:
        image = F.resize(default_loader(path), [size])  # its shorter side
        return F.center_crop(image, [size])
    except Exception as error:  # a broken file makes a decoder raise anything
        raise UsageError(
            f"{path} is not an image that can be read ({error}): mend it or take it away."
        ) from error


def decoded(root: Path, paths: Sequence[Path], size: int, cache: Path) -> Tensor:
    """All images of a list, ``(len(paths), 3, size, size)`` in uint8, decoded if they are not yet.

    Args:
        root: The folder that the files are named in, so that it can be moved.
        paths: The image files.
        size: Height and width in pixels.
        cache: The folder for the file of bytes.
    """
    shape = (len(paths), 3, size, size)
    file = cache / f"{_digest(root, paths, size)}.uint8"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "lock"):
            remove_leftovers(cache)
            if not file.exists():
                _decode(paths, size, file)
    return torch.from_file(str(file), size=torch.Size(shape).numel(), dtype=torch.uint8).view(shape)


def _digest(root: Path, paths: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"{size}\n".encode())
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(root))
        digest.update(b"%s\0%d %d\n" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _decode(paths: Sequence[Path], size: int, file: Path) -> None:
    with (
        replacing(file) as temporary,
        open(temporary, "wb") as stream,
        # Threads: decoding and resizing leave the interpreter to others.
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc=f"Decoding into {file.parent}", unit=" images") as progress,
    ):
        for some in _pieces(paths, _AT_ONCE):
            images = pool.map(lambda path: F.pil_to_tensor(picture(path, size)), some)
            torch.stack(list(images)).numpy().tofile(stream)
            progress.update(len(some))


def _pieces(paths: Sequence[Path], length: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), length):
        yield paths[start : start + length]
