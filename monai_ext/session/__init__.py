"""What every bundle does before its first case: show mistakes as a sentence, check options, files and weights.

Configs import this package as ``session`` and call what is named here. Where torchrun has started several processes
(overlay ``multi_gpu.yaml``), what must happen once happens in the first of them, and a mistake is shown once: see
:mod:`monai_ext.processes`.
"""

from monai_ext.session.cases import count_classes, find_datalist, refuse_phantom, run_folder, select_labels
from monai_ext.session.default_weights import choose_weights
from monai_ext.session.launch import choose_device, process_device, run_cases, start, start_process
from monai_ext.session.options import check_options
from monai_ext.session.preflight import look_at_headers, prepare
from monai_ext.session.resume import case_settings, keep_settings
from monai_ext.session.weights import find_checkpoint, find_segmentor, find_variant, refuse_overlap

__all__ = [
    "case_settings",
    "check_options",
    "choose_device",
    "choose_weights",
    "count_classes",
    "find_checkpoint",
    "find_datalist",
    "find_segmentor",
    "find_variant",
    "keep_settings",
    "look_at_headers",
    "prepare",
    "process_device",
    "refuse_overlap",
    "refuse_phantom",
    "run_cases",
    "run_folder",
    "select_labels",
    "start",
    "start_process",
]
