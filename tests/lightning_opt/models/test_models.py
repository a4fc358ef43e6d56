"""The networks: sizes that are known, shapes, and refusals."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.transforms import v2

from lightning_opt.models import (
    VGG11,
    EfficientNetB0,
    EfficientNetB2,
    InceptionV3,
    ResNet18,
    ShallowCNN,
)
from lightning_opt.models._input import ImageInput


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_the_meta_device(make, *args, **options) -> nn.Module:
    """Shapes without values: 133M of them take a second."""
    with torch.device("meta"):
        return make(*args, **options)


def test_parameter_counts():
    # 16·(9+1) + 32·(16·9+1) + 10·(32·2·2+1)
    assert parameters(ShallowCNN()) == 160 + 4_640 + 1_290
    # The thesis' 11.7M are those of the ImageNet head and stem.
    assert parameters(ResNet18(1000, stem="imagenet")) == 11_689_512
    assert parameters(ResNet18(100, stem="cifar")) == 11_220_132


@pytest.mark.parametrize(
    ("make", "count", "features"),
    [
        (EfficientNetB0, 5_288_548, 1280),
        (EfficientNetB2, 9_109_994, 1408),
        (InceptionV3, 27_161_264, 2048 + 768),
        (VGG11, 132_863_336, 4096),
    ],
)
def test_parameter_counts_are_those_printed_in_the_thesis(make, count: int, features: int):
    """At ImageNet's 1,000 classes; at 100, there are 900 rows less in each head, with its bias."""
    assert parameters(on_the_meta_device(make, 1000)) == count
    heads = 2 if make is InceptionV3 else 1
    assert parameters(on_the_meta_device(make)) == count - 900 * (features + heads)


@pytest.mark.parametrize(
    ("make", "theirs", "options", "size"),
    [
        (lambda: ResNet18(10, stem="imagenet"), "resnet18", {}, 64),
        (lambda: EfficientNetB0(10, stem="imagenet"), "efficientnet_b0", {}, 64),
        (lambda: EfficientNetB2(10, stem="imagenet"), "efficientnet_b2", {}, 64),
        (lambda: InceptionV3(10), "inception_v3", {"init_weights": True}, 75),
        pytest.param(lambda: VGG11(10), "vgg11", {}, 64, marks=pytest.mark.slow),
    ],
)
def test_it_is_torchvisions_network(make, theirs: str, options, size: int):
    """The same seed gives the same weights, under the same names, and the same logits."""
    torch.manual_seed(0)
    ours = make().eval()
    torch.manual_seed(0)
    network = getattr(torchvision.models, theirs)(num_classes=10, **options).eval()
    assert list(ours.state_dict()) == list(network.state_dict())
    assert [str(part).replace("_Auxiliary", "InceptionAux") for part in ours.children()] == [
        str(part) for part in network.children()
    ]
    images = torch.randn(1, 3, size, size)
    assert torch.equal(ours(images), network(images))


def test_inception_is_torchvisions_in_training_too():
    torch.manual_seed(0)
    ours = InceptionV3(10)
    network = torchvision.models.inception_v3(num_classes=10, init_weights=True)
    network.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 299, 299)
    outputs = []
    for each in (ours, network):
        torch.manual_seed(1)  # of dropout
        outputs.append(each(images))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].aux_logits, outputs[1].aux_logits)


@pytest.mark.parametrize("side", [3, 5, 16])
def test_auxiliary_head_takes_maps_that_are_too_small_for_torchvisions(side: int):
    """3 is that of 75 pixels, 16 that of 298."""
    head = InceptionV3(7).AuxLogits
    logits = head(torch.randn(2, 768, side, side))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_inception_gives_both_logits_in_training_and_one_in_evaluation():
    network = InceptionV3(7, image_size=75)
    output = network(torch.zeros(2, 3, 32, 32))
    assert output.logits.shape == output.aux_logits.shape == (2, 7)
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_cifar_stem_of_resnet_keeps_the_resolution():
    network = ResNet18(stem="cifar").eval()
    stem = network.maxpool(network.relu(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32)))))
    assert stem.shape == (1, 64, 32, 32)


@pytest.mark.parametrize("make", [EfficientNetB0, EfficientNetB2])
@pytest.mark.parametrize(("stem", "side"), [("cifar", 2), ("imagenet", 1)])
def test_stem_of_efficientnet_sets_the_resolution(make, stem: str, side: int):
    network = make(stem=stem).eval()
    assert network.features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (side, side)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side", [32, 100])
def test_images_are_resized_as_torchvision_would(side: int, channels_last: bool):
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = v2.functional.resize(images, [48, 48], antialias=True)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ImageInput("Net", 48)(images), expected, rtol=1e-5, atol=1e-5)


def test_images_of_the_right_size_are_not_copied():
    images = torch.randn(2, 3, 48, 40)
    assert ImageInput("Net")(images) is images
    assert ImageInput("Net", 48)(images[..., :40, :]).shape == (2, 3, 48, 48)
    square = torch.randn(2, 3, 48, 48)
    assert ImageInput("Net", 48)(square) is square


@pytest.mark.parametrize(
    "make",
    [
        ResNet18,
        EfficientNetB0,
        EfficientNetB2,
        InceptionV3,
        pytest.param(VGG11, marks=pytest.mark.slow),
    ],
)
def test_the_first_convolution_sees_the_resized_images(make):
    network = make(10, image_size=80).eval()
    seen: list[tuple[int, ...]] = []
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    network(torch.randn(1, 3, 32, 32))
    assert seen == [(1, 3, 80, 80)]


@pytest.mark.parametrize("size", [1, 4, 7, 8, 9, 32])
def test_shallow_takes_any_size(size: int):
    network = ShallowCNN(7, in_channels=3, image_size=size, width=4)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ShallowCNN(0), "ShallowCNN needs num_classes >= 1, got 0"),
        (lambda: ShallowCNN(image_size=0), "image_size >= 1, got 0"),
        (lambda: ShallowCNN(width=0), "width >= 1, got 0"),
        (lambda: ResNet18(0), "ResNet18 needs num_classes >= 1, got 0"),
        (lambda: ResNet18(stem="cifr"), "ResNet18's stem is 'cifar' or 'imagenet', got 'cifr'"),
        (lambda: ResNet18(image_size=0), "ResNet18 needs image_size >= 1, got 0"),
        (lambda: EfficientNetB0(0), "EfficientNetB0 needs num_classes >= 1, got 0"),
        (lambda: EfficientNetB2(stem=""), "EfficientNetB2's stem is 'cifar' or 'imagenet', got ''"),
        (lambda: EfficientNetB2(image_size=0), "EfficientNetB2 needs image_size >= 1, got 0"),
        (lambda: InceptionV3(0), "InceptionV3 needs num_classes >= 1, got 0"),
        (lambda: InceptionV3(image_size=74), "InceptionV3 needs image_size >= 75, got 74"),
        (lambda: VGG11(0), "VGG11 needs num_classes >= 1, got 0"),
        (lambda: VGG11(image_size=31), "VGG11 needs image_size >= 32, got 31"),
    ],
)
def test_sizes_out_of_range_are_named(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(("make", "least"), [(InceptionV3, 75), (VGG11, 32)])
def test_images_that_are_too_small_are_refused_with_the_way_out(make, least: int):
    network = on_the_meta_device(make).eval()
    with torch.device("meta"):
        assert network(torch.zeros(1, 3, least, least)).shape == (1, 100)
        words = f"from {least} × {least} pixels, got {least} × {least - 1}: pass image_size={least}"
        with pytest.raises(ValueError, match=words):
            network(torch.zeros(1, 3, least, least - 1))
