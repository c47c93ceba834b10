"""From the official download of a data set, or from people's own folders, to a data list.

``INDEXERS`` holds one function for each card in ``data_manifests/``, called with the root of the download, the folder
for converted files, the card and the options; ``OWN_DATA`` holds those for data without a card. They return candidates
with absolute paths and write nothing but converted files. See ``python -m monai_ext.data.indexing --help``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from monai_ext.data.cards import Card
from monai_ext.data.indexing.acdc import index_acdc
from monai_ext.data.indexing.bids import index_bids
from monai_ext.data.indexing.chaos import index_chaos
from monai_ext.data.indexing.dicom import index_dicom
from monai_ext.data.indexing.folder import index_folder
from monai_ext.data.indexing.four_d_lung import index_four_d_lung
from monai_ext.data.indexing.index import Index, Options
from monai_ext.data.indexing.ms_cmrseg import index_ms_cmrseg
from monai_ext.data.indexing.mscmr import index_mscmr
from monai_ext.data.indexing.natural import index_coco_20i, index_pascal_5i
from monai_ext.data.indexing.nsclc_radiomics import index_nsclc_radiomics
from monai_ext.data.indexing.pictures import (
    index_busi,
    index_cvc_clinicdb,
    index_glas,
    index_pairs,
    index_perseg,
)
from monai_ext.data.indexing.retouch import index_retouch
from monai_ext.data.indexing.synapse import index_synapse

Indexer: TypeAlias = Callable[[Path, Path, Card, Options], Index]
OwnDataIndexer: TypeAlias = Callable[[Path, Path, Options], Index]

INDEXERS: dict[str, Indexer] = {
    "4d_lung": index_four_d_lung,
    "acdc": index_acdc,
    "busi": index_busi,
    "chaos_t1": index_chaos,
    "chaos_t2": index_chaos,
    "coco_20i": index_coco_20i,
    "colondb": index_pairs,
    "cvc_300": index_pairs,
    "cvc_clinicdb": index_cvc_clinicdb,
    "etis": index_pairs,
    "glas": index_glas,
    "kvasir_seg": index_pairs,
    "ms_cmrseg": index_ms_cmrseg,
    "mscmr": index_mscmr,
    "nsclc_radiomics": index_nsclc_radiomics,
    "pascal_5i": index_pascal_5i,
    "perseg": index_perseg,
    "retouch": index_retouch,
    "synapse": index_synapse,
}
OWN_DATA: dict[str, OwnDataIndexer] = {"folder": index_folder, "bids": index_bids, "dicom": index_dicom}

__all__ = ["INDEXERS", "OWN_DATA", "Index", "Indexer", "Options", "OwnDataIndexer"]
