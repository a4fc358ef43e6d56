"""What all data modules of images share, on images that tell what was done to them."""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch._subclasses import FakeTensorMode

from idle import Idle, trainer
from lightning_opt.datamodules import _images
from lightning_opt.datamodules._augmentation import Normalization, crop_and_flip
from lightning_opt.datamodules._images import ImageData
from lightning_opt.datamodules._pixels import PixelBatches, Pixels
from lightning_opt.lightning_cli import OptLightningCLI

COUNT, HELD_OUT, SIDE, PADDING = 1500, 100, 6, 1
OUTCOMES = 2 * (2 * PADDING + 1) ** 2


class Coded(ImageData):
    """Copies of one image whose pixels all differ, labeled by their place."""

    def __init__(self, **options: Any) -> None:
        base = {"mean": [0.0], "std": [1 / 255], "batch_size": 100}
        augmentation = {"crop_padding": PADDING, "flip": True}
        super().__init__(**{**base, **augmentation, **options})

    def read_training(self) -> Any:
        image = torch.arange(1, SIDE**2 + 1, dtype=torch.uint8).view(1, SIDE, SIDE)
        images, rows = image.repeat(COUNT, 1, 1, 1), torch.arange(COUNT)
        return self.in_memory(images, torch.arange(COUNT), rows[HELD_OUT:], rows[:HELD_OUT])

    def read_test(self) -> Any:
        raise AssertionError("the test set was touched")


def module(**options: Any) -> Coded:
    data = Coded(**options)
    data.setup("fit")
    return data


def epoch(data: ImageData) -> tuple[Tensor, Tensor]:
    images, labels = zip(*data.train_dataloader(), strict=True)
    return torch.cat(images), torch.cat(labels)


def outcomes(data: ImageData) -> list[tuple[int, ...]]:
    # Pixels come back as the numbers they were, up to rounding.
    return [tuple(image.flatten().round().int().tolist()) for image in epoch(data)[0]]


PIPELINES = pytest.mark.parametrize("pipeline", ["tensor", "torchvision"])


def test_both_pipelines_have_the_same_distribution():
    """The same set of outcomes, and each as often as chance has it (1 in 10⁶ to fail)."""
    torch.manual_seed(0)
    seen = {}
    for pipeline in ("tensor", "torchvision"):
        found = outcomes(module(pipeline=pipeline, num_workers=0))
        seen[pipeline] = set(found)
        expected = len(found) / OUTCOMES
        counts = [found.count(outcome) for outcome in seen[pipeline]]
        statistic = sum((count - expected) ** 2 for count in counts) / expected
        assert len(counts) == OUTCOMES
        assert chi2.sf(statistic, OUTCOMES - 1) > 1e-6
        # Not in turn: the outcome of an image says nothing about the next one's.
        pairs = len(set(itertools.pairwise(found)))
        assert abs(pairs / OUTCOMES**2 - (1 - (1 - OUTCOMES**-2) ** len(found))) < 0.05
    assert seen["tensor"] == seen["torchvision"]


@PIPELINES
def test_batches_are_the_same_with_workers_and_without(pipeline: str):
    torch.manual_seed(3)
    one, two = (epoch(module(pipeline=pipeline, num_workers=workers)) for workers in (0, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


@PIPELINES
def test_two_processes_make_the_images_that_one_makes(pipeline: str):
    def images(rank: int, world: int) -> list[tuple[int, list[float]]]:
        torch.manual_seed(3)
        data = module(pipeline=pipeline, num_workers=0)
        progress = SimpleNamespace(current=SimpleNamespace(processed=0))
        loop = SimpleNamespace(epoch_progress=progress)
        data.trainer = SimpleNamespace(
            world_size=world, global_rank=rank, fit_loop=loop, overfit_batches=0
        )
        pixels, labels = epoch(data)
        return list(zip(labels.tolist(), pixels.flatten(1).tolist(), strict=True))

    assert sorted(images(0, 2) + images(1, 2)) == sorted(images(0, 1))


@PIPELINES
def test_batches_follow_the_seed_alone(pipeline: str):
    def batches(seed: int, drawn: int) -> Tensor:
        torch.manual_seed(seed)
        loader = module(pipeline=pipeline, num_workers=0).train_dataloader()
        torch.rand(drawn)
        return next(iter(loader))[0]

    assert torch.equal(batches(0, drawn=0), batches(0, drawn=5))
    assert not torch.equal(batches(0, drawn=0), batches(1, drawn=0))


@PIPELINES
def test_the_random_state_stays_as_it_is(pipeline: str):
    dataset = module(pipeline=pipeline).train_dataloader().dataset
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dataset[torch.tensor([[0, 7], [1, 8]])]
    assert torch.equal(torch.get_rng_state(), before)


@PIPELINES
def test_an_image_depends_on_its_own_bits_only(pipeline: str):
    dataset = module(pipeline=pipeline).train_dataloader().dataset
    draws = torch.stack([torch.arange(40), torch.arange(40) ** 7 + 1], dim=1)
    images, labels = dataset[draws]
    order = torch.randperm(40)[:9]
    some, their_labels = dataset[draws[order]]
    assert torch.equal(some, images[order]) and torch.equal(their_labels, labels[order])


@PIPELINES
def test_bits_decide_between_all_outcomes_of_an_image(pipeline: str):
    dataset = module(pipeline=pipeline).train_dataloader().dataset
    bits = torch.randint(2**62, (400,), generator=torch.Generator().manual_seed(0))
    images, _ = dataset[torch.stack([torch.full((400,), 7), bits], dim=1)]
    assert len(images.unique(dim=0)) == OUTCOMES


@PIPELINES
def test_only_training_images_are_augmented(pipeline: str):
    data = module(pipeline=pipeline, num_workers=0)
    original = torch.arange(1.0, SIDE**2 + 1).view(1, SIDE, SIDE)
    for loader in (data.val_dataloader(), data.analysis_dataloader()):
        for images, _ in loader:
            torch.testing.assert_close(images, original.expand_as(images))
    assert len(set(outcomes(data))) == OUTCOMES


def test_training_and_validation_images_share_nothing():
    data = module()
    labels = [label for _, batch in data.val_dataloader() for label in batch.tolist()]
    assert labels == list(range(HELD_OUT))
    assert sorted(epoch(data)[1].tolist()) == list(range(HELD_OUT, COUNT))


def test_sampling_with_replacement_repeats_images():
    labels = epoch(module(sampling="with_replacement"))[1]
    assert len(labels) == COUNT - HELD_OUT
    share = len(labels.unique()) / len(labels)
    assert abs(share - (1 - 1 / torch.e)) < 0.05
    assert labels.min() >= HELD_OUT


@PIPELINES
def test_analysis_sees_the_first_images_whatever_the_seed(pipeline: str):
    def first(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return next(iter(module(pipeline=pipeline).analysis_dataloader()))[1].tolist()

    assert first(0) == first(1) == list(range(HELD_OUT, HELD_OUT + 100))


def test_the_test_set_is_touched_by_test_and_predict_only():
    trainer().fit(Idle(), Coded())
    trainer().validate(Idle(), Coded())
    for stage in ("test", "predict"):
        with pytest.raises(AssertionError, match="the test set was touched"):
            getattr(trainer(), stage)(Idle(), Coded())


@pytest.mark.parametrize(
    ("device", "free", "options", "wanted"),
    [
        ("cuda:1", 400, {}, "cuda:1"),
        ("cuda:1", 399, {}, "cpu"),
        ("cuda:1", 400, {"num_workers": 1}, "cpu"),
        ("cuda:1", 400, {"pipeline": "torchvision", "num_workers": 0}, "cpu"),
        ("mps", 400, {}, "cpu"),
    ],
)
def test_images_are_kept_where_they_fit(device, free, options, wanted, monkeypatch):
    monkeypatch.setattr(_images, "available", {torch.device(device): free}.__getitem__)
    data = Coded(**options)
    assert data._device(100) == torch.device("cpu")  # no trainer, nobody to ask
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert data._device(100) == torch.device(wanted)


def test_batches_are_made_where_the_images_are():
    """As on an accelerator, which refuses tensors of another device; here nothing is computed."""
    with FakeTensorMode():
        images = torch.zeros(5, 3, SIDE, SIDE, dtype=torch.uint8, device="cuda")
        pixels = Pixels(images, torch.zeros(5, dtype=torch.int64, device="cuda"), torch.arange(3))
        crop = partial(crop_and_flip, padding=PADDING)
        dataset = PixelBatches(pixels, Normalization([0.5] * 3, [0.2] * 3), crop)
        batch, labels = dataset[torch.zeros(2, 2, dtype=torch.int64)]
    assert batch.device.type == labels.device.type == "cuda"
    assert batch.shape == (2, 3, SIDE, SIDE) and batch.dtype == torch.float32


def test_images_and_labels_go_to_the_same_place():
    data = Coded()
    data._device = lambda size: torch.device("meta")
    data.setup("fit")
    train = data._parts["train"]
    devices = {tensor.device.type for tensor in (train.images, train.labels, train.rows)}
    assert devices == {"meta"}


@PIPELINES
def test_a_flip_can_be_left_out(pipeline: str):
    data = module(pipeline=pipeline, flip=False, num_workers=0)
    assert len(set(outcomes(data))) == OUTCOMES / 2


def test_parts_share_the_images():
    train, val = module()._parts.values()
    assert train.images.data_ptr() == val.images.data_ptr()


def test_without_augmentation_bytes_are_only_normalized():
    pixels = Pixels(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3), torch.tensor([2]))
    images, labels = PixelBatches(pixels, lambda images: images)[torch.tensor([[0, 5]])]
    assert labels.tolist() == [2] and images.dtype == torch.uint8
    data = module(crop_padding=0, flip=False)
    assert len(set(outcomes(data))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "Coded needs batch_size >= 1, got 0"),
        ({"crop_padding": -1}, "crop_padding >= 0, got -1"),
        ({"num_workers": -1}, "num_workers >= 0, got -1"),
        ({"pipeline": "fast"}, "pipeline is tensor or torchvision, got fast"),
        ({"sampling": True}, "sampling is without_replacement or with_replacement, got True"),
    ],
)
def test_options_out_of_range_are_named(options, words: str):
    with pytest.raises(ValueError, match=words):
        Coded(**options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CIFAR100", {"pipeline": "torchvision", "sampling": "with_replacement"}),
        ("CIFAR10", {"flip": False, "num_workers": 1}),
        ("ImageFolder", {"root": "anything", "image_size": 64, "mean": [0.1, 0.2, 0.3]}),
        ("Digits", {"sampling": "with_replacement"}),
    ],
)
def test_command_line_takes_the_options(name: str, options):
    config = {
        "seed_everything": 0,
        "model": {"class_path": "pytorch_lightning.demos.DemoModel"},
        "data": {"class_path": f"lightning_opt.datamodules.{name}", "init_args": options},
    }
    overrides = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    cli = OptLightningCLI(config, run=False, trainer_overrides=overrides)
    assert type(cli.datamodule).__name__ == name
    assert cli.datamodule._replacement == (options.get("sampling") == "with_replacement")
