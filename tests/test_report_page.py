"""The report: one file that opens from disk, shows whatever a run left, and treats its text as a stranger's."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import refused
from test_training import changed

import hf_gpt
from hf_gpt.cli import main
from hf_gpt.errors import RunStopped
from hf_gpt.report.comparison import comparison_page
from hf_gpt.report.page import ReportWriter, run_page, write_report
from hf_gpt.report.plots import MOST_RUNS, loss_plots, run_style, training_plots
from hf_gpt.report.records import read_run

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and that all of them are closed."""

    def __init__(self, page: Path | str):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.source = page.read_text() if isinstance(page, Path) else page
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def images(self) -> dict[str, str]:
        """The SVG of each picture, by its text for who cannot see it."""
        prefix = "data:image/svg+xml;base64,"
        found = {a["alt"]: a["src"] for tag, a in self.elements if tag == "img"}
        return {alt: base64.b64decode(source.removeprefix(prefix)).decode() for alt, source in found.items()}


def write_run(
    run_dir: Path, steps: int, *, every: int = 5, turn: int | None = None, text: str = "and so on", scale: float = 1.0
) -> Path:
    """A run as training would leave it, with a validation loss that rises after `turn`."""
    (run_dir / "checkpoints").mkdir(parents=True)
    with open(run_dir / "metrics.jsonl", "w") as metrics, open(run_dir / "samples.jsonl", "w") as samples:
        for step in range(steps + 1):
            at = {"step": step, "tokens": 100 * step, "epoch": step / 50, "seconds": 0.5 * step}
            loss = scale * (2 + 5 / math.sqrt(1 + step / steps * 40))
            if step:
                trained = {"train_loss": loss, "lr": 1e-3, "grad_norm": 1 + step % 7 / 10, "tokens_per_second": 200.0}
                metrics.write(json.dumps({**at, **trained, "mfu": 0.4, "peak_memory_bytes": 2**28}) + "\n")
            if step % every == 0:
                rise = max(0, step - turn) / steps if turn else 0
                metrics.write(json.dumps({**at, "eval_train_loss": loss, "validation_loss": loss + 2 * rise}) + "\n")
                samples.write(json.dumps({"step": step, "prompt": "Once", "text": f"Once {text}"}) + "\n")
    return run_dir


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def compared(*run_dirs: Path) -> Page:
    return Page(comparison_page([read_run(run_dir) for run_dir in run_dirs]))


@pytest.mark.parametrize("steps", [1, 10, 100_000])
def test_a_report_is_one_small_file_that_needs_nothing_else(tmp_path, steps):
    path = write_report(write_run(tmp_path / "run", steps, every=max(1, steps // 500)))
    assert path.stat().st_size < 1_000_000
    page = Page(path)
    assert [alt.split(":")[0].split(" (")[0] for alt in page.images] == [
        "Loss",
        "Perplexity",
        "Learning rate",
        "Gradient norm, before clipping",
        "Speed",
        "Model FLOPs utilisation",
        "Peak memory of the process",
    ]
    assert page.count("script") == page.count("link") == 0
    assert not re.search(r"https?:|@import|url\(", page.source)
    assert all(image.count("<path") > 10 for image in page.images.values())
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_every_evaluation_is_in_a_table(tmp_path):
    words = Page(write_report(write_run(tmp_path / "run", 10))).words
    assert "step tokens training loss validation loss 0 0 7.000 7.000 5 500 3.091 3.091 10 1,000 2.781" in words
    words = compared(*(write_run(tmp_path / name, 10, scale=scale) for name, scale in (("a", 1), ("b", 2)))).words
    assert "Every evaluation: validation loss step 1. a 2. b 0 7.000 14.000 5 3.091 6.182 10 2.781 5.562" in words


@pytest.mark.parametrize("x", ["steps", "tokens", "seconds"])
def test_curves_are_drawn_over_the_chosen_axis(tmp_path, x):
    run = read_run(write_run(tmp_path / "run", 10))
    loss, perplexity = loss_plots([run], x)
    evaluated = {"steps": [0, 5, 10], "tokens": [0, 500, 1000], "seconds": [0, 2.5, 5]}[x]
    for label in ("training text", "validation text"):
        (losses,), (perplexities,) = ([c for c in plot.curves if c.label == label] for plot in (loss, perplexity))
        assert list(losses.x) == list(perplexities.x) == evaluated
        assert perplexities.y == pytest.approx(np.exp(losses.y))
    label = {"steps": "steps", "tokens": "tokens seen", "seconds": "time (seconds)"}[x]
    assert all(f">{label}<" in image for image in Page(run_page(run, x)).images.values())
    assert all(label in alt for alt in Page(run_page(run, x, log=True)).images)


def test_a_single_line_of_metrics_can_be_seen(tmp_path):
    line = {"step": 10, "tokens": 90, "epoch": 1, "seconds": 1, "train_loss": 3.0, "lr": 1e-3, "grad_norm": 1.0}
    write_lines(tmp_path / "metrics.jsonl", [line])
    images = Page(write_report(tmp_path)).images
    assert len(images) == 4
    assert all('<g id="line2d_' in image and "<use" in image for image in images.values())


def test_a_spike_in_a_long_run_is_drawn(tmp_path):
    lines = [{"step": step, "train_loss": 2 + math.sin(step / 900)} for step in range(1, 50_000)]
    lines[31_415]["train_loss"] = 50.0
    write_lines(tmp_path / "metrics.jsonl", lines)
    (image,) = [image for alt, image in Page(write_report(tmp_path)).images.items() if alt.startswith("Loss")]
    curve = max(re.findall(r'd="(M[^"]*)"', image), key=len)
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", curve)]  # from the top, in pixels of some 216
    assert min(heights) < 30
    assert max(heights) > 150


def test_the_beginning_does_not_make_the_rest_of_a_perplexity_flat(tmp_path):
    short, long = (read_run(write_run(tmp_path / f"{steps}", steps, every=steps // 10)) for steps in (20, 400))
    perplexity = loss_plots([short, long])[1]
    assert max(perplexity.curves[0].y[2:]) < perplexity.top < perplexity.curves[0].y[0]


def test_overfitting_is_marked_with_the_checkpoint_to_use(tmp_path):
    run_dir = write_run(tmp_path / "run", 100, turn=50)
    page = Page(write_report(run_dir))
    assert "It overfits from step 50." in page.words
    assert "No checkpoint was kept at step 50; a checkpoint.every" in page.words
    marked = [alt for alt, image in page.images.items() if "lowest validation loss: step 50" in image]
    assert len(marked) == 2
    assert "step 50 lowest validation loss" in page.words  # its sample is among those shown

    (run_dir / "checkpoints" / "step-00000060").mkdir()
    (run_dir / "checkpoints" / "best").write_text("step-00000060\n")
    assert "the best one kept is checkpoints/step-00000060 ." in Page(write_report(run_dir)).words
    (run_dir / "checkpoints" / "step-00000050").mkdir()
    (run_dir / "checkpoints" / "best").write_text("step-00000050\n")
    assert "use: checkpoints/step-00000050 ( checkpoints/best )." in Page(write_report(run_dir)).words


@pytest.mark.parametrize(
    ("validation", "training", "verdict"),
    [
        ([5.0], [5.0], "It is too early to tell whether it overfits. Validation loss is lowest at step 0"),
        ([5.0, 4.0, 3.0], [5.0, 4.0, 3.0], "It does not overfit so far."),
        ([5.0, 4.0, 3.0, 4.0, 5.0, 6.0], [5.0, 4.0, 3.0, 4.0, 5.0, 6.0], "It diverges."),
        ([5.0, 4.0, 3.0, 3.5], [5.0, 4.0, 3.0, 2.0], "It may have begun to overfit."),
        ([None], [5.0], "There is no validation text, so whether it overfits is unknown."),
    ],
)
def test_the_verdict_names_the_trend(tmp_path, validation, training, verdict):
    lines = [
        {"step": step, "tokens": step, "epoch": step, "seconds": step, "eval_train_loss": t, "validation_loss": v}
        for step, (v, t) in enumerate(zip(validation, training))
    ]
    write_lines(tmp_path / "metrics.jsonl", lines)
    page = Page(write_report(tmp_path))
    assert verdict in page.words
    assert not any("lowest validation loss: step" in image for image in page.images.values())


def test_a_branch_counts_its_time_from_where_it_branched_off(tmp_path):
    run_dir = write_run(tmp_path / "run", 30)
    (run_dir / "environment.json").write_text(json.dumps({"parent": {"run": "runs/a", "step": 20}}))
    assert "30 steps, 3,000 tokens; 15 s since step 20" in Page(write_report(run_dir)).words


def test_what_a_stranger_wrote_is_shown_as_text(tmp_path):
    hostile = '</pre></title><script>alert(1)</script><img src=http://x onerror="x">&amp;$\\frac$\x00\x1b[31m\u202e'
    run_dir = write_run(tmp_path / '<b>"$x_', 10, text=hostile)
    (run_dir / "recipe.yaml").write_text(f"a: '{hostile[:60]}'\n")
    events = [{"event": "changed", "step": 1, "what": hostile}, {"event": hostile, "step": 2, hostile: hostile}]
    events.append({"event": "skipped", "step": 3, "grad_norm": hostile, "windows": [hostile]})
    write_lines(run_dir / "events.jsonl", events)
    (run_dir / "environment.json").write_text(json.dumps({"device": hostile, "versions": {hostile: hostile}}))
    page = Page(write_report(run_dir))
    assert page.count("script") == 0
    assert page.count("img") == len(page.images) == 7
    assert page.count("b") == 3  # the prompt, in each of the three samples
    assert "<script>alert(1)</script>" in page.words
    assert "&amp;$\\frac$\\x00\\x1b[31m\\u202e" in page.words
    main(["plot", str(run_dir), str(write_run(tmp_path / "other", 10)), "--output", str(tmp_path / "both")])
    both = Page(tmp_path / "both" / "report.html")
    assert both.count("script") == both.count("b") == 0
    assert '1. <b>"$x_' in both.words


def test_the_history_is_shown(tmp_path):
    run_dir = write_run(tmp_path / "run", 10)
    events = [
        {"event": "damaged checkpoint", "step": 4, "checkpoint": "step-00000008", "problem": "truncated"},
        {"event": "changed", "step": 4, "what": "seed 1 -> 2"},  # as runs wrote it before fields were kept apart
        {"event": "changed", "step": 4, "field": "train.max_steps", "old": 8, "new": 10},
        {"event": "resumed", "step": 4, "checkpoint": "step-00000004", "processes": 2},
        {"event": "skipped", "step": 6, "grad_norm": "inf", "windows": [3, 1]},
        {"event": "not finite", "step": 10, "grad_norm": "nan", "windows": [2]},
    ]
    write_lines(run_dir / "events.jsonl", events)
    words = Page(write_report(run_dir)).words
    for line in (
        "Times resumed: 1; updates skipped: 1; events in all: 6.",
        "step-00000008 was damaged: truncated",
        "changed: seed 1 -> 2",
        "changed: train.max_steps 8 -> 10",
        "resumed from step-00000004 on 2 processes",
        "update skipped; gradient norm inf; windows 3, 1",
        "ended by a loss or gradient that was not finite",
    ):
        assert line in words


def test_files_that_are_odd_are_named_and_the_rest_is_shown(tmp_path):
    run_dir = write_run(tmp_path / "run", 10)
    (run_dir / "samples.jsonl").write_text("{\n[1]\n")
    (run_dir / "events.jsonl").write_text('[1]\n{"step": "x"}\n{"step": 3}\n')
    (run_dir / "environment.json").write_text("[]")
    (run_dir / "recipe.yaml").write_text("a: [\n")
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train_loss": "high"}\n{"step": 12, "train_loss": NaN, "tokens": null}\n"x"\n')
    words = Page(write_report(run_dir)).words
    assert "Could not be read: samples.jsonl" in words
    assert "Could not be read: environment.json" in words
    assert "Could not be read: recipe.yaml" in words
    assert "It does not overfit so far." in words


@pytest.mark.parametrize(
    "odd",
    [
        b"[1, 2]",
        b"null",
        b'{"train_loss": 3}',
        b'{"step": 1, "train_loss": 3}',
        b'{"step": 1, "tokens": "x", "epoch": "y", "seconds": "1", "train_loss": 3}',
        b'{"step": 1, "tokens": 100, "epoch": 0.1, "seconds": 1, "train_loss": NaN, "grad_norm": Infinity}',
        b'{"step": 1, "tokens": 1e400, "epoch": 1, "seconds": 1e300, "eval_train_loss": 1e300, "validation_loss": 1}',
        b'{"step": 1, "train_loss": ' + b"9" * 400 + b"}",
    ],
)
def test_an_odd_line_of_metrics_costs_its_own_point(tmp_path, odd):
    lines = [{"step": s, "tokens": 9 * s, "epoch": s / 9, "seconds": s, "train_loss": 5 - s / 9} for s in (2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(odd + b"\n" + b"".join(json.dumps(x).encode() + b"\n" for x in lines))
    assert main(["plot", str(tmp_path)]) == 0
    assert len(Page(tmp_path / "report.html").images) == 2


def test_chinese_is_there_as_characters(tmp_path):
    run_dir = write_run(tmp_path / "中文语料", 10, text="天地玄黄。宇宙洪荒。")
    page = Page(write_report(run_dir))
    assert "天地玄黄。宇宙洪荒。" in page.words
    assert "中文语料" in page.words
    assert main(["plot", str(run_dir), str(write_run(tmp_path / "b", 10)), "--output", str(tmp_path / "both")]) == 0


def test_a_run_leaves_its_report_and_a_resumed_one_covers_all_of_it(tiny):
    run = hf_gpt.train(tiny)
    words = Page(run.output_dir / "report.html").words
    assert words.startswith("run")
    assert "12 steps, 1,536 tokens" in words
    assert "before training" in words
    assert "hidden_size: 32" in words
    assert "GFLOP/s in matrix products, measured when the run began" in words
    assert any(line == f"report     {run.output_dir / 'report.html'}" for line in run.summary())
    hf_gpt.train(changed(tiny, train__max_steps=16))
    words = Page(run.output_dir / "report.html").words
    assert "16 steps, 2,048 tokens" in words
    assert "changed: train.max_steps 12 -> 16" in words
    assert "resumed from step-00000012 on 1 process" in words
    assert "before training" in words


def test_a_run_that_cannot_continue_leaves_a_report(tiny):
    with pytest.raises(RunStopped):
        hf_gpt.train(changed(tiny, optimizer={"lr": 1e30}, schedule={"warmup_steps": 0}))
    words = Page(Path(tiny["output_dir"]) / "report.html").words
    assert "ended by a loss or gradient that was not finite" in words


class Training:
    """What an observer sees of a run."""

    def __init__(self, run_dir: Path):
        self.run_dir, self.said = run_dir, []
        self.say = self.said.append


def test_a_report_that_cannot_be_drawn_is_a_message(tmp_path):
    training = Training(tmp_path)
    ReportWriter().ended(training, None)
    (message,) = training.said
    assert "report.html could not be written" in message
    write_run(tmp_path / "run", 10)
    training.run_dir = tmp_path / "run"
    ReportWriter().ended(training, None)
    assert len(training.said) == 1
    assert (tmp_path / "run" / "report.html").is_file()


def test_plot_draws_a_run_and_says_where(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run", 10)
    assert main(["plot", str(run_dir), "--x", "tokens", "--log"]) == 0
    names = ["report.html", "loss.png", "curves.png", "training.png"]
    assert capsys.readouterr().out.splitlines() == [str(run_dir / name) for name in names]
    assert "over tokens seen" in (run_dir / "report.html").read_text()
    for name in names[1:]:
        with Image.open(run_dir / name) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), rel=0.01)
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 10


def test_plot_compares_runs_that_can_be_told_apart(tmp_path, capsys):
    runs = [
        write_run(tmp_path / name, 20, turn=turn, scale=s) for name, turn, s in (("a/run", 10, 1), ("b/run", None, 2))
    ]
    for run_dir, lr in zip(runs, (1e-3, 2e-3)):
        (run_dir / "recipe.yaml").write_text(f"seed: 1\noptimizer: {{lr: {lr}}}\noutput_dir: {run_dir}\n")
    assert main(["plot", *map(str, runs), "--output", str(tmp_path / "both")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["report.html", "loss.png", "training.png"]
    page = Page(written[0])
    assert "1. a/run" in page.words
    assert "2. b/run" in page.words
    assert "from step 10" in page.words  # where the first overfits
    assert "optimizer.lr 0.001 0.002" in page.words
    assert "seed" not in page.words


def test_as_many_runs_as_are_compared_differ_in_colour_or_dashes():
    assert len({str(run_style(number)) for number in range(MOST_RUNS)}) == MOST_RUNS == 28


def test_losses_that_do_not_compare_are_said_to(tmp_path):
    runs = [write_run(tmp_path / name, 10) for name in "abc"]
    facts = [("a.txt", 1024), ("a.txt", 2048), ("b.txt", 1024)]
    for run_dir, (source, entries) in zip(runs, facts):
        text = {"source": source, "characters": 100}
        environment = {"sources": {"validation": text, "tokenizer": {"trained": True, "entries": entries}}}
        (run_dir / "environment.json").write_text(json.dumps(environment))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        write_lines(
            run_dir / "metrics.jsonl", [{**x, "bits_per_byte": 1.25} if "validation_loss" in x else x for x in lines]
        )

    words = compared(runs[0], runs[1]).words
    assert "compare bits per byte, not losses" in words
    assert "bits per byte overfits steps tokens time tokens/s 1. a 2.781 at step 10 (perplexity 16.1) 1.250" in words
    assert "were validated on different texts" in compared(runs[0], runs[2]).words
    alike = compared(write_run(tmp_path / "d", 10), write_run(tmp_path / "e", 10)).words
    assert "compare" not in alike.split("The runs")[1]


def test_plots_of_what_was_not_logged_are_left_out(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "train_loss": 3.0, "lr": 1e-3}])
    run = read_run(tmp_path)
    assert [plot.title for plot in training_plots([run])] == ["Learning rate"]
    assert loss_plots([run], "seconds") == []


def test_plot_refuses_in_one_line(tmp_path, capsys):
    run_dir = str(write_run(tmp_path / "run", 2))
    (tmp_path / "empty").mkdir()
    assert "not a run: there is no metrics.jsonl" in refused(capsys, "plot", run_dir, str(tmp_path / "empty"))
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    assert "holds no loss yet" in refused(capsys, "plot", str(tmp_path / "empty"))
    assert "is named twice" in refused(capsys, "plot", run_dir, f"{run_dir}/../run")
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in refused(capsys, "plot", run_dir, "--output", str(tmp_path / "file"))
    (tmp_path / "run" / "metrics.jsonl").write_text("{\n{}\n")
    assert "line 1 is damaged" in refused(capsys, "plot", run_dir)
