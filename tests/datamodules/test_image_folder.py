"""ImageFolder on small files, written here."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from lightning_opt.datamodules import ImageFolder, _decoding, image_folder
from lightning_opt.errors import UsageError

SIZE = 8
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # a batch is the bytes


def write(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Images of several shapes and modes, a folder a class."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = (9 + i % 3, 12 - i % 4, 3)
            image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
            image.convert("L" if i % 5 == 4 else "RGB").save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With all three parts, of which the second lacks a class."""
    root = tmp_path / "set"
    write(root / "train", {"ant": 7, "bee": 6, "cat": 5}, seed=0)
    write(root / "val", {"bee": 3, "cat": 2}, seed=1)
    write(root / "test", {"ant": 2, "bee": 1, "cat": 2}, seed=2)
    return root


def module(root: Path, stage: str | None = None, **options: Any) -> ImageFolder:
    cache = root.parent / "cache"
    defaults = {"image_size": SIZE, "batch_size": 4, "cache": cache, "num_workers": 0, **RAW}
    data = ImageFolder(root, **{**defaults, **options})
    data.prepare_data()
    data.setup(stage)
    return data


def contents(loader: Any) -> tuple[Tensor, Tensor]:
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    return images, labels


def files(data: ImageFolder, part: str) -> list[tuple[tuple[int, ...], int]]:
    """What is in a part, in its order: pixels and labels."""
    loaders = {"train": data.analysis_dataloader, "val": data.val_dataloader}
    images, labels = contents(loaders.get(part, data.test_dataloader)())
    pixels = [tuple(image.flatten().round().int().tolist()) for image in images]
    return list(zip(pixels, labels.tolist(), strict=True))


def of_torchvision(folder: Path) -> list[tuple[tuple[int, ...], int]]:
    steps = [v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.PILToTensor()]
    data = datasets.ImageFolder(folder, v2.Compose(steps), allow_empty=True)
    return [(tuple(image.flatten().tolist()), label) for image, label in data]


PIPELINES = pytest.mark.parametrize("pipeline", ["tensor", "torchvision"])


@PIPELINES
def test_parts_are_their_folders_as_torchvision_reads_them(folder: Path, pipeline: str):
    data = module(folder, pipeline=pipeline)
    assert data.classes == ["ant", "bee", "cat"]
    assert sorted(files(data, "train")) == sorted(of_torchvision(folder / "train"))
    # Labels are places among the training images' classes, of which val/ lacks the first.
    wanted = [(pixels, label + 1) for pixels, label in of_torchvision(folder / "val")]
    assert files(data, "val") == wanted
    assert files(data, "test") == of_torchvision(folder / "test")


@PIPELINES
def test_validation_is_held_out_where_it_has_no_folder(tmp_path: Path, pipeline: str):
    root = tmp_path / "set"
    write(root / "train", {"ant": 12, "bee": 8})

    def split(seed: int) -> tuple[Any, Any]:
        data = module(root, "fit", validation=0.25, split_seed=seed, pipeline=pipeline)
        return files(data, "train"), files(data, "val")

    train, val = split(0)
    assert len(val) == 5
    assert sorted(train + val) == sorted(of_torchvision(root / "train"))
    assert split(0) == (train, val)
    assert sorted(split(1)[1]) != sorted(val)
    with pytest.raises(UsageError, match=r"no test images.*no .*/test"):
        module(root, "test")


@PIPELINES
def test_classes_without_parts_are_split_into_three(tmp_path: Path, pipeline: str):
    root = write(tmp_path / "set", {"ant": 12, "bee": 8})
    data = module(root, validation=0.25, test=0.2, pipeline=pipeline)
    parts = [files(data, part) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert sorted(itertools.chain(*parts)) == sorted(of_torchvision(root))
    other = module(root, "test", validation=0.25, test=0.2, split_seed=1, pipeline=pipeline)
    assert sorted(files(other, "test")) != sorted(parts[2])


def test_pipelines_have_the_same_parts_in_the_same_order(tmp_path: Path):
    root = write(tmp_path / "set", {"ant": 12, "bee": 8})
    one, two = (module(root, pipeline=pipeline) for pipeline in ("tensor", "torchvision"))
    for part in ("train", "val", "test"):
        assert files(one, part) == files(two, part)


@PIPELINES
def test_an_analysis_sees_classes_mixed(folder: Path, pipeline: str):
    labels = [label for _, label in files(module(folder, "fit", pipeline=pipeline), "train")]
    assert labels != sorted(labels) and len(set(labels[:7])) > 1


@PIPELINES
def test_training_images_are_augmented(folder: Path, pipeline: str):
    data = module(folder, "fit", pipeline=pipeline, crop_padding=2)
    plain = {pixels for pixels, _ in files(data, "train")}
    images, labels = contents(data.train_dataloader())
    seen = {tuple(image.flatten().round().int().tolist()) for image in images}
    assert images.shape == (18, 3, SIZE, SIZE) and labels.shape == (18,)
    assert len(seen - plain) > 9


def test_default_normalization_is_imagenets(folder: Path):
    bytes_ = contents(module(folder, "test").test_dataloader())[0]
    options = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    normalized = contents(module(folder, "test", **options).test_dataloader())[0]
    wanted = v2.functional.normalize(bytes_ / 255, *options.values())
    torch.testing.assert_close(normalized, wanted, rtol=1e-5, atol=1e-6)
    data = ImageFolder(folder, SIZE)
    assert (data._mean, data._std) == tuple(options.values())


@PIPELINES
def test_the_test_images_are_not_touched_by_fit(folder: Path, pipeline: str):
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"broken")
    contents(module(folder, "fit", pipeline=pipeline).train_dataloader())
    with pytest.raises(UsageError, match=r"0.png is not an image"):
        contents(module(folder, "test", pipeline=pipeline).test_dataloader())


def test_the_test_images_of_a_split_are_not_touched_by_fit(tmp_path: Path, monkeypatch):
    root = write(tmp_path / "set", {"ant": 12, "bee": 8})
    read: list[Path] = []
    original = _decoding.picture
    monkeypatch.setattr(
        _decoding, "picture", lambda path, size: read.append(path) or original(path, size)
    )
    module(root, "fit", test=0.2)
    assert len(set(read)) == 16
    module(root, "test", test=0.2)
    assert len(set(read)) == len(read) == 20


@PIPELINES
@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_file_is_named(folder: Path, pipeline: str, content: bytes):
    broken = folder / "train" / "bee" / "3.png"
    broken.write_bytes(content)
    with pytest.raises(UsageError, match=r"train/bee/3.png is not an image that can be read"):
        contents(module(folder, "fit", pipeline=pipeline).train_dataloader())
    assert not list(folder.parent.glob("cache/*.uint8"))  # no half of it is left


def test_a_file_cut_off_is_named(folder: Path):
    broken = folder / "train" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"train/bee/3.png is not an image that can be read"):
        module(folder, "fit")


def test_an_image_that_pillow_takes_for_an_attack_is_named(folder: Path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UsageError, match=r"train/ant/0.png is not an image .*exceeds limit"):
        module(folder, "fit")


def no_decoding(*args: Any) -> None:
    raise AssertionError("decoded again")


def test_images_are_decoded_once(folder: Path, monkeypatch, capsys):
    first = files(module(folder), "train")
    assert "Decoding into" in capsys.readouterr().err
    monkeypatch.setattr(_decoding, "picture", no_decoding)
    assert files(module(folder), "train") == first
    # Another split of the same images, and the folder in another place.
    module(folder, split_seed=5)
    moved = folder.rename(folder.with_name("moved"))
    assert files(module(moved), "train") == first
    with pytest.raises(AssertionError, match="decoded again"):
        module(moved, image_size=SIZE + 1)


def test_a_changed_image_is_decoded_again(folder: Path):
    path = folder / "test" / "ant" / "0.png"
    first = files(module(folder), "test")
    status = path.stat()
    image = Image.open(path)
    image.putpixel((5, 5), (1, 2, 3))
    image.save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert files(module(folder), "test") == of_torchvision(folder / "test") != first


def test_one_of_several_decodes_and_clears_up(folder: Path, monkeypatch):
    cache = folder.parent / "cache"
    cache.mkdir()
    leftover = cache / ".abc.1.tmp.uint8"
    leftover.touch()
    read = []
    original = _decoding.picture

    def picture(path: Path, size: int) -> Any:
        read.append(path)
        time.sleep(0.01)
        return original(path, size)

    monkeypatch.setattr(_decoding, "picture", picture)
    threads = [threading.Thread(target=module, args=(folder, "fit")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(read) == len(set(read)) == 18 + 5
    assert not leftover.exists()


def test_many_images_are_decoded_piece_by_piece(folder: Path, monkeypatch):
    monkeypatch.setattr(_decoding, "_AT_ONCE", 4)
    assert sorted(files(module(folder), "train")) == sorted(of_torchvision(folder / "train"))


def test_cache_is_among_the_data(folder: Path, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    ImageFolder(folder, SIZE).setup()
    assert len(list((tmp_path / "data" / "images").glob("*.uint8"))) == 3


def test_what_does_not_fit_into_memory_is_refused(folder: Path, monkeypatch):
    monkeypatch.setattr(image_folder, "available", lambda device: 18 * 3 * SIZE**2 - 1)
    monkeypatch.setattr(_decoding, "picture", no_decoding)
    with pytest.raises(UsageError, match=r"18 images of 8 × 8 pixels take 0.0 GiB.*pipeline=torch"):
        module(folder, "fit")
    monkeypatch.setattr(image_folder, "available", lambda device: 18 * 3 * SIZE**2)
    with pytest.raises(AssertionError, match="decoded again"):
        module(folder, "fit")


def test_torchvisions_pipeline_needs_no_room(folder: Path, monkeypatch):
    monkeypatch.setattr(image_folder, "available", lambda device: 0)
    module(folder, pipeline="torchvision")
    assert not (folder.parent / "cache").exists()


def test_missing_folders_are_named(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"there is no folder .*/nothing"):
        module(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"class folder in .*/empty"):
        module(tmp_path / "empty")
    (folder / "train").rename(folder / "training")
    with pytest.raises(UsageError, match="has val and test but no train"):
        module(folder)


def test_classes_that_do_not_fit_are_named(folder: Path):
    (folder / "train" / "dog").mkdir()
    with pytest.raises(UsageError, match="no valid file for the classes dog"):
        module(folder, "fit")
    (folder / "train" / "dog").rename(folder / "test" / "dog")
    module(folder, "fit")
    with pytest.raises(UsageError, match=r"/test has classes without training images: dog"):
        module(folder, "test")


def test_an_empty_part_is_named(folder: Path):
    for path in (folder / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match=r"there are no images in .*/val"):
        module(folder, "fit")


def test_a_share_without_images_is_refused(tmp_path: Path):
    root = write(tmp_path / "set" / "train", {"ant": 3}).parent
    with pytest.raises(UsageError, match=r"0.1 of 3 images in .* makes 0 for val and 3 for"):
        module(root, "fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 0}, "ImageFolder needs image_size >= 1, got 0"),
        ({"validation": 0.0}, "between 0 and 1, got validation=0.0"),
        ({"test": 1.0}, "test=1.0"),
        ({"std": (1.0, 0.0, 1.0)}, r"three above 0 as std, got .*std=\(1.0, 0.0, 1.0\)"),
        ({"mean": (1.0,)}, r"three numbers as mean .* got mean=\(1.0,\)"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        ImageFolder("anything", **{"image_size": SIZE, **options})
