"""The network of the engine beside this file, which was built at commit e9258ea. Neither may change."""

import torch
from torch import nn


class Net(nn.Module):
    """x [B, 2, 5, 7], t [B] -> eps of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * 0.5 + torch.tanh(self.conv(x)) * (t / 1000)[:, None, None, None]


def make() -> nn.Module:
    torch.manual_seed(3)
    return Net()
