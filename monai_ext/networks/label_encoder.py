"""The label encoder of APSCL (§3.2, f_phi): features of a mask, for training alone."""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = (32, 64, 128, 256)
"""Of the layers before the last."""


class LabelEncoder(nn.Module):
    """Five 3 x 3 convolutions, three of them strided: mask [B, 1, S, S] in [0, 1] -> [B, channels, S / 8, S / 8].

    The paper gives the label encoder "the same structure as the feature encoder", a second ResNet-101 that would double
    the cost of training; that is the option ``label_encoder: trunk`` of
    :class:`monai_ext.networks.prototype_net.PrototypeNet`.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for after, stride in zip(CHANNELS, (2, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, after)]
            layers += [nn.ReLU(inplace=True)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, channels, 3, padding=1))

    def forward(self, masks: Tensor) -> Tensor:
        """Encode masks."""
        return self.layers(masks)
