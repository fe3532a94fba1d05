# make demo    trains and scores a model on rendered people and writes a page, in MINUTES (15) after installation
# make test    runs ruff, mypy, the import contracts and the tests
# make setup   installs the environment only
PY ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
MINUTES ?= 15

.PHONY: setup demo test clean
setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch>=2.13,<2.14"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,demo,bench,log]"
	$(BIN)/python -m pip check
	@# pip check does not notice a broken torchvision or torchaudio, which breaks these imports.
	$(BIN)/python -c "import torch, lightning, torchmetrics; from diffusers import AutoencoderKLWan; from transformers import EncodecModel, Qwen3Model, WhisperFeatureExtractor"
	touch $@

demo: setup
	$(BIN)/python -m vidchat demo --minutes $(MINUTES)

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

clean:
	rm -rf outputs
