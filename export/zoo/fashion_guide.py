"""The classifier that guides the shipped network: Fashion-MNIST classes from noisy pictures at any time.

Three 3x3 convolutions behind a pixel-unshuffle stem, at 14x14 and 7x7, modulated by time as in fashion.py; 0.16 M
parameters. It is trained on x_t = alpha_t x_0 + sigma_t eps of `linear:1000`, as the classifiers of arXiv 2105.05233
are, and knows nothing else of the diffusion network. SiLU and no pooling by maxima: its gradient is what is used.

Train it with `python -m pfdiff.export.zoo.fashion_guide --data DIR`. The shipped weights took about 2,100 steps; of
2,000 test pictures they name the class of 89 % at t = 0, 88 % at 200, 79 % at 400, 51 % at 600 and 27 % at 800.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ...engine.errors import EngineFileError
from .fashion import CLASSES, FREQUENCIES, angular_frequencies
from .fashion_data import load_fashion

WIDTHS = (48, 96)
EMBEDDING = 64
WEIGHTS = Path(__file__).parent / "fashion_guide.safetensors"


class Stage(nn.Module):
    """Normalised 3x3 convolution, modulated by the time's embedding, SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, outputs)
        self.modulation = nn.Linear(EMBEDDING, 2 * outputs)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        return functional.silu(self.norm(self.conv(x)) * (1 + scale) + shift)


class FashionGuide(nn.Module):
    """forward(x_t [B, 1, 28, 28], t [B] in 0..999) -> logits [B, 10]."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        wide, deep = WIDTHS
        self.register_buffer("frequencies", angular_frequencies(), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, EMBEDDING), nn.SiLU())
        self.stages = nn.ModuleList([Stage(4, wide), Stage(wide, deep, 2), Stage(deep, deep)])
        self.head = nn.Linear(deep, len(CLASSES))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t.to(torch.float32)[:, None] * self.frequencies
        embedding = self.time(torch.cat((angles.cos(), angles.sin()), dim=1))
        y = functional.pixel_unshuffle(x, 2)
        for stage in self.stages:
            y = stage(y, embedding)
        return self.head(y.mean((2, 3)))


def load_guide() -> FashionGuide:
    """The shipped weights, in evaluation mode, float32. Raises EngineFileError when they are missing."""
    model = FashionGuide()
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    except FileNotFoundError:
        raise EngineFileError(
            f"the weights {WEIGHTS.name} are missing from this installation; install pfdiff again, "
            "or train them with python -m pfdiff.export.zoo.fashion_guide"
        ) from None
    return model.eval()


@torch.inference_mode()
def accuracy(model: FashionGuide, x_0: Tensor, label: Tensor, t: int, alpha_t: Tensor, sigma_t: Tensor) -> float:
    """Share of pictures [n, 1, 28, 28], noised to time t with seed 0, that are given their label."""
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    x_t = alpha_t * x_0 + sigma_t * eps
    answers = [model(part, torch.full((len(part),), float(t))).argmax(1) for part in x_t.split(500)]
    return float((torch.cat(answers) == label).float().mean())


def train(data: Path, seconds: float, batch: int, seed: int) -> FashionGuide:
    """AdamW for `seconds` of time, its rate falling to 0 with the clock; half of the times uniform."""
    from .train_fashion import draw_times, linear_schedule

    torch.manual_seed(seed)
    pixels, labels = load_fashion(data)
    x_0_all, label_all = torch.from_numpy(pixels.copy())[:, None], torch.from_numpy(labels.copy()).long()
    alphas, sigmas = linear_schedule()
    log_ratio = (sigmas / alphas).log()
    model = FashionGuide()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(seed)
    start, step, running = time.perf_counter(), 0, 0.0
    while (gone := (time.perf_counter() - start) / seconds) < 1:
        # Pictures at random times.
        index = torch.randint(len(x_0_all), (batch,), generator=generator)
        x_0 = x_0_all[index].float() / 127.5 - 1
        t = draw_times(batch, log_ratio, generator)
        t[::2] = torch.randint(len(alphas), t[::2].shape, generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        x_t = alphas[t, None, None, None] * x_0 + sigmas[t, None, None, None] * eps
        # One step.
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100, 2 * (1 - gone))
        loss = functional.cross_entropy(model(x_t, t), label_all[index])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, running = step + 1, 0.98 * running + 0.02 * loss.item()
        if step % 250 == 0:
            print(f"step {step}, {gone:.0%} of the time: loss {running / (1 - 0.98**step):.3f}", flush=True)
    return model.eval()


if __name__ == "__main__":
    from .train_fashion import linear_schedule

    parser = argparse.ArgumentParser(description="Train the classifier that guides the fashion network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Fashion-MNIST")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    guide = train(options.data, options.seconds, options.batch, options.seed)
    save_file({name: value.half().contiguous() for name, value in guide.state_dict().items()}, options.out)
    test_pixels, test_labels = load_fashion(options.data, "test")
    pictures = torch.from_numpy(test_pixels.copy())[:2000, None].float() / 127.5 - 1
    answers = torch.from_numpy(test_labels.copy())[:2000].long()
    schedule = linear_schedule()
    for when in (0, 100, 200, 300, 400, 500, 600, 800):
        share = accuracy(guide, pictures, answers, when, schedule[0][when], schedule[1][when])
        print(f"test accuracy at t = {when}: {share:.3f}")
