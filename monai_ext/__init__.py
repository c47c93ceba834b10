"""Medical image segmentation from few labels: the methods, and what MONAI needs to run them as bundles."""

__version__ = "0.4.1"
