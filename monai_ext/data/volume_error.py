"""How far an automatic volume is usually off: what a change of it has to exceed to mean anything."""

USUAL_ERROR_PERCENT = 75
"""Automatic volumes of three of four tumours were off by less: P²SAM with the weights ``compact_open`` on test patients
of STS (8 masks of 4 patients; ``relative_volume_error`` in bundles/p2sam/docs/results/open/sts_p2sam/metrics.csv). A
smaller change can be the method's own."""
