"""The thinker: features of an initiator's clip from Qwen2.5-Omni (arXiv 2503.20215).

SpeakerVid-5M's baseline conditions the answer on the thinker's hidden states *and* on the raw audio and video
embeddings. Here a feature is the concatenation of both: the hidden state of a token after a chosen layer, and the
embedding that enters the first layer. There is one feature for each token from the start of the media to the position
where the thinker's own answer would begin. Each half is scaled to a root mean square of 1, because hidden states before
the last norm hold a few values that are thousands of times larger than the others. The responder projects the features
to its own width.
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
from vidchat.tokenizers.thinker.files import find_folder, weights_digest
from vidchat.tokenizers.thinker.patches import fitted_size, patchify, resize
from vidchat.tokenizers.thinker.prompt import AUDIO, MEDIA_START, SYSTEM, VIDEO, chat, placeholders, video_blocks
from vidchat.tokenizers.weights import TokenizerError

DTYPES = ("bfloat16", "float16", "float32")
SETTINGS = ("layer", "fps", "min_pixels", "max_pixels", "system", "dtype")
TOKEN_PIXELS = 28 * 28  # pixels per video token


class Media(Protocol):
    """A decoded clip.

    Attributes:
        frames: Frames (N, 3, H, W) uint8.
        waveform: Waveform (n,) float.
        fps: Frames per second.
        sample_rate: Samples per second.
    """

    frames: Tensor
    waveform: Tensor
    fps: int
    sample_rate: int


@register("thinker")
class Thinker:
    """A frozen Qwen2.5-Omni thinker. Only its configuration is read before features are first computed.

    Args:
        name: Hub name, or a folder with `config.json`, `*.safetensors` and the tokenizer's files, of a complete
            Qwen2.5-Omni or of its thinker alone.
        layer: Number of layers after which hidden states are taken, 1 or more; later layers are dropped. `None` takes
            them after the last layer and the final norm.
        fps: Frames per second that the model reads. Two frames make one temporal patch, so 2 gives one patch per
            second, as in the model's own examples.
        min_pixels: Minimum number of pixels of a frame; smaller frames are enlarged.
        max_pixels: Maximum number of pixels of a frame; larger frames are shrunk. A temporal patch of 784 n pixels is n
            tokens.
        system: System prompt; the default is the one that the model was trained with.
        dtype: Type of the weights.

    Attributes:
        width: D, the width of a feature: twice the width of the thinker.
        sample_rate: Sample rate of the audio that the model reads.

    Raises:
        TokenizerError: there is no thinker of that name, or a setting is out of its range.
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
        self._config = _load_config(name)
        layers = self._config.text_config.num_hidden_layers
        if layer is not None and not 1 <= layer <= layers:
            raise TokenizerError(f"thinker.layer={layer} must be in 1 .. {layers}, the layers of {name}")
        if fps < 1:
            raise TokenizerError(f"thinker.fps={fps} must be 1 or more frames per second")
        if dtype not in DTYPES:
            raise TokenizerError(f"thinker.dtype={dtype} must be one of {', '.join(DTYPES)}")
        self.name, self.layer, self.fps, self.system = name, layer, fps, system
        self.min_pixels, self.max_pixels, self.dtype = min_pixels, max_pixels, dtype
        self.width = 2 * self._config.text_config.hidden_size
        self.device = torch.device("cpu")

    def compute_features(self, frames: Tensor, fps: int, waveform: Tensor | None) -> Tensor:
        """Returns the features (P, D) float32 of one clip.

        Args:
            frames: Frames (N, 3, H, W) uint8.
            fps: Frames per second of `frames`.
            waveform: Waveform (n,) float in [-1, 1] at `sample_rate` that starts with the first frame; `None` for a
                clip without audio.
        """
        inputs = self.inputs(frames, fps, waveform)
        start = int((inputs["input_ids"][0] == self._id(MEDIA_START)).nonzero()[0])
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        with torch.no_grad():
            states = self.model.model(**moved, use_cache=False, output_hidden_states=True).hidden_states
            return torch.cat([_normalise_rms(states[k][0, start:].float()) for k in (-1, 0)], dim=-1)

    def encode(self, media: Media) -> Tensor:
        """Returns the features (P, D) float32 of a clip that is cut to chunks: 4T+1 frames, and audio from frame 1 on.

        Frame 0, which has no audio, is left out, so that video and audio start together. Audio that is silent
        throughout is left out too.
        """
        waveform = None
        if media.waveform.any():
            common = math.gcd(media.sample_rate, self.sample_rate)
            up, down = self.sample_rate // common, media.sample_rate // common
            waveform = torch.from_numpy(resample_poly(media.waveform.cpu().numpy(), up, down)).float().clamp(-1, 1)
        return self.compute_features(media.frames[1:], media.fps, waveform)

    def inputs(self, frames: Tensor, fps: int, waveform: Tensor | None) -> dict[str, Any]:
        """Returns the model's inputs by the names of its arguments, on the CPU; see `compute_features`."""
        vision = self._config.vision_config
        sampled = frames[[int(i * fps / self.fps) for i in range(1 + int((len(frames) - 1) * self.fps / fps))]]
        factor = vision.patch_size * vision.spatial_merge_size
        size = fitted_size((sampled.shape[2], sampled.shape[3]), factor, self.min_pixels, self.max_pixels)
        patches, grid = patchify(
            resize(sampled, size), vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        seconds = vision.temporal_patch_size / self.fps
        inputs: dict[str, Any] = {
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "video_second_per_grid": torch.tensor([seconds]),
            "use_audio_in_video": waveform is not None,
        }
        audio_tokens = None
        if waveform is not None:
            inputs["input_features"], inputs["feature_attention_mask"] = self._mel_features(waveform)
            audio_tokens = count_audio_tokens(int(inputs["feature_attention_mask"].sum()))
        ids = self._ids(grid[0].tolist(), seconds, audio_tokens)
        # Without an attention mask the model silently ignores its positions in time and space.
        return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def fingerprint(self) -> str:
        """Returns the fingerprint of the weights and the settings; the location has no part in it."""
        return self._digest

    def to(self, device: torch.device | str) -> Thinker:
        """Moves the model to a device; moving it from a GPU back to the CPU unloads it."""
        previous, self.device = self.device, torch.device(device)
        if self.device.type == "cpu" and previous.type != "cpu":
            self.unload()
        elif "model" in self.__dict__:
            self.model.to(self.device)
        return self

    def unload(self) -> None:
        """Frees the memory of the weights; they are read again when they are next needed."""
        self.__dict__.pop("model", None)

    @property
    def sample_rate(self) -> int:
        return int(self._extractor.sampling_rate)

    @cached_property
    def _digest(self) -> str:
        return weights_digest(self.folder, {key: getattr(self, key) for key in SETTINGS})

    @cached_property
    def folder(self) -> Path:
        """Folder that holds the files."""
        return find_folder(self.name)

    @cached_property
    def model(self) -> Any:
        """The model of transformers, frozen, without the layers that are not needed."""
        model = _load_model(self.folder, getattr(torch, self.dtype))
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
        """The folder's feature extractor, or that of Qwen2.5-Omni if the folder (of a thinker alone) has none."""
        folder = self.folder
        if (folder / "preprocessor_config.json").is_file():
            return WhisperFeatureExtractor.from_pretrained(folder)
        return WhisperFeatureExtractor(feature_size=self._config.audio_config.num_mel_bins, chunk_length=300)

    def _mel_features(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mel features (1, bins, mel frames) of a waveform (n,) and their mask (1, mel frames).

        The processor pads to 300 s. Here the padding is one window, which gives the same mel frames under the mask. Its
        length is a multiple of the hop, so that padding on the left, if the folder asks for it, gives the same too.
        """
        max_samples, hop = self._extractor.n_samples, self._extractor.hop_length
        if len(waveform) > max_samples:
            raise TokenizerError(
                f"the clip lasts {len(waveform) / self.sample_rate:.0f} s and the thinker reads at most "
                f"{max_samples // self.sample_rate} s; cut the clip"
            )
        features = self._extractor(
            waveform.numpy(),
            sampling_rate=self.sample_rate,
            padding="max_length",
            max_length=-(-(len(waveform) + self._extractor.n_fft) // hop) * hop,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return features["input_features"], features["attention_mask"]

    def _ids(self, grid: list[int], seconds: float, audio_tokens: int | None) -> Tensor:
        """Returns the token ids (1, L) of the prompt.

        Args:
            grid: Number of temporal patches of the video, and of patches along its height and width.
            seconds: Duration of a temporal patch.
            audio_tokens: Number of audio tokens; `None` without audio.
        """
        per_second = self._config.position_id_per_seconds
        block = int(per_second * self._config.seconds_per_chunk)
        per_grid = grid[1] * grid[2] // self._config.vision_config.spatial_merge_size**2
        video = video_blocks(per_grid, grid[0], seconds * per_second, block)
        prompt = chat(placeholders(video, audio_tokens, block), self.system)
        ids = torch.tensor([self._tokenizer.encode(prompt)])
        for token, count in ((VIDEO, len(video)), (AUDIO, audio_tokens or 0)):
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


def _load_config(name: str) -> Any:
    """Loads the configuration of a thinker, or of the thinker in a complete Qwen2.5-Omni."""
    try:
        return Qwen2_5OmniThinkerConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"the thinker {name} has no configuration: {str(error).splitlines()[0]}; give a folder or a Hub name "
            "such as Qwen/Qwen2.5-Omni-7B"
        ) from error


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    """Loads the model of a folder; raises `TokenizerError` if weights are missing, which would be random."""
    loader: Any = QwenThinker
    try:
        model, info = loader.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TokenizerError(f"the thinker in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if info["missing_keys"]:
        raise TokenizerError(
            f"{folder} is not a Qwen2.5-Omni thinker: its weights lack {min(info['missing_keys'])} and others; copy "
            "the whole folder, or give another name"
        )
    return model


def count_audio_tokens(mel_frames: int) -> int:
    """Returns the number of tokens, 25 per second, of the audio tower: a convolution of stride 2, then pooling by 2."""
    return ((mel_frames - 1) // 2 - 1) // 2 + 1


def _normalise_rms(values: Tensor) -> Tensor:
    """Scales each row of (n, D) to a root mean square of 1."""
    return values * values.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
