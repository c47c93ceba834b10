"""MONAI transforms between the grid and grey values of a file and what the networks see."""

from monai_ext.transforms.intensity import Intensityd
from monai_ext.transforms.labels import MergeLabelsd
from monai_ext.transforms.sam_input import SamInputd

__all__ = ["Intensityd", "MergeLabelsd", "SamInputd"]
