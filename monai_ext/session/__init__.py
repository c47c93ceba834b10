"""What every bundle does before its first case: show mistakes as a sentence, check options, files and weights.

Configs import this package as ``session`` and call what is named here. Where torchrun has started several processes,
what must happen once happens in the first of them, and a mistake is shown once: see :mod:`monai_ext.processes`.
"""

from monai_ext.data.provenance import as_trained, weights_sha256
from monai_ext.handlers.review_table import check_review
from monai_ext.made import make_folder
from monai_ext.session.cases import (
    bundle_beside,
    count_classes,
    find_datalist,
    refuse_phantom,
    run_folder,
    select_labels,
)
from monai_ext.session.checks import at_least, check_device, multiple_of, one_of, share, try_out
from monai_ext.session.default_weights import choose_weights, scope_note
from monai_ext.session.launch import choose_device, finish, run_cases, run_training, start
from monai_ext.session.options import check_options
from monai_ext.session.preflight import look_at_headers, prepare
from monai_ext.session.prompts import (
    build_prompts,
    check_prompts,
    check_sampler,
    choose_reference_slice,
    find_prompts,
    load_compared,
    load_prompts,
    pair_references,
    prompts_trained_as,
    sam_of_prompts,
    seen_by,
    short_sha256,
)
from monai_ext.session.resume import case_settings, keep_training
from monai_ext.session.weights import (
    check_weights,
    find_initial_weights,
    find_variant,
    find_weights,
    refuse_dense,
    refuse_overlap,
)

__all__ = [
    "as_trained",
    "at_least",
    "build_prompts",
    "bundle_beside",
    "case_settings",
    "check_device",
    "check_options",
    "check_prompts",
    "check_review",
    "check_sampler",
    "check_weights",
    "choose_device",
    "choose_reference_slice",
    "choose_weights",
    "count_classes",
    "find_datalist",
    "find_initial_weights",
    "find_prompts",
    "find_variant",
    "find_weights",
    "finish",
    "keep_training",
    "load_compared",
    "load_prompts",
    "look_at_headers",
    "make_folder",
    "multiple_of",
    "one_of",
    "pair_references",
    "prepare",
    "prompts_trained_as",
    "refuse_dense",
    "refuse_overlap",
    "refuse_phantom",
    "run_cases",
    "run_folder",
    "run_training",
    "sam_of_prompts",
    "scope_note",
    "seen_by",
    "select_labels",
    "share",
    "short_sha256",
    "start",
    "try_out",
    "weights_sha256",
]
