"""CIFAR-100 in its true format, small and of random pixels, for whatever test needs its files."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets


def write_cifar100(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, train: int = 60, test: int = 20
) -> Path:
    """Writes the set below ``root``, has torchvision expect its checksums, and returns ``root``."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    meta = folder / "meta"
    meta.write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    of = datasets.CIFAR100
    monkeypatch.setattr(of, "train_list", [write_part(folder, "train", train, seed=0)])
    monkeypatch.setattr(of, "test_list", [write_part(folder, "test", test, seed=1)])
    expected = {"filename": "meta", "key": "fine_label_names", "md5": _md5(meta)}
    monkeypatch.setattr(of, "meta", expected)
    return root


def write_part(folder: Path, name: str, count: int, seed: int) -> tuple[str, str]:
    """One of its pickles: rows of 3072 bytes, red plane first; its name and MD5."""
    generator = np.random.default_rng(seed)
    content = {
        "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
        "fine_labels": [int(i) for i in generator.integers(0, 100, count)],
        "coarse_labels": [0] * count,
        "filenames": [f"{i}.png" for i in range(count)],
    }
    path = folder / name
    path.write_bytes(pickle.dumps(content))
    return name, _md5(path)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
