"""What an image of a prompt means: which tokens stand for it, and which bytes are taken for one.

The API process expands prompts and checks images by it, the worker that computes a prompt decodes them by it, so both
see the same picture. The family is that of Idefics3 and SmolVLM: an image is cut into tiles, and each tile, and the
whole at last, is a run of image tokens between markers. Source: `processing_idefics3.py` and
`image_processing_pil_idefics3.py` of transformers 5.23. Knows no queue and no torch; Pillow is loaded by who calls.
"""

import io
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from messages import ImageRef, InvalidRequest, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURES = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
FORMATS = ("PNG", "JPEG", "WEBP")
IMAGE = "<image>"  # stands for an image in a prompt, and for each of its features in the expanded one
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
MAX_EDGE = 4096  # transformers' bound of a resized image, pixels


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """How a model's images become tokens."""

    image_token_id: int
    resized_edge: int | None  # to which the longer edge of every image is brought, pixels; None: to none
    tile_edge: int  # pixels
    is_split: bool  # else an image is one tile
    tile_tokens: int  # image tokens of a tile

    @classmethod
    def from_dir(cls, path: Path) -> "ImageLayout | None":
        """That of a Hugging Face directory; None where its model reads no images. Raises ModelError."""
        config = _read(path / "config.json")
        if (config.get("architectures") or [""])[0] not in ARCHITECTURES:
            return None
        try:
            said = _processor(path)
            vision, scale = config["vision_config"], int(config.get("scale_factor", 2))
            edge, patch = int(said["max_image_size"]["longest_edge"]), int(vision["patch_size"])
            side = edge // patch
            if side % scale:
                raise ValueError(f"{side} patches are not divided by scale_factor {scale}")
            return cls(
                image_token_id=int(config["image_token_id"]),
                resized_edge=int(said["size"]["longest_edge"]) if said.get("do_resize", True) else None,
                tile_edge=edge,
                is_split=bool(said.get("do_image_splitting", True)),
                tile_tokens=(side // scale) ** 2,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: what it says of its images is not understood: {error!r}") from None

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of the tiles of an image of so many pixels, the whole apart; (0, 0) where it is not cut."""
        if not self.is_split:
            return 0, 0
        if self.resized_edge is not None:
            width, height = _resized(width, height, self.resized_edge)
        edge, aspect = self.tile_edge, width / height
        if width >= height:
            width = math.ceil(width / edge) * edge
            height = math.ceil(int(width / aspect) / edge) * edge
        else:
            height = math.ceil(height / edge) * edge
            width = math.ceil(int(height * aspect) / edge) * edge
        rows, columns = height // edge, width // edge
        return (0, 0) if rows == columns == 1 else (rows, columns)

    def num_features(self, width: int, height: int) -> int:
        """Image tokens of an image of so many pixels."""
        rows, columns = self.grid(width, height)
        return (rows * columns + 1) * self.tile_tokens

    @property
    def most_tiles(self) -> int:
        """Tiles of the largest image, the whole included."""
        edge = self.resized_edge or MAX_EDGE
        return math.ceil(edge / self.tile_edge) ** 2 + 1 if self.is_split else 1

    def text(self, width: int, height: int) -> str:
        """What stands for the image in a prompt, in place of one IMAGE."""
        rows, columns = self.grid(width, height)
        tile, parts = IMAGE * self.tile_tokens, []
        for row in range(1, rows + 1):
            parts += [f"{AROUND}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)]
            parts.append("\n")
        return "".join([*parts, "\n" if parts else "", AROUND, WHOLE, tile, AROUND])


def expanded(
    token_ids: Sequence[int], image_token_id: int, pictures: Sequence[tuple[bytes, list[int]]]
) -> tuple[list[int], tuple[ImageRef, ...]]:
    """The prompt with each image token replaced by the tokens of its image, and where they are.

    pictures: digest and tokens of each, in the order of the prompt. The tokens begin and end with special ones, so that
    text around them has the ids that it has without them. Raises InvalidRequest as `check_places`.
    """
    check_places(token_ids, image_token_id, len(pictures))
    ids: list[int] = []
    refs: list[ImageRef] = []
    for token_id in token_ids:
        if token_id != image_token_id:
            ids.append(token_id)
            continue
        digest, tokens = pictures[len(refs)]
        refs.append(ImageRef(digest, len(ids), len(tokens)))
        ids += tokens
    return ids, tuple(refs)


def check_places(token_ids: Sequence[int], image_token_id: int, num_images: int) -> None:
    """Raises InvalidRequest when there are more or fewer images than image tokens."""
    num_places = sum(token_id == image_token_id for token_id in token_ids)
    if num_places != num_images:
        raise InvalidRequest(
            f"the prompt has {num_places} {IMAGE} placeholders for {num_images} images; each image needs one"
        )


def decode_image(data: bytes, max_pixels: int) -> "Image":
    """The picture in `data`, upright. Blocking. Raises InvalidRequest for what is none, or too large.

    The size is known from the head, before a pixel is decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidRequest(f"an image has {width} x {height} pixels, at most {max_pixels} are allowed")
            return ImageOps.exif_transpose(image).convert("RGBA" if image.has_transparency_data else "RGB")
    # What Pillow raises for damaged files is not of one kind.
    except (
        *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError),
    ) as error:
        reason = str(error).split("\n")[0][:100] if isinstance(error, OSError) else type(error).__name__
        supported = ", ".join(FORMATS)
        raise InvalidRequest(
            f"an image of {len(data)} bytes cannot be decoded ({reason}); {supported} are read"
        ) from None


def _resized(width: int, height: int, edge: int) -> tuple[int, int]:
    """transformers' get_resize_output_image_size: the longer edge is `edge`, the other even."""
    aspect = width / height
    if width >= height:
        width, height = edge, int(edge / aspect)
        height += height % 2
    else:
        width, height = int(edge * aspect), edge
        width += width % 2
    width, height = max(1, width), max(1, height)
    aspect = width / height
    if width >= height and width > MAX_EDGE:
        width, height = MAX_EDGE, int(MAX_EDGE / aspect)
    elif height > width and height > MAX_EDGE:
        width, height = int(MAX_EDGE * aspect), MAX_EDGE
    return max(1, width), max(1, height)


def _processor(path: Path) -> dict[str, Any]:
    """What the directory says of its image processor, where transformers looks for it and in that order."""
    if (path / "processor_config.json").exists():
        nested = _read(path / "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return nested
    return _read(path / "preprocessor_config.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from None
    if not isinstance(said, dict):
        raise ModelError(f"{path}: not a JSON object")
    return said
