"""The loss plot is drawn from whatever a run has left so far."""

import json

import pytest
from PIL import Image

from hf_gpt.cli import main
from hf_gpt.errors import UserError
from hf_gpt.report.page import plot
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


def kind_of(data: bytes) -> str:
    """What the bytes of a picture are."""
    if data.startswith((b"<?xml", b"<svg")):
        return ".svg" if b"<svg" in data[:1000] else "xml"
    return {b"\x89PNG": ".png", b"%PDF": ".pdf"}.get(data[:4], "unknown")


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg", "A.PDF", "two.parts.svg"])
def test_a_picture_is_what_its_name_says_and_a_notebook_shows_it(tmp_path, name):
    write_metrics(tmp_path, 4)
    drawn = loss_plot(tmp_path, tmp_path / name)
    kind = drawn.suffix.lower()
    assert (drawn, kind_of(drawn.read_bytes())) == (tmp_path / name, kind)
    assert drawn._repr_png_() == (drawn.read_bytes() if kind == ".png" else None)
    assert drawn._repr_svg_() == (drawn.read_text() if kind == ".svg" else None)
    assert ("<img" in drawn.as_html()) == (kind != ".pdf")
    again = loss_plot(tmp_path, tmp_path / f"again{drawn.suffix}")
    assert again.read_bytes() == drawn.read_bytes()
    drawn.unlink()
    assert drawn._repr_png_() is drawn._repr_svg_() is None  # it is gone


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.html", "png"])
def test_pictures_of_other_kinds_are_refused_first(tmp_path, name):
    with pytest.raises(UserError, match=r"^path .*: give a name that ends in \.png, \.pdf or \.svg$"):
        loss_plot(tmp_path / "no-run", tmp_path / name)


def test_plot_writes_curves_into_a_file_or_a_report_into_a_folder(tmp_path, capsys):
    run_dir = tmp_path / "run.2"
    run_dir.mkdir()
    write_metrics(run_dir, 10)
    assert main(["plot", str(run_dir), "--output", str(tmp_path / "p.pdf")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/p.pdf\n"
    assert kind_of((tmp_path / "p.pdf").read_bytes()) == ".pdf"
    assert main(["plot", str(run_dir), "--output", str(tmp_path / "p.jpg")]) == 2
    assert f"--output {tmp_path}/p.jpg: give a name that ends in .png, .pdf or .svg" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.pdf", "run.2"]
    (tmp_path / "folder.pdf").mkdir()
    found = plot([run_dir], tmp_path / "folder.pdf")
    assert [path.name for path in found] == ["report.html", "loss.png", "curves.png"]
    assert found._repr_html_().count("<img") == 2


def test_one_run_is_named_by_a_text_or_a_path_and_paths_are_those_of_a_shell(tmp_path, monkeypatch):
    write_metrics(tmp_path, 4)
    assert plot(str(tmp_path)) == plot([tmp_path]) == plot(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loss_plot("~", "~/a.png") == tmp_path / "a.png"
    with pytest.raises(UserError, match=r"path: .* cannot be opened: File name too long"):
        loss_plot(tmp_path, "a" * 300 + ".png")


def test_six_at_once_draw_one_run(tmp_path, forks):
    write_metrics(tmp_path, 10)
    started = [forks.start("plot", tmp_path) for _ in range(6)]
    assert [one.wait() for one in started] == [0] * 6
    names = ["curves.png", "loss.png", "metrics.jsonl", "report.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names  # nothing half-written
    for name in names[:2]:
        with Image.open(tmp_path / name) as image:
            image.load()


def test_a_torn_last_line_is_left_out(tmp_path):
    write_metrics(tmp_path, 3, torn=True)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 2, 3]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a run: there is no metrics\.jsonl"):
        loss_plot(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no loss yet"):
        loss_plot(tmp_path)
