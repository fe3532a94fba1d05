"""The thinker: what Qwen2.5-Omni (arXiv 2503.20215) makes of an initiator's clip, as features for the responder.

SpeakerVid-5M's baseline conditions the answer on the thinker's hidden states *and* on the raw audio and video
embeddings. Here a feature is both, side by side: of every token from the media's start to the place where the
thinker's own answer would begin, the hidden state after a chosen layer and the embedding that went into the first.
Each half is scaled to a root mean square of 1, because hidden states before the last norm hold a few values that are
thousands of times larger than the others. The responder projects them to its own width.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from scipy.signal import resample_poly
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2_5OmniThinkerConfig, WhisperFeatureExtractor
from transformers import Qwen2_5OmniThinkerForConditionalGeneration as QwenThinker

from vidchat.registry import register
from vidchat.tokenizers.thinker.files import locate, weights_digest
from vidchat.tokenizers.thinker.patches import fitted_size, patchify, resize
from vidchat.tokenizers.thinker.prompt import AUDIO, MEDIA_START, SYSTEM, VIDEO, chat, media, video_places
from vidchat.tokenizers.weights import TokenizerError

DTYPES = ("bfloat16", "float16", "float32")
SETTINGS = ("layer", "fps", "min_pixels", "max_pixels", "system", "dtype")
TOKEN_PIXELS = 28 * 28  # of the frame, to one video token


class Media(Protocol):
    """What is needed of a decoded clip: frames (N, 3, H, W) uint8 and audio (n,) float, at these rates."""

    frames: Tensor
    waveform: Tensor
    fps: int
    sample_rate: int


@register("thinker")
class Thinker:
    """A frozen Qwen2.5-Omni thinker. Nothing but its configuration is read until it is asked to think.

    Args:
        name: A Hub name, or a folder with `config.json`, `*.safetensors` and the tokenizer's files: of a whole
            Qwen2.5-Omni or of its thinker alone.
        layer: After which layer hidden states are taken, 1 to all; the layers behind it are not kept. `None` is the
            last, after the final norm.
        fps: Frames per second that it sees. Two make one temporal patch, so 2 is a patch a second, as the model's
            own examples have it.
        min_pixels: Frames with fewer pixels are enlarged.
        max_pixels: Frames with more are shrunk. A temporal patch of 784 n pixels is n tokens.
        system: The system prompt; the default is the one that the model was trained with.
        dtype: Of the weights.

    Attributes:
        width: D, values of a feature: twice the width of the thinker.
        sample_rate: Of the audio it hears.

    Raises:
        TokenizerError: there is no thinker of that name, or it has not that many layers.
    """

    def __init__(
        self,
        name: str,
        layer: int | None = None,
        fps: float = 2.0,
        min_pixels: int = 128 * TOKEN_PIXELS,
        max_pixels: int = 768 * TOKEN_PIXELS,
        system: str = SYSTEM,
        dtype: str = "bfloat16",
    ) -> None:
        self._config = _configuration(name)
        layers = self._config.text_config.num_hidden_layers
        if layer is not None and not 1 <= layer <= layers:
            raise TokenizerError(f"the thinker {name} has {layers} layers, so thinker.layer={layer} is impossible")
        if fps < 1:
            raise TokenizerError(f"thinker.fps={fps}: the thinker needs at least one frame a second")
        if dtype not in DTYPES:
            raise TokenizerError(f"thinker.dtype={dtype} must be one of {', '.join(DTYPES)}")
        self.name, self.layer, self.fps, self.system = name, layer, fps, system
        self.min_pixels, self.max_pixels, self.dtype = min_pixels, max_pixels, dtype
        self.width = 2 * self._config.text_config.hidden_size
        self.device = torch.device("cpu")

    def think(self, frames: Tensor, fps: int, waveform: Tensor | None) -> Tensor:
        """Features (P, D) float32 of one clip.

        Args:
            frames: (N, 3, H, W) uint8.
            fps: Frames per second in `frames`.
            waveform: (n,) float in [-1, 1] at `sample_rate`, from the instant of the first frame on; `None` for a
                clip without audio.
        """
        inputs = self.inputs(frames, fps, waveform)
        start = int((inputs["input_ids"][0] == self._id(MEDIA_START)).nonzero()[0])
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        with torch.no_grad():
            states = self.model.model(**moved, use_cache=False, output_hidden_states=True).hidden_states
            return torch.cat([_unit(states[k][0, start:].float()) for k in (-1, 0)], dim=-1)

    def encode(self, media: Media) -> Tensor:
        """Features (P, D) float32 of a clip as it is cut to chunks, 4T+1 frames and the audio from frame 1 on.

        Frame 0, which has no audio, is left out, so that what is seen and what is heard start together. A clip that
        is silent throughout is only looked at.
        """
        heard = None
        if media.waveform.any():
            common = math.gcd(media.sample_rate, self.sample_rate)
            up, down = self.sample_rate // common, media.sample_rate // common
            heard = torch.from_numpy(resample_poly(media.waveform.cpu().numpy(), up, down)).float().clamp(-1, 1)
        return self.think(media.frames[1:], media.fps, heard)

    def inputs(self, frames: Tensor, fps: int, waveform: Tensor | None) -> dict[str, Any]:
        """What the model reads, by the names of its arguments, on the CPU; see `think`."""
        vision = self._config.vision_config
        shown = frames[[int(i * fps / self.fps) for i in range(1 + int((len(frames) - 1) * self.fps / fps))]]
        factor = vision.patch_size * vision.spatial_merge_size
        size = fitted_size((shown.shape[2], shown.shape[3]), factor, self.min_pixels, self.max_pixels)
        patches, grid = patchify(
            resize(shown, size), vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        seconds = vision.temporal_patch_size / self.fps
        inputs: dict[str, Any] = {
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "video_second_per_grid": torch.tensor([seconds]),
            "use_audio_in_video": waveform is not None,
        }
        heard = None
        if waveform is not None:
            inputs["input_features"], inputs["feature_attention_mask"] = self._hear(waveform)
            heard = audio_tokens(int(inputs["feature_attention_mask"].sum()))
        ids = self._ids(grid[0].tolist(), seconds, heard)
        # Without an attention mask the model leaves its positions in time and space away, in silence.
        return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def fingerprint(self) -> str:
        """Names the thinker by its weights and settings, wherever it lies; the same features, the same fingerprint."""
        return self._digest

    def to(self, device: torch.device | str) -> Thinker:
        """Thinks on this device from now on; sent back to the CPU, it gives its weights' memory back."""
        before, self.device = self.device, torch.device(device)
        if self.device.type == "cpu" and before.type != "cpu":
            self.unload()
        elif "model" in self.__dict__:
            self.model.to(self.device)
        return self

    def unload(self) -> None:
        """Gives the weights' memory back; they are read again when next needed."""
        self.__dict__.pop("model", None)

    @property
    def sample_rate(self) -> int:
        return int(self._extractor.sampling_rate)

    @cached_property
    def _digest(self) -> str:
        return weights_digest(self.folder, {key: getattr(self, key) for key in SETTINGS})

    @cached_property
    def folder(self) -> Path:
        """Where its files are."""
        return locate(self.name)

    @cached_property
    def model(self) -> Any:
        """transformers' model, frozen, without the layers that are not needed."""
        model = _weights(self.folder, getattr(torch, self.dtype))
        decoder = model.model.language_model
        if self.layer is not None and self.layer < len(decoder.layers):
            del decoder.layers[self.layer :]
            decoder.norm = nn.Identity()
            decoder.config.num_hidden_layers = self.layer
        model.lm_head = nn.Identity()
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"{self.folder} holds no tokenizer ({str(error).splitlines()[0]}); copy the whole folder of the thinker"
            ) from error

    @cached_property
    def _extractor(self) -> WhisperFeatureExtractor:
        """As the folder says; a folder of the thinker alone says nothing, and then as every Qwen2.5-Omni has it."""
        folder = self.folder
        if (folder / "preprocessor_config.json").is_file():
            return WhisperFeatureExtractor.from_pretrained(folder)
        return WhisperFeatureExtractor(feature_size=self._config.audio_config.num_mel_bins, chunk_length=300)

    def _hear(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform (n,) to mel features (1, bins, frames) and their mask (1, frames).

        The processor pads to 300 s. Past the audio's end only what a frame's window reaches matters, so a window is
        enough: the frames that the mask lets through are the same. Whole hops, so that a folder which says to pad on
        the left gets them at the processor's places too.
        """
        longest, hop = self._extractor.n_samples, self._extractor.hop_length
        if len(waveform) > longest:
            raise TokenizerError(
                f"the thinker hears {longest // self.sample_rate} s at most, and the clip lasts "
                f"{len(waveform) / self.sample_rate:.0f} s; cut it"
            )
        heard = self._extractor(
            waveform.numpy(),
            sampling_rate=self.sample_rate,
            padding="max_length",
            max_length=-(-(len(waveform) + self._extractor.n_fft) // hop) * hop,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return heard["input_features"], heard["attention_mask"]

    def _ids(self, grid: list[int], seconds: float, heard: int | None) -> Tensor:
        """Token ids (1, L) of the prompt around a video of this grid and so many audio tokens."""
        per_second = self._config.position_id_per_seconds
        block = int(per_second * self._config.seconds_per_chunk)
        per_grid = grid[1] * grid[2] // self._config.vision_config.spatial_merge_size**2
        places = video_places(per_grid, grid[0], seconds * per_second, block)
        ids = torch.tensor([self._tokenizer.encode(chat(media(places, heard, block), self.system))])
        for token, count in ((VIDEO, len(places)), (AUDIO, heard or 0)):
            if int((ids == self._id(token)).sum()) != count:
                raise TokenizerError(f"the tokenizer of {self.name} does not know {token}; use Qwen2.5-Omni's own")
        return ids

    def _id(self, token: str) -> int:
        ids = {
            VIDEO: self._config.video_token_id,
            AUDIO: self._config.audio_token_id,
            MEDIA_START: self._config.vision_start_token_id,
        }
        return int(ids[token])


def _configuration(name: str) -> Any:
    """That of a thinker, or of the thinker in a whole Qwen2.5-Omni."""
    try:
        return Qwen2_5OmniThinkerConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"the thinker {name} has no configuration: {str(error).splitlines()[0]}; give a folder or a Hub name "
            "such as Qwen/Qwen2.5-Omni-7B"
        ) from error


def _weights(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder, whole; raises `TokenizerError` rather than leave anything in it to chance."""
    loader: Any = QwenThinker
    try:
        model, told = loader.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TokenizerError(f"the thinker in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if told["missing_keys"]:
        raise TokenizerError(
            f"{folder} is no Qwen2.5-Omni thinker: its weights lack {min(told['missing_keys'])} and others; copy the "
            "whole folder, or give another name"
        )
    return model


def audio_tokens(frames: int) -> int:
    """Tokens that the audio tower makes of mel frames: a convolution of stride 2, then pairs averaged; 25 a second."""
    return ((frames - 1) // 2 - 1) // 2 + 1


def _unit(values: Tensor) -> Tensor:
    """Each token of (n, D) scaled to a root mean square of 1."""
    return values * values.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
