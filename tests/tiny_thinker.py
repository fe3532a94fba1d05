"""A random Qwen2.5-Omni thinker of 56 thousand weights with a byte-level tokenizer, in transformers' format."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

SPECIAL = {
    "<|AUDIO|>": 260, "<|IMAGE|>": 261, "<|VIDEO|>": 262, "<|audio_bos|>": 263, "<|audio_eos|>": 264,
    "<|vision_bos|>": 265, "<|vision_eos|>": 266, "<|im_start|>": 267, "<|im_end|>": 268,
}  # fmt: skip
WIDTH = 16


def tiny_config() -> Qwen2_5OmniThinkerConfig:
    """Returns a small configuration of the class of Qwen/Qwen2.5-Omni-7B's thinker."""
    return Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "output_dim": WIDTH,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": 300, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        audio_token_index=260, image_token_index=261, video_token_index=262, audio_start_token_id=263,
        audio_end_token_id=264, vision_start_token_id=265, vision_end_token_id=266,
    )  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer with Qwen's special tokens under the names that its processor uses."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | {f"unused{i}": 256 + i for i in range(4)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    names = ("audio_token", "image_token", "video_token", "audio_bos_token", "audio_eos_token", "vision_bos_token")
    named = dict(zip((*names, "vision_eos_token"), SPECIAL, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=named, pad_token="<|im_end|>")


def save_tiny_thinker(folder: Path, seed: int = 0) -> Path:
    """Writes a random thinker and its tokenizer to a folder; returns the folder."""
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():  # a new model hardly depends on its input
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
