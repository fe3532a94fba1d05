"""A release: a folder from which a trained responder is loaded by one call, local or from the Hub.

    model.safetensors   the averaged weights
    config.yaml         the model, its conditions, fps and size, and its tokenizers, by names of `vidchat.registry` and
                        never by import paths; the tokenizers' fingerprints
    video_vae/          a copy of the video tokenizer, unless it is published on the Hub
    audio_codec/        likewise

A thinker, if the responder is conditioned on one, is only named: its weights are many times the responder's.
The fingerprints are compared at load: a responder works with the tokenizers it was trained with and with no others.
"""

from vidchat.release.config import read_config as read_config
from vidchat.release.export import export_release as export_release
from vidchat.release.format import TOKENIZERS as TOKENIZERS
from vidchat.release.format import ReleaseError as ReleaseError
from vidchat.release.load import load_release as load_release
from vidchat.release.load import read_weights as read_weights
from vidchat.release.release import Release as Release
