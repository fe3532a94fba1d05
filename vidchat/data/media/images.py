"""Image files as one decoded frame, upright and opaque, read by Pillow; truncated files are refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from vidchat.data.media.colours import MOST_PIXELS, over_grey
from vidchat.data.media.media_error import MediaError

# Only these, as some of Pillow's formats start other programs. Naming a plugin's class registers it.
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF"),
    *(plugin.format for plugin in (
        WebPImagePlugin.WebPImageFile, AvifImagePlugin.AvifImageFile, TiffImagePlugin.TiffImageFile
    )),
)  # fmt: skip
ANIMATED = ("GIF", "PNG", "AVIF")  # formats that may hold an animation, which FFmpeg reads


def read_still(path: Path) -> VideoFrame | None:
    """Reads an image file as a frame; returns `None` if the file is no image, or an animation.

    Raises:
        MediaError: The image is too large. Errors of Pillow at a damaged image pass through.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd tags, and sizes within our limit
        try:
            image = Image.open(path, formats=FORMATS)
        except (UnidentifiedImageError, FileNotFoundError):
            return None
        with image:
            if image.format in ANIMATED and getattr(image, "is_animated", False):
                return None
            if image.width * image.height > MOST_PIXELS:
                raise MediaError(
                    f"{path}: has {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}; make it smaller"
                )
            image.load()
            if image.format in ("JPEG", "MPO"):
                _check_jpeg(path)
            return VideoFrame.from_ndarray(_opaque(ImageOps.exif_transpose(image)), format="rgb24")


def _check_jpeg(path: Path) -> None:
    """Decodes a JPEG by FFmpeg, which raises where Pillow fills damaged or missing parts with grey."""
    with av.open(f"file:{path}", format="jpeg_pipe", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}
        try:
            next(container.decode(stream), None)
        except av.error.PatchWelcomeError:  # a kind of JPEG that only Pillow supports
            return


def _opaque(image: Image.Image) -> np.ndarray:
    """Returns an image over grey as (H, W, 3) uint8 RGB."""
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey, which `convert` would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return over_grey(np.asarray(image.convert("RGBA")))
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))
