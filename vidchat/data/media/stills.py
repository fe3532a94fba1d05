"""Image files as one decoded frame, upright and opaque; Pillow reads them, and refuses those that are cut off."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from av import VideoFrame
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from vidchat.data.media.colours import MOST_PIXELS, over_grey
from vidchat.data.media.errors import MediaError

# Only these: some of Pillow's formats start other programs. Naming the plugins' classes registers them.
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF"),
    *(plugin.format for plugin in (
        WebPImagePlugin.WebPImageFile, AvifImagePlugin.AvifImageFile, TiffImagePlugin.TiffImageFile
    )),
)  # fmt: skip
FILMS = ("GIF", "PNG", "WEBP", "AVIF")  # formats that may hold a film, which is not for Pillow


def still_of(path: Path) -> VideoFrame | None:
    """The image of a file; `None` where it is no image, or a film.

    Raises:
        MediaError: It is too large. What Pillow raises of a damaged image comes through.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(path, formats=FORMATS)
    except (UnidentifiedImageError, FileNotFoundError):
        return None
    with image:
        if image.format in FILMS and getattr(image, "is_animated", False):
            return None
        if image.width * image.height > MOST_PIXELS:
            raise MediaError(
                f"{path}: has {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}; make it smaller"
            )
        image.load()
        return VideoFrame.from_ndarray(_opaque(ImageOps.exif_transpose(image)), format="rgb24")


def _opaque(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    if image.mode.startswith("I;16") or image.mode == "I":  # grey of 16 bits, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return over_grey(np.asarray(image.convert("RGBA")))
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))
