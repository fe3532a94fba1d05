"""Scores releases on rendered people as the demo does, on any number of test dialogues.

    python -m vidchat.playground.people --output outputs/eval --dialogues 600 --seed 0
    python benchmarks/answers.py --root outputs/eval --release checkpoints/demo [--answers 72] \
        [--sampling temperature=0.7 flow_steps=16]

Prints the scores of the releases, of the truth and of its round trip through the tokenizers, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vidchat.data.folder import read_dialogues
from vidchat.playground.demo.answers import Answers
from vidchat.playground.demo.measure import percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="rendered dyads")
    parser.add_argument("--release", type=Path, nargs="+", default=[Path("checkpoints/demo")])
    parser.add_argument("--answers", type=int, default=72)
    parser.add_argument("--sampling", nargs="*", default=[], metavar="KEY=VALUE", help="replaced values")
    parser.add_argument("--output", type=Path, default=Path("outputs/answers"))
    options = parser.parse_args()
    dialogues = read_dialogues(options.root)
    train, test = ([d for d in dialogues if d.split == split] for split in ("train", "test"))
    sampling = {name: json.loads(value) for name, value in (word.split("=") for word in options.sampling)}
    systems = Answers(options.output, train[:40], test[: options.answers], sampling)
    scores = systems.score({release.name: release for release in options.release})
    for name, s in scores.items():
        count = len(s.heard)
        print(
            f"{name:28} face {percent(s.identity, count)}, mouth r {s.mouth:.2f} ({s.mouth_shuffled:.2f}), "
            f"answer {percent(s.answer, count)}, topic {percent(s.topic, count)}, "
            f"feeling {percent(s.feeling, count)}, {s.psnr:.1f} dB"
        )
    print(f"chance of the face: {1 / len(systems.references):.1%}", *systems.notes(), sep="\n")
    (options.output / "scores.json").write_text(json.dumps({name: asdict(s) for name, s in scores.items()}, indent=1))


if __name__ == "__main__":
    main()
