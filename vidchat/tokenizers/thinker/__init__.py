"""A frozen Qwen2.5-Omni thinker: turns an initiator's frames and audio into features that condition the answer."""

from vidchat.tokenizers.thinker.thinker import Thinker

__all__ = ["Thinker"]
