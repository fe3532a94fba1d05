"""A frozen Qwen2.5-Omni thinker: an initiator's frames and audio in, features that condition the answer out."""

from vidchat.tokenizers.thinker.thinker import Thinker

__all__ = ["Thinker"]
