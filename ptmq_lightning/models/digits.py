"""A small residual network with BatchNorm for 16x16 digits: the embedded default's float network.

The shape of a CIFAR ResNet (He et al. 2016) with 8 thousand parameters, and ResNet-18's module names. Small on
purpose: its float accuracy is about 99 %, and nearest rounding to 3 bits still costs it several points.
"""

from __future__ import annotations

from torch import Tensor, nn

INPUT_SIZE = (3, 16, 16)
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


class ResidualBlock(nn.Module):
    """ReLU(bn2(conv2(ReLU(bn1(conv1(x))))) + shortcut(x)); x (B, C, H, W) -> (B, O, H/stride, W/stride)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.downsample(x))


class DigitsResNet(nn.Module):
    """Images (B, 3, 16, 16) -> logits (B, num_classes)."""

    def __init__(self, num_classes: int = 10, widths: tuple[int, int, int] = (8, 12, 16)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        self.layer1 = nn.Sequential(ResidualBlock(widths[0], widths[0], 1))
        self.layer2 = nn.Sequential(ResidualBlock(widths[0], widths[1], 2))
        self.layer3 = nn.Sequential(ResidualBlock(widths[1], widths[2], 2))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))  # (B, 8, 16, 16)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 16, 4, 4)
        return self.fc(self.flatten(self.global_pool(x)))
