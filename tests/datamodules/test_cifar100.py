"""CIFAR100 on files in the true format, written here: no network."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from lightning_opt.datamodules import CIFAR100

TRAIN, TEST = 60, 20


def write_set(folder: Path, name: str, count: int, seed: int) -> tuple[str, str]:
    """One of CIFAR-100's pickles: rows of 3072 bytes, red plane first; its name and MD5."""
    generator = np.random.default_rng(seed)
    content = {
        "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
        "fine_labels": [int(i) for i in generator.integers(0, 100, count)],
        "coarse_labels": [0] * count,
        "filenames": [f"{i}.png" for i in range(count)],
    }
    path = folder / name
    path.write_bytes(pickle.dumps(content))
    return name, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    meta = folder / "meta"
    meta.write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    of = datasets.CIFAR100
    monkeypatch.setattr(of, "train_list", [write_set(folder, "train", TRAIN, seed=0)])
    monkeypatch.setattr(of, "test_list", [write_set(folder, "test", TEST, seed=1)])
    digest = hashlib.md5(meta.read_bytes()).hexdigest()
    monkeypatch.setattr(of, "meta", {"filename": "meta", "key": "fine_label_names", "md5": digest})
    return tmp_path


def module(root: Path, **options) -> CIFAR100:
    data = CIFAR100(root, **{"batch_size": 8, "validation": 12, "num_workers": 0, **options})
    data.prepare_data()
    return data


def test_shapes_and_sizes(root: Path):
    data = module(root)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    assert labels.shape == (8,) and labels.dtype == torch.int64
    assert sum(len(batch[1]) for batch in data.train_dataloader()) == TRAIN - 12
    assert sum(len(batch[1]) for batch in data.val_dataloader()) == 12
    data.setup("test")
    assert sum(len(batch[1]) for batch in data.test_dataloader()) == TEST


def test_training_images_are_augmented_and_others_are_not(root: Path):
    data = module(root)
    data.setup("fit")
    torch.manual_seed(0)
    epochs = [next(iter(data.train_dataloader()))[0] for _ in range(2)]
    assert not torch.equal(*epochs)
    assert torch.equal(*(next(iter(data.val_dataloader()))[0] for _ in range(2)))


def test_normalization_uses_the_channel_statistics(root: Path):
    data = module(root)
    data.setup("test")
    images, _ = next(iter(data.test_dataloader()))
    raw = torch.from_numpy(datasets.CIFAR100(root, train=False).data[:8]).permute(0, 3, 1, 2) / 255
    mean = torch.tensor([0.5071, 0.4865, 0.4409]).view(3, 1, 1)
    std = torch.tensor([0.2673, 0.2564, 0.2762]).view(3, 1, 1)
    torch.testing.assert_close(images, (raw - mean) / std)


def test_validation_split_is_disjoint_and_seeded(root: Path):
    def held_out(seed: int) -> set[int]:
        data = module(root, split_seed=seed)
        data.setup("fit")
        assert not set(data._val.indices) & set(data._train.indices)
        return set(data._val.indices)

    assert held_out(0) == held_out(0) != held_out(1)


def test_missing_data_say_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR100, "download", no_network)
    with pytest.raises(RuntimeError) as error:
        CIFAR100(tmp_path / "nothing").prepare_data()
    message = str(error.value)
    assert "nothing" in message and "cifar-100-python.tar.gz" in message and "no route" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"validation": 0}, "validation >= 1, got 0"),
        ({"crop_padding": -1}, "crop_padding >= 0, got -1"),
        ({"num_workers": -1}, "num_workers >= 0, got -1"),
    ],
)
def test_options_out_of_range_are_named(options, words: str):
    with pytest.raises(ValueError, match=words):
        CIFAR100(**options)


def test_a_validation_set_that_leaves_nothing_is_refused(root: Path):
    with pytest.raises(ValueError, match=f"has {TRAIN} training images; validation=60"):
        module(root, validation=TRAIN).setup("fit")
