"""Everything that a child of the suite needs, imported once by the server that forks them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # asking the Hub would be a connection; offline, it ends at once

import lightning  # noqa: F401
import torch

import vidchat.bench.scoring
import vidchat.bench.suite
import vidchat.cli
import vidchat.cli.data_encode
import vidchat.cli.infer
import vidchat.cli.train
import vidchat.data.loading.datamodule
import vidchat.training.responder_module  # noqa: F401

torch.set_num_threads(1)
