"""CIFAR-100 in its true format, of random images, so that nothing is downloaded."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torchvision import datasets

TRAINING = 50_000


@contextmanager
def random_cifar100() -> Iterator[Path]:
    """A folder that torchvision, told the checksums of its files, takes for CIFAR-100."""
    of = datasets.CIFAR100
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / of.base_folder
        files.mkdir()
        names = {"fine_label_names": [str(label) for label in range(100)]}
        of.meta = {**of.meta, "md5": write_pickle(files / "meta", names)}
        of.train_list = [["train", write_pickle(files / "train", _images(TRAINING))]]
        of.test_list = [["test", write_pickle(files / "test", _images(1))]]
        yield Path(folder)


def _images(count: int) -> dict[str, object]:
    generator = np.random.default_rng(count)
    return {
        "data": generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8),
        "fine_labels": generator.integers(0, 100, count).tolist(),
    }


def write_pickle(path: Path, content: object) -> str:
    """Writes a file as CIFAR's are, and returns its checksum."""
    data = pickle.dumps(content)
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()
