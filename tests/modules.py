"""A responder's LightningModule, built as `vidchat train` builds it."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from vidchat.cli.train import new_responder
from vidchat.release import TOKENIZERS
from vidchat.training.responder_module import ResponderModule
from vidchat.training.schedule import OptimizerSettings


def responder_module(
    model: Any, condition: Any, fps: int, seed: int, *tokenizers: Any, optimizer: Any = None, thinker: Any = None
) -> ResponderModule:
    """Builds the module of a config; `tokenizers` are those of video, audio and text."""
    tools = dict(zip(TOKENIZERS, tokenizers, strict=True)) | {"thinker": thinker}
    plain = OmegaConf.to_container(OmegaConf.create({"model": model, "condition": condition}), resolve=True)
    assert isinstance(plain, dict)
    responder = new_responder({**plain, "data": {"fps": fps}, "seed": seed}, tools)
    return ResponderModule(responder, *tokenizers, OptimizerSettings(**(optimizer or {})), seed, thinker=thinker)
