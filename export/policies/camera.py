"""LeRobot's picture encoder: resize, crop, a ResNet without its head, spatial softmax, one linear layer.

Resnets: He et al., arXiv 1512.03385, of basic blocks (18 and 34 layers). Spatial softmax: Finn et al., arXiv
1509.06113, the expected place of each feature. Names of the weights are LeRobot's, whose backbone is torchvision's cut
at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...engine.errors import InputError

LAYERS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


@dataclass(frozen=True)
class CameraOptions:
    """picture: [C, H, W]; resize, crop: [H, W] or None; group_norm: in place of batch normalisation."""

    picture: tuple[int, int, int]
    backbone: str
    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    group_norm: bool
    keypoints: int


def _norm(channels: int, given: CameraOptions) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels) if given.group_norm else nn.BatchNorm2d(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a skip: [B, C, H, W] -> [B, D, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, given: CameraOptions) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(outputs, given)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = _norm(outputs, given)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs, given))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def backbone(given: CameraOptions) -> nn.Sequential:
    """[B, C, H, W] -> [B, 512, H / 32, W / 32]. Raises InputError for another backbone."""
    if given.backbone not in LAYERS:
        raise InputError(f"vision_backbone '{given.backbone}', expected one of {', '.join(LAYERS)}")
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        _norm(64, given),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    width = 64
    for level, count in enumerate(LAYERS[given.backbone]):
        wider, blocks = 64 << level, []
        for n in range(count):
            blocks.append(BasicBlock(width, wider, 2 if level and n == 0 else 1, given))
            width = wider
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers)


class SpatialSoftmax(nn.Module):
    """Features [B, C, H, W] -> the expected place of each of K maps, [B, K, 2] in [-1, 1]."""

    pos_grid: Tensor

    def __init__(self, channels: int, size: tuple[int, int], keypoints: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        self.register_buffer("pos_grid", torch.zeros(size[0] * size[1], 2))  # in the saved weights

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(self.nets(x).flatten(2), dim=-1) @ self.pos_grid


class Camera(nn.Module):
    """forward(picture [B, C, H, W] in [0, 1], normalised) -> features [B, 2 K]."""

    rows: Tensor
    columns: Tensor

    def __init__(self, given: CameraOptions) -> None:
        super().__init__()
        _, height, width = given.picture
        size = given.resize or (height, width)
        self.resized = given.resize is not None
        if given.resize is not None:  # separable and linear, so it is a product from the left and one from the right
            self.register_buffer("rows", _resampling(height, size[0]), persistent=False)
            self.register_buffer("columns", _resampling(width, size[1]).T.contiguous(), persistent=False)
        crop = given.crop or size
        if crop[0] > size[0] or crop[1] > size[1]:
            raise InputError(f"crop_shape {list(crop)} is larger than the picture {list(size)}")
        self.top, self.left = round((size[0] - crop[0]) / 2.0), round((size[1] - crop[1]) / 2.0)
        self.crop = crop
        self.backbone = backbone(given)
        with torch.no_grad():
            _, channels, *place = self.backbone.eval()(torch.zeros(1, 3, *crop)).shape
        self.pool = SpatialSoftmax(channels, (place[0], place[1]), given.keypoints)
        self.out = nn.Linear(2 * given.keypoints, 2 * given.keypoints)

    def forward(self, x: Tensor) -> Tensor:
        if self.resized:
            x = self.rows @ x @ self.columns
        x = x[:, :, self.top : self.top + self.crop[0], self.left : self.left + self.crop[1]]
        return functional.relu(self.out(self.pool(self.backbone(x)).flatten(1)))


def _resampling(length: int, to: int) -> Tensor:
    """[to, length]: bilinear, antialiased where it shrinks, as torchvision's Resize of tensors."""
    each = torch.eye(length)[None, None]
    made = functional.interpolate(each, (to, length), mode="bilinear", antialias=True, align_corners=False)
    return made[0, 0].contiguous()
