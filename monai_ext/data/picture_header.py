"""What a picture says of its pixels, read without decoding them."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PictureHeader:
    """What a picture says of its pixels.

    Args:
        mode: Pillow's, such as "L", "RGB", "P", "I;16".
        kind: such as "PNG" or "JPEG", whatever the suffix says.
        stored: Pillow's name for the pixels as stored, such as "RGB;16B".
        orientation: of EXIF, 1 is upright.
        has_alpha: whether it can be transparent.
    """

    mode: str
    kind: str
    stored: str
    orientation: int
    has_alpha: bool

    @property
    def is_deep(self) -> bool:
        """Whether grey values have more than 8 bits."""
        return self.mode.startswith(("I", "F"))


def picture_header(picture: Image.Image, stream: BinaryIO) -> PictureHeader:
    """Return the header of a picture that has just been opened.

    Args:
        picture: its pixels have not been decoded yet.
        stream: that it is read from; stays where it is.
    """
    tile: Any = picture.tile[0] if picture.tile else ()  # type: ignore[attr-defined]
    arguments = tile[3] if len(tile) > 3 else ""
    stored = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return PictureHeader(
        mode=picture.mode,
        kind=picture.format or "",
        stored=stored if isinstance(stored, str) else "",
        has_alpha="A" in picture.getbands() or "transparency" in picture.info,
        orientation=_exif_orientation(picture, stream),
    )


def _exif_orientation(picture: Image.Image, stream: BinaryIO) -> int:
    """Return the EXIF orientation of an open picture, 1 for upright.

    Pillow decodes all pixels of a PNG to see whether an orientation follows them; here only if something does.
    """
    if picture.format == "PNG" and _ends_with_pixels(stream):
        return Image.Image.getexif(picture).get(_EXIF_ORIENTATION, 1)
    return picture.getexif().get(_EXIF_ORIENTATION, 1)


def _ends_with_pixels(stream: BinaryIO) -> bool:
    """Walk along the chunks of a PNG and tell whether IEND comes right after the pixels."""
    place = stream.tell()
    try:
        before = b""
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                return before == b"IDAT"
            before = kind
            stream.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        stream.seek(place)
