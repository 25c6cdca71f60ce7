"""Which tokens stand for an image, and which bytes are taken for one."""

import io
import random

import pytest
from PIL import Image

from images import AROUND, IMAGE, WHOLE, ImageLayout, decode_image, expanded
from messages import ImageRef, InvalidRequest
from tests.vision_models import picture, vision_model


@pytest.mark.parametrize("edge", [14, 16])
@pytest.mark.parametrize(("is_split", "resized_edge"), [(True, 60), (True, None), (False, 60)])
def test_images_are_cut_as_transformers_cuts_them(edge: int, is_split: bool, resized_edge: int | None) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": resized_edge or 60},
        max_image_size={"longest_edge": edge},
        do_image_splitting=is_split,
        do_resize=resized_edge is not None,
    )
    layout = ImageLayout(1, resized_edge, edge, is_split, 4)
    draw = random.Random(edge)
    sizes = [(1, 1), (edge, edge), (2 * edge, edge), (edge, 3 * edge), (200, 3), (2, 90)]
    sizes += [(draw.randint(1, 99), draw.randint(1, 99)) for _ in range(20)]
    for width, height in sizes:
        cut = processor.preprocess([Image.new("RGB", (width, height))], return_row_col_info=True, return_tensors="np")
        assert layout.grid(width, height) == (cut["rows"][0][0], cut["cols"][0][0]), (width, height)
        assert layout.num_features(width, height) == 4 * cut["pixel_values"].shape[1]


def test_what_stands_for_an_image() -> None:
    layout = ImageLayout.from_dir(vision_model("idefics3"))
    assert layout == ImageLayout(260, 40, 14, True, 4) and layout.most_tiles == 10
    tile = IMAGE * 4
    rows = "".join("".join(f"{AROUND}<row_{row}_col_{column}>{tile}" for column in (1, 2, 3)) + "\n" for row in (1, 2))
    assert layout.text(30, 20) == f"{rows}\n{AROUND}{WHOLE}{tile}{AROUND}"
    assert ImageLayout(1, 14, 14, True, 4).text(9, 9) == f"{AROUND}{WHOLE}{tile}{AROUND}"


def test_placeholders_become_tokens_and_are_counted() -> None:
    pictures = [(b"a", [7, 1, 7]), (b"b", [7, 1, 1, 7])]
    ids, refs = expanded([1, 5, 1], 1, pictures)
    assert ids == [7, 1, 7, 5, 7, 1, 1, 7]
    assert refs == (ImageRef(b"a", 0, 3), ImageRef(b"b", 4, 4))
    for given in ([1], [1, 1, 1]):
        with pytest.raises(InvalidRequest, match=f"{len(given)} <image> placeholders for 2 images"):
            expanded(given, 1, pictures)


def test_pictures_stand_upright_and_keep_their_transparency() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(file, "JPEG", exif=exif)
    assert decode_image(file.getvalue(), 600).size == (20, 30)
    assert decode_image(picture(1, 5, 5, "RGBA"), 600).mode == "RGBA"
    assert decode_image(picture(1, 5, 5, "L"), 600).mode == "RGB"


def bomb() -> bytes:
    """A PNG of a few bytes that says of itself that it has 100,000 x 100,000 pixels."""
    data = bytearray(picture(1, 4, 4))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", picture(1, 9, 9)[:-40], bomb(), b"RIFF\x00\x00\x00\x00WEBPVP8 ", b"\xff\xd8\xff" + bytes(99)],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="cannot be decoded|pixels, at most"):
        decode_image(data, 1_000_000)
