"""From an image's bytes to the features that stand for it: transformers' vision tower and connector, loaded from the
same checkpoint as the decoder, on a thread of their own.

One per process that prefills prompts with images. The pixels are transformers' image processor's, the one over Pillow.
Knows no queue and no sequence; which tokens the features stand for is `engine/placed_features.py`.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.image_features import FeatureCache
from engine.weights import VISION_PREFIXES
from images import ImageLayout, decode_image
from messages import InvalidRequest, ModelError

TILES_AT_ONCE = 4  # bounds the activations of an image of many tiles


class ImageEncoder:
    """Encodes one image at a time; what it has encoded of late it keeps."""

    def __init__(
        self, tower: Any, processor: Any, layout: ImageLayout, device: torch.device, max_pixels: int, cache_bytes: int
    ) -> None:
        """tower: transformers' model without its text part; processor: its image processor."""
        self._tower, self._processor, self._layout = tower, processor, layout
        self._device, self._max_pixels = device, max_pixels
        self._cache = FeatureCache(cache_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vision")

    def known(self, digest: bytes) -> Tensor | None:
        """The features of that image, if it was encoded of late. Of the thread that calls `encode`."""
        return self._cache.get(digest)

    def keep(self, digest: bytes, features: Tensor) -> None:
        """For `known`; of the same thread."""
        self._cache.put(digest, features)

    def encode(self, data: bytes) -> Future[Tensor]:
        """The features of an image, [num_features, hidden], in the host's memory. The future's error is InvalidRequest
        for bytes that cannot be taken for an image."""
        return self._thread.submit(self.encode_now, data)

    @torch.inference_mode()
    def encode_now(self, data: bytes) -> Tensor:
        """What `encode` does, on this thread."""
        image = decode_image(data, self._max_pixels)
        try:
            pixels = self._processor.preprocess([image], return_tensors="pt")
        except ValueError as error:  # a side of less than a pixel after resizing
            raise InvalidRequest(
                f"an image of {image.width} x {image.height} pixels cannot be resized: {error}"
            ) from None
        features = self.features_of(pixels["pixel_values"][0], pixels["pixel_attention_mask"][0])
        wanted = self._layout.num_features(image.width, image.height)
        if len(features) != wanted:
            raise InvalidRequest(
                f"an image of {image.width} x {image.height} pixels has {len(features)} features, its prompt has room "
                f"for {wanted}"
            )
        return features.cpu()  # a GPU's memory is counted for steps and KV

    def features_of(self, tiles: Tensor, mask: Tensor) -> Tensor:
        """tiles: [N, 3, edge, edge]; mask: int64 [N, edge, edge], 1 where there is picture -> [num_features, hidden]"""
        parts: list[Tensor] = []
        for some, masked in zip(torch.split(tiles, TILES_AT_ONCE), torch.split(mask, TILES_AT_ONCE), strict=True):
            output = self._tower.get_image_features(
                some.unsqueeze(0).to(self._device), masked.unsqueeze(0).to(self._device).bool(), return_dict=True
            )
            parts += output.pooler_output
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_largest(self) -> None:
        """As much work as an image can be, for whoever measures memory."""
        edge, count = self._layout.tile_edge, min(TILES_AT_ONCE, self._layout.most_tiles)
        tiles = torch.ones(count, 3, edge, edge)
        self.features_of(tiles, torch.ones(count, edge, edge, dtype=torch.int64))


def load_image_encoder(
    model_dir: Path,
    dtype: torch.dtype,
    device: torch.device,
    max_pixels: int,
    cache_bytes: int,
    report: Callable[[str], None],
) -> ImageEncoder:
    """That of a Hugging Face directory whose config `reads_images`. Raises ModelError for what is missing."""
    import transformers  # seconds to import, and only these models pay
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    report("loading the vision tower")
    layout = ImageLayout.from_dir(model_dir)
    assert layout is not None, "only a model that reads images has an encoder"
    try:
        config = transformers.AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
        processors = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}
        processor = processors[config.model_type].from_pretrained(model_dir, local_files_only=True)
        with torch.device("meta"):
            tower = transformers.AutoModel.from_config(config, dtype=dtype)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"transformers cannot read the vision part of {model_dir}: {error}") from None
    tower.text_model = None  # the decoder is ours
    checkpoint = Checkpoint(model_dir)
    weights = {
        name: checkpoint.take(f"model.{name}", tuple(meta.shape)).to(device, dtype, copy=True)
        for name, meta in tower.state_dict().items()
    }
    unexpected = [name for name in checkpoint.untaken() if name.startswith(VISION_PREFIXES)]
    if unexpected:
        raise ModelError(f"{model_dir} holds tensors that its vision part has no use for: {unexpected[:5]}")
    tower.load_state_dict(weights, assign=True)
    return ImageEncoder(tower.eval(), processor, layout, device, max_pixels, cache_bytes)
