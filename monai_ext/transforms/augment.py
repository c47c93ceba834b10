"""Augmentation of whole batches of slices.

MONAI's dictionary transforms work slice by slice and cost more than a small network's training step; a batch
needs one resampling and a few tensor operations here. Draws come from a given generator, so a run can be
resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BatchAugment:
    """Random geometry and grey values for a batch; every slice draws its own.

    Args:
        rotation: largest angle in degrees.
        scale: smallest and largest magnification.
        shear: largest shear along the rows, the tangent of its angle.
        shift: largest shift as a share of the side.
        flip: probability of mirroring left to right.
        vertical_flip: probability of mirroring top to bottom.
        gamma: smallest and largest exponent of the grey-value curve (log-uniform).
        contrast: largest relative change of contrast and, halved and in units of 255, of brightness.
        brightness: smallest and largest factor of all grey values.
        bias: largest relative strength of a smooth multiplicative field (MR's bias field).
        noise: largest standard deviation of Gaussian noise, in units of 255.
        blur: probability of a 3 x 3 blur.
        intensity: probability of each of the grey-value changes.
        invert: probability of turning dark into bright: outlines stay, the meaning of grey levels does not.
        elastic: factor of an elastic displacement in pixels: of noise in [-1, 1] that a Gaussian has smoothed (Simard
            et al. 2003).
        smoothness: standard deviation of that Gaussian in pixels.
    """

    rotation: float = 180.0
    scale: Sequence[float] = (0.75, 1.4)
    shear: float = 0.1
    shift: float = 0.08
    flip: float = 0.5
    vertical_flip: float = 0.0
    gamma: Sequence[float] = (0.6, 1.6)
    contrast: float = 0.25
    brightness: Sequence[float] = (1.0, 1.0)
    bias: float = 0.4
    noise: float = 0.06
    blur: float = 0.15
    intensity: float = 0.5
    invert: float = 0.0
    elastic: float = 0.0
    smoothness: float = 5.0

    def __call__(
        self, image: Tensor, label: Tensor, valid: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: [B, C, S, S] in [0, 255].
            label: [B, 1, S, S] integer values (nearest neighbour is used).
            valid: [B, 1, S, S], 1 where there is image.
            generator: source of randomness, on the CPU.

        Returns:
            The three, with the same shapes; outside the image everything is 0.
        """
        grid = self._grid(image, generator)
        image = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
        exact = torch.cat([label.float(), valid.float()], dim=1)
        label, valid = F.grid_sample(exact, grid, mode="nearest", align_corners=False).split(1, dim=1)
        if self.invert:
            turned = (torch.rand(len(image), generator=generator) < self.invert).to(image.device)
            image = torch.where(turned.view(-1, 1, 1, 1), 255 - image, image)
        return self._intensities(image / 255, generator).mul(255) * valid, label, valid

    def _grid(self, image: Tensor, generator: torch.Generator) -> Tensor:
        count = len(image)
        angle = _uniform(count, -1, 1, generator) * math.radians(self.rotation)
        size = torch.exp(_uniform(count, math.log(self.scale[0]), math.log(self.scale[1]), generator))
        shear = _uniform(count, -self.shear, self.shear, generator)
        mirror = 1 - 2 * (torch.rand(count, generator=generator) < self.flip).float()
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        shift = _uniform(2 * count, -2 * self.shift, 2 * self.shift, generator).view(count, 2)
        rows = torch.stack(
            [mirror * cos, -sin + shear * cos, shift[:, 0], mirror * sin, cos + shear * sin, shift[:, 1]]
        )
        if self.vertical_flip:  # what is off draws nothing, so that a training begun without it can be resumed
            turned = torch.rand(count, generator=generator) < self.vertical_flip
            rows[[1, 4]] *= 1 - 2 * turned.float()
        theta = rows.T.reshape(count, 2, 3).to(image)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        if self.elastic:
            grid = grid + self._displacement(image, generator)
        return grid

    def _displacement(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an elastic displacement, [B, S, S, 2], in the unit of the grid: half a side is 1."""
        side = image.shape[-1]
        noise = torch.rand((2 * len(image), 1, *image.shape[-2:]), generator=generator) * 2 - 1
        reach = min(round(4 * self.smoothness), side - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / self.smoothness) ** 2)
        kernel = kernel / kernel.sum()
        smooth = F.conv2d(F.pad(noise, (reach,) * 4, mode="reflect"), kernel.view(1, 1, 1, -1))
        smooth = F.conv2d(smooth, kernel.view(1, 1, -1, 1)).view(len(image), 2, *image.shape[-2:])
        return (2 * self.elastic / side * smooth).permute(0, 2, 3, 1).to(image)

    def _intensities(self, image: Tensor, generator: torch.Generator) -> Tensor:
        count, device = len(image), image.device

        def chosen() -> Tensor:
            return (torch.rand(count, generator=generator) < self.intensity).float()

        if tuple(self.brightness) != (1.0, 1.0):
            factor = _uniform(count, self.brightness[0], self.brightness[1], generator)
            factor = torch.where(chosen() > 0, factor, torch.ones(count))
            image = image * factor.view(-1, 1, 1, 1).to(device)
        log_gamma = _uniform(count, math.log(self.gamma[0]), math.log(self.gamma[1]), generator) * chosen()
        image = image.clamp(0, 1).pow(torch.exp(log_gamma).view(-1, 1, 1, 1).to(device))
        scale = 1 + _uniform(count, -self.contrast, self.contrast, generator) * chosen()
        offset = _uniform(count, -self.contrast, self.contrast, generator) * chosen() / 2
        image = (image - 0.5) * scale.view(-1, 1, 1, 1).to(device) + 0.5 + offset.view(-1, 1, 1, 1).to(device)
        field = torch.rand(count, 1, 4, 4, generator=generator) * 2 - 1
        field = 1 + self.bias * chosen().view(-1, 1, 1, 1) * field
        image = image * F.interpolate(field.to(device), image.shape[-2:], mode="bilinear", align_corners=True)
        blurred = torch.rand(count, generator=generator) < self.blur
        if bool(blurred.any()):
            image[blurred] = F.avg_pool2d(image[blurred], 3, stride=1, padding=1, count_include_pad=False)
        strength = _uniform(count, 0, self.noise, generator) * chosen()
        noise = torch.randn(image.shape[0], 1, *image.shape[2:], generator=generator).to(device)
        return (image + strength.view(-1, 1, 1, 1).to(device) * noise).clamp(0, 1)


@dataclass(frozen=True)
class ScribbleAugment:
    """Geometry of DMPLS's training: quarter turns and mirroring, or a small rotation; grey values stay.

    Half of the slices get a random number of quarter turns and are mirrored along a random axis; of the others, half
    are rotated by a whole number of degrees. What comes from outside is 0 in the image and ``ignore`` in the maps.
    The image is resampled bilinearly (nearest neighbour in the authors' code), the maps by nearest neighbour.

    Args:
        probability: of the first, and of the second where the first is not drawn.
        rotation: degrees, drawn from [-rotation, rotation).
        ignore: value of the maps where nothing is known.
    """

    probability: float = 0.5
    rotation: int = 20
    ignore: int = 255

    def __call__(self, image: Tensor, maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: [B, 1, S, S].
            maps: [B, M, S, S] integer values up to 255.
            generator: source of randomness, on the CPU.
        """
        images, all_maps = [], []
        for one, several in zip(image, maps, strict=True):
            first, second = torch.rand(2, generator=generator).tolist()
            turns, axis, angle = (int(torch.randint(n, (1,), generator=generator)) for n in (4, 2, 2 * self.rotation))
            if first < self.probability:
                one, several = (torch.rot90(x, turns, (1, 2)).flip(1 + axis) for x in (one, several))
            elif second < self.probability:
                one, several = self._rotate(one, several, angle - self.rotation)
            images.append(one)
            all_maps.append(several)
        return torch.stack(images), torch.stack(all_maps)

    def _rotate(self, image: Tensor, maps: Tensor, degrees: int) -> tuple[Tensor, Tensor]:
        radians = math.radians(degrees)
        cos, sin = math.cos(radians), math.sin(radians)
        theta = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]], device=image.device)
        grid = F.affine_grid(theta, [1, 1, *image.shape[1:]], align_corners=False)
        turned = F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
        shifted = maps[None].float() - self.ignore  # so that the zeros from outside mean "ignore"
        exact = F.grid_sample(shifted, grid, mode="nearest", align_corners=False)[0]
        return turned, (exact + self.ignore).round().to(maps.dtype)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
