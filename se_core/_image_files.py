"""One image file: its bytes, decoded and refused where they say something other than eight-bit pixels.

Pillow decodes, which torchvision and matplotlib bring along. torchvision's own decoders are in a compiled extension
that does not load beside every build of torch (`se_core._torchvision`), and they do not look at the checksums of a PNG
file, as Pillow's `verify` does.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]  # (H, W, C), C = 1 or 3


class Unsuitable(Exception):
    """A sound file whose pixels are not what is asked for: what they are, and the remedy."""


def decoded(content: bytes, image_size: int) -> Pixels:
    """The pixels of an image file, upright: (H, W, 1) uint8 if it is grey, else (H, W, 3), red, green and blue.

    A palette is looked up, an alpha channel that is opaque everywhere is dropped, and the orientation that a camera
    noted is applied. image_size: if it is not 0, the largest square in the middle is resized to that, bilinearly and
    without aliasing.

    Raises Unsuitable for a transparent image, for 16 bits a channel, for other colours than grey and RGB, and for
    more than one frame; whatever Pillow raises for a damaged one.
    """
    with Image.open(BytesIO(content)) as image:
        image.verify()  # the checksums of a PNG file; after it, an image cannot be read any more
    with Image.open(BytesIO(content)) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a photograph of some phones, with its preview
            raise Unsuitable(f"holds {frames} frames; write the one you mean to a file of its own")
        if image.format in ("PNG", "TIFF") and any(";16" in str(tile[3]) for tile in image.tile):
            raise Unsuitable("has 16 bits a channel; scale it to 8 as its contents ask for")
        plain = _grey_or_rgb(ImageOps.exif_transpose(image))
        if image_size:
            plain = _middle(plain).resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.array(plain).reshape(plain.height, plain.width, -1)


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise Unsuitable(f"has pixels of kind {image.mode}; convert it to grey or RGB of 8 bits")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise Unsuitable("is transparent in places; put it on the background that you mean")
    return image.convert(mode)


def _middle(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
