"""Write a data list from a download or from your own folders: the command line."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence

from monai_ext.data.cards import load_card
from monai_ext.data.dicom.reading import quiet_lengths
from monai_ext.data.indexing import INDEXERS, OWN_DATA
from monai_ext.data.indexing.index import Options
from monai_ext.data.indexing.report import describe
from monai_ext.data.indexing.writing import index
from monai_ext.errors import UserError, report_user_errors

_EXAMPLES = """\
examples:
  python -m monai_ext.data.indexing acdc --card                   what is known of ACDC, and how to get it
  python -m monai_ext.data.indexing acdc ~/ACDC -o ~/acdc.json    the download as it was unpacked
  python -m monai_ext.data.indexing folder mine -o mine.json --labels tumour=1 \\
      --modality CT --patient_pattern '(?P<patient>p[0-9]+)_(?P<visit>[0-9-]+)'
  python -m monai_ext.data.indexing bids study -o study.json --labels lesion=1 --image_pattern T1w
  python -m monai_ext.data.indexing dicom export -o mine.json --roi 'tumour=GTV.*' 'cord=^(spinal )?cord$'

own data:
  folder   images/ and labels/ (or masks/) with files of the same name; nnU-Net's imagesTr/labelsTr with
           dataset.json; NAME_image beside NAME_label (and NAME_scribble); or PATIENT/VISIT/ with an image and its
           mask, whatever the image is called. Images without a label are kept. Masks of one structure each (ct.nii.gz
           with liver.nii.gz, segmentations/liver.nii.gz or ct_liver.nii.gz) are joined if --labels names several
           structures; of those that overlap the later one in --labels counts, which a note says.
  bids     sub-*/[ses-*/]anat/*.nii.gz, labels as *_dseg or *_mask (or label-NAME_mask of each structure that --labels
           names) below derivatives/; sessions are the visits, ordered by their dates (sessions.tsv, scans.tsv), else
           by the numbers in their names, else by what these mean (pre, post) or their alphabet, which a note says;
           --sessions pre,post gives the order.
  dicom    any tree of CT or MR series with RTSTRUCT and SEG. Each ROI or segment goes to the series whose slices its
           contours or frames name; what fits several series or none is refused. Patients are PatientIDs, visits
           StudyDates. Each annotated series is a case. Of a visit without one, the series described as an annotated
           one is (SeriesDescription), else the axial one with most slices, unlabelled; --image_pattern (in the
           SeriesDescription) chooses. All ROIs that a REGEX finds are united, those of several files unless they
           overlap; later names are drawn over earlier ones; values are 1, 2, ... unless --labels says otherwise.
           Without --roi: the ROIs called as in --labels, or the only one there is. What is left out is printed, with
           the reason.

Files are named relative to the list if they lie below its folder, so that both can be moved together, and by
their absolute path otherwise. What has to be converted (JPEG or split masks, DICOM, MetaImage) is written to
LIST_files/ beside the list; nothing else is copied, and the download is never changed.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    report_user_errors()
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.card:
        print(describe(load_card(given.dataset)))
        return
    if given.root is None or given.output is None:
        raise UserError("say where the data lies and which list to write: DATASET ROOT -o list.json")
    with quiet_lengths():
        print(index(given.dataset, given.root, given.output, _options(given)))


def _parser() -> argparse.ArgumentParser:
    names = textwrap.fill(", ".join([*sorted(INDEXERS), *OWN_DATA]), 100, initial_indent="  ", subsequent_indent="  ")
    parser = argparse.ArgumentParser(
        prog="python -m monai_ext.data.indexing",
        description="Write a validated data list from the official download of a data set, or from your own folders.",
        epilog=f"data sets:\n{names}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="one of the data sets below, or folder, bids or dicom")
    parser.add_argument("root", metavar="ROOT", nargs="?", help="folder of the download, as it was unpacked")
    parser.add_argument("-o", "--output", metavar="LIST", help="data list to write, such as acdc.json")
    parser.add_argument("--card", action="store_true", help="show what is known of the data set, and stop")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME=VALUE",
        help="value of each structure in the label maps (folder, bids, dicom)",
    )
    parser.add_argument("--ignore", type=int, metavar="VALUE", help="value that is not annotated, as in scribbles")
    parser.add_argument(
        "--modality", help="MR, CT, endoscopy ...: chooses the intensity window (dicom: and the series)"
    )
    parser.add_argument(
        "--patient_pattern", metavar="REGEX", help="groups (?P<patient>...), (?P<visit>...) in a case's name (folder)"
    )
    parser.add_argument(
        "--image_pattern", metavar="REGEX", help="take only images with this in their path (dicom: description)"
    )
    parser.add_argument("--label_pattern", metavar="REGEX", help="take only label maps with this in their path")
    parser.add_argument(
        "--sessions",
        metavar="FIRST,NEXT,...",
        help="all sessions in their order (bids; default: as tables, else names, say)",
    )
    parser.add_argument(
        "--threshold", type=int, metavar="GREY", help="masks are grey pictures: from this value on it is the structure"
    )
    parser.add_argument(
        "--roi",
        nargs="+",
        action="extend",
        metavar="[NAME=]REGEX",
        help="structures and the names of their ROIs or segments (dicom; one for 4d_lung and nsclc_radiomics)",
    )
    parser.add_argument("--gates", nargs="+", type=int, metavar="N", help="breathing phases to take (4D-Lung)")
    parser.add_argument(
        "--copy_geometry",
        action="store_true",
        help="a label map of the image's shape whose affine differs gets the image's, instead of being skipped",
    )
    parser.add_argument(
        "--headers_only", action="store_true", help="do not read label maps: faster, values unchecked and uncounted"
    )
    return parser


def _options(given: argparse.Namespace) -> Options:
    return Options(
        labels=None if given.labels is None else parse_labels(given.labels),
        ignore=given.ignore,
        modality=given.modality,
        patient_pattern=_pattern(given.patient_pattern, "patient_pattern"),
        image_pattern=_pattern(given.image_pattern, "image_pattern"),
        label_pattern=_pattern(given.label_pattern, "label_pattern"),
        sessions=None if given.sessions is None else tuple(filter(None, given.sessions.split(","))),
        threshold=given.threshold,
        roi=None if given.roi is None else tuple(given.roi),
        gates=None if given.gates is None else tuple(given.gates),
        copy_geometry=given.copy_geometry,
        headers_only=given.headers_only,
    )


def parse_labels(pairs: Sequence[str]) -> dict[str, int]:
    """Read ``NAME=VALUE`` pairs.

    Raises:
        UserError: one is not of this form, or a name stands twice.
    """
    labels: dict[str, int] = {}
    for pair in pairs:
        name, _, value = pair.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise UserError(f"--labels: {pair!r} is not NAME=VALUE with a whole number above 0, such as tumour=1")
        if name in labels:
            raise UserError(f"--labels: {name!r} is given twice; give each structure one value")
        labels[name] = int(value)
    return labels


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"--{option}: {text!r} is no regular expression ({error}); correct it") from error


if __name__ == "__main__":
    main()
