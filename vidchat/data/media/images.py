"""Image files as one decoded frame, upright and opaque; Pillow reads them, and refuses those that are cut off."""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from vidchat.data.media.colours import MOST_PIXELS, over_grey
from vidchat.data.media.media_error import MediaError

# Only these: some of Pillow's formats start other programs. Naming the plugins' classes registers them.
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF"),
    *(plugin.format for plugin in (
        WebPImagePlugin.WebPImageFile, AvifImagePlugin.AvifImageFile, TiffImagePlugin.TiffImageFile
    )),
)  # fmt: skip
FILMS = ("GIF", "PNG", "AVIF")  # formats that may hold a film, which is not for Pillow


def still_of(path: Path) -> VideoFrame | None:
    """The image of a file; `None` where it is no image, or a film.

    Raises:
        MediaError: It is too large. What Pillow raises of a damaged image comes through.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of a size that is within our limit
        try:
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
            if image.format in ("JPEG", "MPO"):
                _check_whole(path)
            return VideoFrame.from_ndarray(_opaque(ImageOps.exif_transpose(image)), format="rgb24")


def _check_whole(path: Path) -> None:
    """FFmpeg decodes a JPEG strictly, and raises where Pillow fills what is damaged or missing with grey."""
    with av.open(f"file:{path}", format="jpeg_pipe", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
        try:
            next(container.decode(stream), None)
        except av.error.PatchWelcomeError:  # a kind of JPEG that only Pillow knows
            return


def _opaque(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    if image.mode.startswith("I;16") or image.mode == "I":  # grey of 16 bits, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return over_grey(np.asarray(image.convert("RGBA")))
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))
