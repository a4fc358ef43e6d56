"""The networks: sizes that are known, shapes, and refusals."""

from __future__ import annotations

import pytest
import torch

from lightning_opt.models import ResNet18, ShallowCNN


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts():
    # 16·(9+1) + 32·(16·9+1) + 10·(32·2·2+1)
    assert parameters(ShallowCNN()) == 160 + 4_640 + 1_290
    # The thesis' 11.7M are those of the ImageNet head and stem.
    assert parameters(ResNet18(1000, stem="imagenet")) == 11_689_512
    assert parameters(ResNet18(100, stem="cifar")) == 11_220_132


def test_imagenet_stem_is_torchvisions_network():
    """The same seed gives the same weights as torchvision's own constructor."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    ours = ResNet18(10, stem="imagenet").eval()
    torch.manual_seed(0)
    theirs = resnet18(num_classes=10).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_cifar_stem_keeps_the_resolution():
    network = ResNet18(stem="cifar").eval()
    stem = network.maxpool(network.relu(network.bn1(network.conv1(torch.zeros(1, 3, 32, 32)))))
    assert stem.shape == (1, 64, 32, 32)


@pytest.mark.parametrize("size", [1, 4, 7, 8, 9, 32])
def test_shallow_takes_any_size(size: int):
    network = ShallowCNN(7, in_channels=3, image_size=size, width=4)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ShallowCNN(0), "num_classes >= 1, got 0"),
        (lambda: ShallowCNN(image_size=0), "image_size >= 1, got 0"),
        (lambda: ShallowCNN(width=0), "width >= 1, got 0"),
        (lambda: ResNet18(0), "num_classes >= 1, got 0"),
        (lambda: ResNet18(stem="cifr"), "'cifar' or 'imagenet', got 'cifr'"),
    ],
)
def test_sizes_out_of_range_are_named(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()
