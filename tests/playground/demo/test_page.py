from __future__ import annotations

from vidchat.playground.demo.page import draw_losses


def test_a_stage_too_short_to_log_is_drawn_without_curves(tmp_path):
    runs = [tmp_path / "short", tmp_path / "long"]
    for run in runs:
        run.mkdir()
    (runs[1] / "metrics.csv").write_text("step,train/video\n10,2.0\n20,1.5\n")
    draw_losses(runs, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size
