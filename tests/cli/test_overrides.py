"""Free text and paths reach the config as they were typed; everything else is Hydra's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidchat.cli import infer as infer_script
from vidchat.cli import train as train_script
from vidchat.cli.data_encode import _config as encode_config
from vidchat.cli.overrides import CONFIGS, INFER_PATHS, TRAIN_PATHS, explain_error, literally, override, read_size

ROOT = Path(__file__).parents[2]
TYPED = [
    "Hello, how are you?", "it's fine", '"so", he said', "你好，世界", "💡 é", "3", "1e5", "nan", "true", "[1, 2]",
    "{a: 1}", "a: b", "#1", "clip (1).mp4", "a=b", "a,b", " spaces ", "two\nlines",
    "\ttab", "${oc.env:HOME}", "\\${x}", "\\\\${x}", "${",
    "$5}", "C:\\new\\text", "end\\", "\\'", "'", "''", "'\\", "\\\\'${y}'\\", "choice(a)", "*", "~", "+x", "\udcff",
]  # fmt: skip


def composed(name: str, *words: str) -> DictConfig:
    paths = INFER_PATHS if name == "infer" else TRAIN_PATHS
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, literally(words, paths))


@pytest.mark.parametrize("typed", TYPED)
def test_a_text_and_paths_are_what_was_typed(typed: str) -> None:
    config = composed("infer", f"text={typed}", f"reference={typed}", f"+voice={typed}"[1:], f"++output={typed}")
    keys = ["text", "reference", "voice", "output"]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True)
    assert list(resolved.values()) == [typed] * 4 == [config[key] for key in keys]  # type: ignore[union-attr]


@pytest.mark.parametrize("typed", TYPED)
def test_a_key_of_several_paths_takes_one_or_a_list(typed: str) -> None:
    quoted = '"' + typed.replace('"', '""') + '"'
    if typed != "${":  # OmegaConf reads it as an interpolation that was begun
        assert list(composed("infer", f"initiator=[a 1.mp4, {quoted},c]").initiator) == ["a 1.mp4", typed, "c"]
    if typed != "[1, 2]":
        assert composed("infer", f"initiator={typed}").initiator == typed
    assert composed("infer", "initiator=[]").initiator == []


def test_nothing_is_null_and_the_word_null_can_be_said() -> None:
    config = composed("infer", "text=", "initiator=", "voice=null")
    assert (config.text, config.initiator, config.voice) == (None, None, None)
    assert composed("infer", "text=null").text == "null"
    config = composed("train", "stage=pretrain_av", "resume=null", "init_from=./null", "backbone_from=")
    assert (config.resume, config.init_from, config.backbone_from) == (None, "./null", None)


def test_paths_of_training_stay_what_they_are_where_the_config_uses_them() -> None:
    typed = "it's, (1) = ${oc.env:HOME}"
    words = [f"{key}={typed}" for key in ("data.root", "output_dir", "video_vae.directory", "audio_codec.directory")]
    plain = OmegaConf.to_container(composed("train", "stage=pretrain_av", "data=folder", *words), resolve=True)
    assert plain["data"]["root"] == plain["output_dir"] == plain["video_vae"]["directory"] == typed  # type: ignore[index,call-overload]
    assert plain["stage"]["export"] == f"{typed}/release"  # type: ignore[index,call-overload]


def test_every_key_of_infer_can_be_given() -> None:
    """A key that is named like a group of configs/ could not: Hydra would look for a choice of that name."""
    keys = [key for key in composed("infer") if key != "settings"]
    assert composed("infer", *(f"{key}=x" for key in keys)).checkpoint == "x"


def test_all_other_words_are_hydra_s() -> None:
    words = [
        "stage=pretrain_av,sft_dyadic", "stage.optimizer.lr=1e-3,1e-4", "data.size=[96,64]",
        "hydra.run.dir=a/${now:%H}", "scores={dover: 1}",
        "-m", "~callbacks.samples", "--cfg", "job", "texts=a,b", "data.sources=[{root:a}]",
        "thinker=none",
    ]  # fmt: skip
    assert literally(words, TRAIN_PATHS) == words


def test_a_sweep_goes_over_other_keys_with_a_path_as_it_is() -> None:
    parsed = OverridesParser.create().parse_overrides(literally(["data.root=a,b (1)", "seed=1,2"], TRAIN_PATHS))
    assert [one.is_sweep_override() for one in parsed] == [False, True]
    again = f"data.root={parsed[0].get_value_element_as_str()}"  # what the sweeper hands on
    assert OverridesParser.create().parse_override(again).value() == "a,b (1)"
    assert override("seed", "1,2") == "seed='1,2'"


def test_encode_takes_folders_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's, (1) = ${x}"
    folder.mkdir()
    config, _ = encode_config(folder, [f"video_vae={folder}"])
    assert config.data.root == config.video_vae.directory == str(folder)


def test_what_hydra_refuses_is_one_sentence_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "train.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (1, 1, "")
    assert done.stderr.startswith(
        "error: You must specify 'stage', e.g, stage=<OPTION> (there are pretrain_av, pretrain_visual, sft_dyadic,"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infer", "txt=3"], "there is no key 'txt'; did you mean 'text'? --help names every key"),
        (["train", "stage=pretrain_av", "stage.stps=3"], "there is no key 'stage.stps'; did you mean 'stage.steps'?"),
        (["train", "stage=pretrain_av", "batch_size=2"], "there is no key 'batch_size'; did you mean 'data.ba"),
        (["train", "stage=pretrain_av", "lr=2"], "there is no key 'lr'; did you mean 'stage.optimizer.lr'?"),
        (["infer", "learning=2"], "there is no key 'learning'; --help names every key"),
        (["train", "stage=no"], "In 'train': Could not find 'stage/no' (there are pretrain_av, pretrain_visual, sft_"),
        (["infer", "scores={a:1"], "no viable alternative at input '{a:1'; --help names every key"),
        (["infer", "seconds=a(1)"], "Error parsing override 'seconds=a(1)' HydraException while evaluating"),
    ],
)
def test_its_messages_fit_into_a_line(words: list[str], message: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed(*words)
    assert explain_error(caught.value, words[0]).startswith(message)
    assert "\n" not in explain_error(caught.value, words[0])


def test_a_group_that_is_given_no_name_is_one_sentence() -> None:
    words = [sys.executable, "train.py", "stage=pretrain_av", "thinker=null"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"^error: a group \(.*thinker.*\) must be given the name of one of its", done.stderr, re.M)


@pytest.mark.parametrize(("words", "named"), [(["--checkpoint", "x"], "--checkpoint"), (["a=b", "-m", "c=d"], "c=d")])
def test_an_option_that_is_none_is_named(words: list[str], named: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["infer.py", *words])
    with pytest.raises(SystemExit, match=f"^error: {named} is not understood: give settings as KEY=VALUE"):
        infer_script.main()


def test_every_path_of_infer_can_be_given() -> None:
    """None of them is the name of a config group, whose values Hydra looks for in a folder of its own."""
    words = [f"{key}=/a b/{key}" for key in INFER_PATHS]
    config = composed("infer", *words)
    assert {OmegaConf.select(config, key) for key in INFER_PATHS} == {word.partition("=")[2] for word in words}


@pytest.mark.parametrize(("script", "key"), [(train_script, "output_dir:"), (infer_script, "initiator: null #")])
def test_help_says_what_a_script_does_and_every_key(script, key: str, monkeypatch, capsys) -> None:
    name = script.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help", "text=a, b"])
    script.main()
    output = capsys.readouterr().out
    assert output.startswith(script.__doc__.strip())
    assert key in output
    assert "hydra:" not in output
    assert ("stage=pretrain_av|pretrain_visual" in output) == (name == "train")


def test_a_size_is_height_x_width_or_a_list() -> None:
    for typed in ("48x32", "[48,32]"):
        assert list(read_size(composed("train", "stage=pretrain_av", f"data.size={typed}")).data.size) == [48, 32]
    with pytest.raises(ValueError, match=r"^data\.size='big' is not a size; give HEIGHTxWIDTH"):
        read_size(composed("train", "stage=pretrain_av", "data.size=big"))
