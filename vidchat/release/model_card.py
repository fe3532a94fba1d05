"""The model card of a release: its size, training, results and commands, with the header that the Hub reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vidchat.dialogue import ChunkClock

_INPUTS = {"initiator": "initiator=CLIP.mp4", "text": '"text=WHAT TO SAY"', "voice": "voice=VOICE.mp4"}


class CardError(ValueError):
    """A model card that cannot be made: why, and what to do, in one sentence."""


@dataclass(frozen=True)
class CardDetails:
    """Facts for a card that a release does not hold.

    Attributes:
        license: Licence of the weights as the Hub writes it, e.g. apache-2.0 or cc-by-nc-4.0.
        data: Data that the model was trained on, in a few words or sentences.
        results: File scores.json of `vidchat bench score`, whose table the card shows.
        name: Name to load the release by, in the card's commands; by default its repository on the Hub, or its folder.
    """

    license: str | None = None
    data: str | None = None
    results: Path | None = None
    name: str | None = None


def model_card(
    config: Mapping[str, Any],
    clock: ChunkClock,
    parameters: Mapping[str, Mapping[str, int]],
    name: str,
    details: CardDetails,
    folder: Path | None = None,
) -> str:
    """Returns the text of a card.

    A `README.md` of the release's folder becomes the end of the card. If it has a header it is a card, and is returned.

    Args:
        config: Config of the release, as `read_config` returns it.
        clock: Clock of its tokenizers.
        parameters: Number of parameters by network and part, see `count_parameters`.
        name: Name to load the release by, `owner/name` or a folder, unless the details give another.
        details: Facts that the release does not hold.
        folder: Folder of the release.

    Raises:
        CardError: the folder holds a card, and details are given too.
        ResultError: the file of results holds none.
    """
    notes = _read_notes(folder)
    if notes.startswith("---\n"):
        if details != CardDetails():
            raise CardError(f"{folder}/README.md is a model card already; edit it, or remove it to have one made")
        return notes
    name = details.name or name
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # Markdown, so nothing is escaped
        loader=PackageLoader("vidchat.release", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["million"] = lambda count: f"{count / 1e6:.2f} M"
    environment.filters["cell"] = lambda text: " ".join(text.split()).replace("|", "\\|")
    condition, audio = config["condition"], bool(config["model"].get("depth"))
    return environment.get_template("model_card.md.jinja").render(
        header=yaml.safe_dump(_header(config, details, audio), sort_keys=False).strip(),
        title=name.rstrip("/").rpartition("/")[2].partition("@")[0],
        name=name,
        config=config,
        clock=clock,
        milliseconds=round(1000 / clock.chunks_per_second),
        details=details,
        parameters=parameters,
        hears=bool(condition.get("initiator")),
        reads=bool(condition.get("text")),
        inputs=[words for key, words in _INPUTS.items() if condition.get(key)],
        conditions=[key for key, value in condition.items() if value and key != "drop"],
        audio=audio,
        results=_results(details.results),
        notes=notes,
    )


def count_parameters(networks: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Returns the number of parameters by network and part, for those networks that are modules."""
    counts: dict[str, Counter[str]] = {}
    for network, module in networks.items():
        if hasattr(module, "named_parameters"):
            counts[network] = Counter()
            for name, value in module.named_parameters():
                counts[network][name.partition(".")[0]] += value.numel()
    return {network: dict(parts) for network, parts in counts.items()}


def _read_notes(folder: Path | None) -> str:
    file = None if folder is None else folder / "README.md"
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""


def _header(config: Mapping[str, Any], details: CardDetails, audio: bool) -> dict[str, Any]:
    """Returns the metadata by which the Hub finds a model."""
    stage = [str(config["stage"]["name"])] if config.get("stage") else []
    return ({} if details.license is None else {"license": details.license}) | {
        "library_name": "vidchat",
        "pipeline_tag": "any-to-any" if audio else "image-to-video",
        "tags": ["vidchat", "audio-visual", "video-generation", "talking-head", *stage],
    }


def _results(file: Path | None) -> str:
    """Returns the benchmark's tables, with their headings one level below the card's."""
    if file is None:
        return ""
    from vidchat.bench.results import read_result
    from vidchat.bench.table import markdown

    lines = markdown([read_result(file)]).splitlines()[1:]
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()
