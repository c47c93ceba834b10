"""What has weights: promptable segmentation models and the parts they are made of."""
