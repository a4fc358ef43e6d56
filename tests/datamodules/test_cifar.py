"""CIFAR100 and CIFAR10 on files in the true formats, written here: no network."""

from __future__ import annotations

import functools
import hashlib
import pickle
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from cifar import write_cifar100
from idle import Idle, trainer
from lightning_opt.datamodules import CIFAR10, CIFAR100, _cifar_files
from lightning_opt.errors import UsageError

TRAIN, TEST = 60, 20
NOWHERE = "file:///nowhere/archive.tar.gz"


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, digest(folder / name)]

    def images(name: str, count: int, seed: int) -> list[str]:
        generator = np.random.default_rng(seed)
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": generator.integers(0, 10, count).tolist()})

    training = [images(f"data_batch_{i}", TRAIN // 5, seed=i) for i in range(1, 6)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", training)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [images("test_batch", TEST, seed=6)])
    name, md5 = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    expected = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(datasets.CIFAR10, "meta", expected)


SETS = [(CIFAR100, write_cifar100), (CIFAR10, write_cifar10)]


def place(source: Any, write: Callable[..., Any], root: Path, monkeypatch: Any) -> None:
    """A whole set in ``root``, and the archive of it in a folder ``server/`` beside it."""
    root.mkdir()
    write(root, monkeypatch)
    archive = root.parent / "server" / source.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / source.base_folder, source.base_folder)
    monkeypatch.setattr(source, "url", NOWHERE)
    monkeypatch.setattr(source, "tgz_md5", digest(archive))


@pytest.fixture(params=SETS, ids=["100", "10"])
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each data module with its set."""
    kind, write = request.param
    place(kind.source, write, tmp_path / "data", monkeypatch)
    return kind, tmp_path / "data"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place(datasets.CIFAR100, write_cifar100, tmp_path / "data", monkeypatch)
    return tmp_path / "data"


def module(kind: Any, root: Path, **options: Any) -> Any:
    data = kind(root, **{"batch_size": 8, "validation": 12, **options})
    data.prepare_data()
    return data


def test_shapes_and_sizes(either: Any):
    data = module(*either)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    assert labels.shape == (8,) and labels.dtype == torch.int64
    assert sum(len(batch[1]) for batch in data.train_dataloader()) == TRAIN - 12
    assert sum(len(batch[1]) for batch in data.val_dataloader()) == 12
    data.setup("test")
    assert sum(len(batch[1]) for batch in data.test_dataloader()) == TEST
    assert torch.equal(
        *(torch.cat([b[0] for b in loader()]) for loader in (data.test_dataloader,) * 2)
    )


@pytest.mark.parametrize("pipeline", ["tensor", "torchvision"])
def test_images_are_those_that_torchvision_reads(either: Any, pipeline: str):
    kind, root = either
    data = module(kind, root, pipeline=pipeline, num_workers=0)
    data.setup("test")
    images, labels = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    theirs = kind.source(root, train=False)
    raw = torch.from_numpy(theirs.data).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (kind.mean, kind.std))
    torch.testing.assert_close(images, (raw - mean) / std, rtol=1e-5, atol=1e-6)
    assert labels.tolist() == theirs.targets
    assert torch.equal((images * std + mean).mul(255).round().byte(), raw.mul(255).round().byte())


def test_statistics_are_those_in_use():
    assert CIFAR100.mean == (0.5071, 0.4865, 0.4409) and CIFAR100.std == (0.2673, 0.2564, 0.2762)
    assert CIFAR10.mean == (0.4914, 0.4822, 0.4465) and CIFAR10.std == (0.2470, 0.2435, 0.2616)


def test_training_images_are_cropped_and_mirrored(root: Path):
    """Each is one of the outcomes of torchvision's crop and flip of an image of its label."""
    data = module(CIFAR100, root, crop_padding=2)
    data.setup("fit")
    theirs = datasets.CIFAR100(root)
    padded = np.pad(theirs.data, ((0, 0), (2, 2), (2, 2), (0, 0)))
    std, mean = (np.array(numbers) for numbers in (data.std, data.mean))
    seen = set()
    for images, labels in data.train_dataloader():
        for image, label in zip(images, labels.tolist(), strict=True):
            pixels = np.rint((image.permute(1, 2, 0).numpy() * std + mean) * 255)
            seen.add(
                next(
                    (top, left, flip)
                    for i in np.flatnonzero(np.array(theirs.targets) == label)
                    for top in range(5)
                    for left in range(5)
                    for flip in (1, -1)
                    if (padded[i, top : top + 32, left : left + 32][:, ::flip] == pixels).all()
                )
            )
    assert len(seen) > 20


def test_validation_split_is_disjoint_and_seeded(root: Path):
    def held_out(seed: int) -> list[Any]:
        data = module(CIFAR100, root, split_seed=seed)
        data.setup("fit")
        train, val = (set(data._parts[part].rows.tolist()) for part in ("train", "val"))
        assert train | val == set(range(TRAIN)) and len(val) == 12 and not train & val
        return sorted(val)

    assert held_out(0) == held_out(0) != held_out(1)
    # The order is random too: an analysis takes the first training images.
    data = module(CIFAR100, root)
    data.setup("fit")
    assert data._parts["train"].rows.tolist() != sorted(data._parts["train"].rows.tolist())


def test_fit_reads_no_test_file_and_test_no_training_file(either: Any):
    kind, root = either
    training, testing = (
        [root / kind.source.base_folder / name for name, _ in files]
        for files in (kind.source.train_list, kind.source.test_list)
    )
    data = lambda: kind(root, batch_size=8, validation=12)  # noqa: E731
    for path in testing:
        path.rename(path.with_suffix(".away"))
    trainer().fit(Idle(), data())
    trainer().validate(Idle(), data())
    with pytest.raises(UsageError, match=rf"{testing[0].name} is missing"):
        trainer().test(Idle(), data())
    for path in testing:
        path.with_suffix(".away").rename(path)
    for path in training:
        path.unlink()
    trainer().test(Idle(), data())
    with pytest.raises(UsageError, match=rf"{training[0].name} is missing"):
        trainer().fit(Idle(), data())


def remove_all(root: Path) -> None:
    shutil.rmtree(root)


def break_off_download(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    (root / "cifar-100-python.tar.gz").write_bytes(b"half of it")


def break_off_unpacking(root: Path) -> None:
    whole = root / "cifar-100-python" / "train"
    whole.write_bytes(whole.read_bytes()[:1000])
    (root / "cifar-100-python" / "meta").unlink()


def lose_the_names_only(root: Path) -> None:
    (root / "cifar-100-python" / "meta").unlink()


class Handler(SimpleHTTPRequestHandler):
    """Serves files without a word; of an address with ``half`` in it only a half."""

    def log_message(self, *args: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if "half" in self.path else content)


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the folder with the archive."""
    handler = functools.partial(Handler, directory=root.parent / "server")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "*")
        yield f"http://127.0.0.1:{http.server_port}/cifar-100-python.tar.gz"
        http.shutdown()
        thread.join()


UNPACKING = pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter extracted tar")


@UNPACKING
@pytest.mark.parametrize(
    "damage", [remove_all, break_off_download, break_off_unpacking, lose_the_names_only]
)
def test_what_is_not_whole_is_downloaded(root: Path, server: str, damage: Any, monkeypatch):
    damage(root)
    monkeypatch.setattr(datasets.CIFAR100, "url", server)
    data = module(CIFAR100, root)
    data.setup()
    assert len(data._parts["train"]) == TRAIN - 12 and len(data._parts["test"]) == TEST


@UNPACKING
def test_a_download_that_breaks_off_is_reported_and_repeated(root: Path, server: str, monkeypatch):
    remove_all(root)
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{server}?half")
    with pytest.raises(UsageError, match=r"tar.gz does not have its checksum\. Download http"):
        CIFAR100(root).prepare_data()
    monkeypatch.setattr(datasets.CIFAR100, "url", server)
    module(CIFAR100, root).setup()


@UNPACKING
def test_an_archive_that_was_put_there_is_unpacked(root: Path):
    server = root.parent / "server" / "cifar-100-python.tar.gz"
    shutil.rmtree(root)
    root.mkdir()
    shutil.move(server, root)
    module(CIFAR100, root).setup()


def test_whole_data_need_no_network_and_no_writing(root: Path):
    before = sorted(root.rglob("*"))
    module(CIFAR100, root).setup()
    assert sorted(root.rglob("*")) == before


def test_damaged_data_say_what_where_and_how(root: Path):
    break_off_unpacking(root)
    (root / "cifar-100-python.tar.gz").write_bytes(b"half of it")
    with pytest.raises(UsageError) as error:
        CIFAR100(root).prepare_data()
    message = str(error.value)
    for words in (
        f"CIFAR100 is not whole in {root}",
        "could not be downloaded",
        "/nowhere/archive.tar.gz",
        "cifar-100-python/meta is missing",
        "cifar-100-python/train does not have its checksum",
        "cifar-100-python.tar.gz does not have its checksum",
        f"Download {NOWHERE}",
        f"MD5 {datasets.CIFAR100.tgz_md5}",
        "--data.root",
    ):
        assert words in message
    assert "cifar-100-python/test" not in message
    with pytest.raises(UsageError, match="meta is missing"):
        CIFAR100(root).setup("fit")


def test_without_a_trainer_all_files_are_prepared(root: Path):
    for name in ("test", "train"):
        path = root / "cifar-100-python" / name
        path.rename(path.with_suffix(".away"))
        with pytest.raises(UsageError, match=f"100-python/{name} is missing"):
            CIFAR100(root).prepare_data()
        path.with_suffix(".away").rename(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"not whole in .*/file/data and could not be downloaded"):
        CIFAR100(tmp_path / "file" / "data").prepare_data()


def test_one_of_several_downloads(root: Path, monkeypatch):
    shutil.rmtree(root / "cifar-100-python")
    archive = root.parent / "server" / "cifar-100-python.tar.gz"
    started = []

    def download(*args: Any, **kwargs: Any) -> None:
        started.append(threading.get_ident())
        time.sleep(0.2)
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")

    monkeypatch.setattr(_cifar_files, "download_and_extract_archive", download)
    threads = [threading.Thread(target=module, args=(CIFAR100, root)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(started) == 1
    module(CIFAR100, root).setup()


def test_setup_reads_once(root: Path):
    data = module(CIFAR100, root)
    data.setup("fit")
    data.setup("test")
    shutil.rmtree(root)
    data.setup("fit")
    data.setup("validate")
    data.setup("test")


@pytest.mark.parametrize("kind", [CIFAR100, CIFAR10])
def test_options_out_of_range_are_named(kind: Any):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs validation >= 1, got 0"):
        kind(validation=0)


def test_a_validation_set_that_leaves_nothing_is_refused(root: Path):
    with pytest.raises(ValueError, match=f"has {TRAIN} training images; validation=60"):
        module(CIFAR100, root, validation=TRAIN).setup("fit")
