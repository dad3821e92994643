"""The loss plot is drawn from whatever a run has left so far."""

import json

import pytest
from PIL import Image

from hf_gpt.errors import UserError
from hf_gpt.report.plots import loss_plot
from hf_gpt.training.run_log import read_metrics


def write_metrics(run_dir, num_lines: int, torn: bool = False) -> None:
    with open(run_dir / "metrics.jsonl", "w") as file:
        for step in range(1, num_lines + 1):
            line = {"step": step, "tokens": step * 100, "epoch": step / 10, "train_loss": 5 / step}
            file.write(json.dumps(line) + "\n")
            if step % 2 == 0:
                evaluated = {"eval_train_loss": 5 / step, "validation_loss": 6 / step}
                file.write(json.dumps({**line, **evaluated}) + "\n")
        file.write('{"step": 1' if torn else "")


@pytest.mark.parametrize("num_lines", [1, 10, 20_000])
def test_a_plot_of_any_length_is_drawn(tmp_path, num_lines):
    write_metrics(tmp_path, num_lines, torn=True)
    with Image.open(loss_plot(tmp_path)) as image:
        assert image.size == (1200, 750)
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 10  # lines, not a blank page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_a_torn_last_line_is_left_out(tmp_path):
    write_metrics(tmp_path, 3, torn=True)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 2, 3]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a run: there is no metrics\.jsonl"):
        loss_plot(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no loss yet"):
        loss_plot(tmp_path)
