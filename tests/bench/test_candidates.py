from __future__ import annotations

import json
import shutil

import pytest

from vidchat.bench.candidates import ReplyWriter, read_replies, write_candidates
from vidchat.bench.pairs import CANDIDATES, read_pairs

GOOD = 'Sure:\n1. yes, quite so\n2) "it may be"\n3. the weather\n4: pancakes\n'


@pytest.fixture
def folder(bench, tmp_path):
    shutil.copytree(bench, tmp_path / "bench")
    (tmp_path / "bench" / CANDIDATES).unlink()
    return tmp_path / "bench"


def test_four_numbered_lines_are_read_and_nothing_else():
    assert read_replies(GOOD) == ["yes, quite so", "it may be", "the weather", "pancakes"]
    assert read_replies("1. a\n2. b\n3. c") is None
    assert read_replies("1. a\n2. a\n3. c\n4. d") is None
    assert read_replies("no list") is None


def test_candidates_are_the_truth_and_four_worse_replies_and_are_generated_once(folder):
    asked = []

    def write(prompt, seed):
        asked.append((prompt, seed))
        return GOOD if len(asked) > 1 else "cannot"

    report = write_candidates(folder, read_pairs(folder), write, "writer 1")
    assert report.read == 4
    assert [seed for _, seed in asked] == [0, 1, 0, 0, 0], "the first is asked again"
    assert '"well?"' in asked[0][0]
    replies = read_pairs(folder)[0].candidates
    assert [(reply.text, reply.score) for reply in replies][:2] == [("yes </script> & so", 1.0), ("yes, quite so", 0.8)]
    write_candidates(folder, read_pairs(folder), write, "writer 1")
    assert len(asked) == 5
    write_candidates(folder, read_pairs(folder), write, "writer 2")
    assert len(asked) == 9
    assert json.loads((folder / CANDIDATES).read_text().split("\n")[0])["made_by"].startswith("writer 2, prompt ")


def test_a_language_model_loads_and_its_failures_are_listed(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="three")
    tokens.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokens.save_pretrained(tmp_path / "model")
    config = Qwen3Config(
        vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, eos_token_id=4, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    writer = ReplyWriter(str(tmp_path / "model"))
    assert writer("one two", 0) == writer("one two", 0)
    report = write_candidates(folder, read_pairs(folder)[:1], writer, writer.name)
    assert report.read == 0
    assert "wrote no four different answers" in report.skipped[0][1]
    assert (folder / CANDIDATES).read_text() == ""
