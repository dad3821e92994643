"""The report: one file that opens from disk, holds whatever a run left, and is trusted by nobody's text."""

import dataclasses
import itertools
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
from hf_gpt.report.figures import NUM_RUN_COLOURS, svg, thinned, tick_labels
from hf_gpt.report.page import run_page, write_report
from hf_gpt.report.pictures import dash_of, loss_views, training_pictures
from hf_gpt.report.records import read_run
from hf_gpt.training import loop

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and that all of them are closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.source = path.read_text()
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
                trained = {
                    "train_loss": loss,
                    "lr": 1e-3,
                    "grad_norm": 1.0 + step % 7 / 10,
                    "tokens_per_second": 200.0,
                }
                metrics.write(json.dumps({**at, **trained, "mfu": 0.4, "peak_memory_bytes": 2**28}) + "\n")
            if step % every == 0:
                rise = max(0, step - turn) / steps if turn else 0
                metrics.write(json.dumps({**at, "eval_train_loss": loss, "validation_loss": loss + 2 * rise}) + "\n")
                samples.write(json.dumps({"step": step, "prompt": "Once", "text": f"Once {text}"}) + "\n")
    return run_dir


@pytest.mark.parametrize("steps", [1, 10, 100_000])
def test_a_report_is_one_small_file_that_needs_nothing_else(tmp_path, steps):
    path = write_report(write_run(tmp_path / "run", steps, every=max(1, steps // 500)))
    assert path.stat().st_size < 1_000_000
    page = Page(path)
    assert page.count("svg") >= 17
    assert page.count("script") == 0
    addresses = [
        value for _, found in page.elements for name, value in found.items() if name in ("src", "href", "xlink:href")
    ]
    assert all(address.startswith("#") for address in addresses)  # markers, within the page
    assert "http" not in page.source
    assert "@import" not in page.source
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses} | set(re.findall(r"url\(#([^)]+)", page.source)) <= set(ids)
    assert not re.search(r"#0100[0-9a-f]{2}", page.source)  # every colour is one of the page's
    assert page.count("rect") < 1000
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_values_are_told_on_hover(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", 10)))
    assert (
        "step 5 training batch: loss 3.091, perplexity 22.0 training text: loss 3.091, perplexity 22.0"
        " validation text: loss 3.091, perplexity 22.0 500 tokens, 2 s" in page.words
    )
    assert "step 6 training batch: loss 3.000, perplexity 20.1 600 tokens" in page.words  # where nothing was evaluated
    assert "step 7: 1 norm of the gradient" in page.words
    for label in ("loss (nats per token)", "perplexity", "steps", "tokens seen", "time (seconds)"):
        assert label in page.text
    for label in ("learning rate", "norm of the gradient", "tokens per second", "% of the measured peak"):
        assert label in page.text


def compared(folder: Path, *run_dirs: Path) -> Page:
    """The page that `hf-gpt plot` makes of runs, without its pictures for papers."""
    runs = [read_run(run_dir) for run_dir in run_dirs]
    path = folder / "compared.html"
    path.write_text(comparison_page(runs) if len(runs) > 1 else run_page(*runs))
    return Page(path)


def bands(page: Page) -> list[list[tuple[float, float]]]:
    """Left end and width of the places that tell something, of each picture."""
    pictures = []
    for (before, _), (tag, found) in itertools.pairwise(page.elements):
        if tag == "svg" and found.get("role") == "img":
            pictures.append([])
        elif tag == "rect" and before != "clippath":
            pictures[-1].append((float(found["x"]), float(found["width"])))
    return pictures


@pytest.mark.parametrize("num_runs", [1, 4])
@pytest.mark.parametrize("steps", [10, 2000])
def test_every_place_of_a_plot_tells_something(tmp_path, num_runs, steps):
    page = compared(tmp_path, *(write_run(tmp_path / f"{n}", steps, turn=steps // 2) for n in range(num_runs)))
    assert page.source.count('class="told"') == len(bands(page)) >= 16
    for picture in bands(page):
        assert all(width > 0 for _, width in picture)
        ends = [left + width for left, width in picture]
        assert [left for left, _ in picture[1:]] == pytest.approx(ends[:-1], abs=0.11)
        assert picture[0][0] == 62
        assert ends[-1] in (pytest.approx(446, abs=0.11), pytest.approx(366, abs=0.11))
        assert len(picture) <= 32


def test_runs_evaluated_at_the_same_steps_are_told_together(tmp_path):
    runs = [write_run(tmp_path / name, 20, scale=scale) for name, scale in (("a", 1), ("b", 2), ("c", 3))]
    page = compared(tmp_path, *runs)
    assert (
        "1. a, step 10: training batch 3.091, training text 3.091, validation text 3.091"
        " 2. b, step 10: training batch 6.182, training text 6.182, validation text 6.182 3. c, step 10:" in page.words
    )


def test_of_many_steps_the_lowest_and_the_last_are_told(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", 20_000, every=40, turn=13_240)))
    told = [text for text in page.text if text.startswith("step ")]
    for step in (0, 13_240, 20_000):
        assert sum(text.startswith(f"step {step:,}\n") for text in told) >= 6


def test_perplexity_is_the_exponential_of_the_loss(tmp_path):
    run = read_run(write_run(tmp_path / "run", 10))
    for view in loss_views([run]):
        losses, perplexities = ({curve.label: curve for curve in picture.curves} for picture in view)
        for label in ("training text", "validation text"):
            assert perplexities[label].y == pytest.approx(np.exp(losses[label].y))
            assert perplexities[label].x == pytest.approx(losses[label].x)


def test_the_chosen_view_is_the_one_that_is_shown(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", 10)))
    assert ".view{display:none}" in page.source
    (shown,) = re.findall(r"^(#axis-.*)\{display:block\}$", page.source, re.MULTILINE)
    chosen = [(axis, scale) for axis in ("steps", "tokens", "time") for scale in ("linear", "log")]
    assert shown.split(",") == [f"#axis-{a}:checked~#scale-{s}:checked~.{a}-{s}" for a, s in chosen]
    kinds = [
        found.get("class", "").split()[1] for _, found in page.elements if "view" in found.get("class", "").split()
    ]
    assert kinds == [f"{a}-{s}" for a, s in chosen]
    inputs = [found for tag, found in page.elements if tag == "input"]
    assert [found["id"] for found in inputs if "checked" in found] == ["axis-steps", "scale-linear"]


def test_a_single_line_of_metrics_can_be_seen(tmp_path):
    line = {"step": 10, "tokens": 90, "epoch": 1, "seconds": 1, "train_loss": 3.0, "lr": 1e-3, "grad_norm": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    pictures = training_pictures([read_run(tmp_path)])
    assert [picture.title for picture in pictures] == ["Learning rate", "Gradient norm, before clipping"]
    for picture in pictures:
        assert "<use" in svg(dataclasses.replace(picture, ids="x"))


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 500, 1000], ["0", "500", "1k"]),
        ([20_050, 20_100, 20_150], ["20.05k", "20.1k", "20.15k"]),
        ([3.0021, 3.0022, 3.0023], ["3.0021", "3.0022", "3.0023"]),
        ([0.0001, 0.00015, 0.0002], ["1e-4", "1.5e-4", "2e-4"]),
        ([], []),
    ],
)
def test_ticks_are_told_apart(ticks, labels):
    assert tick_labels(ticks) == labels


def test_a_short_run_beside_a_long_one_is_not_cut_off(tmp_path):
    short, long = (read_run(write_run(tmp_path / f"{steps}", steps, every=steps // 10)) for steps in (20, 400))
    linear = loss_views([short, long])[0]
    assert max(linear[1].curves[0].y[2:]) < linear[1].roof


def test_over_fitting_is_marked_with_the_checkpoint_to_use(tmp_path):
    run_dir = write_run(tmp_path / "run", 100, turn=50)
    page = Page(write_report(run_dir))
    assert "Over-fitting begins at step 50." in page.words
    assert "No checkpoint was kept at step 50, so none can be named" in page.words
    assert page.text.count("lowest validation loss: step 50") == 6 * 2  # over steps, tokens, time; linear, log
    assert "step 50 lowest validation loss" in page.words  # its sample is among those shown

    (run_dir / "checkpoints" / "step-00000060").mkdir()
    (run_dir / "checkpoints" / "best").write_text("step-00000060\n")
    assert "the best one kept is checkpoints/step-00000060 , validation loss" in Page(write_report(run_dir)).words
    (run_dir / "checkpoints" / "step-00000050").mkdir()
    (run_dir / "checkpoints" / "best").write_text("step-00000050\n")
    assert "use: checkpoints/step-00000050 ( checkpoints/best )." in Page(write_report(run_dir)).words


def test_a_run_that_still_learns_has_no_mark(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", 100)))
    assert "No over-fitting is to be seen." in page.words
    assert "lowest validation loss: step" not in page.source


@pytest.mark.parametrize(
    ("validation", "training", "said"),
    [
        ([5.0], [5.0], "It is too early to tell whether it over-fits. Validation loss is lowest at step 0"),
        ([5.0, 4.0, 3.0, 4.0, 5.0, 6.0], [5.0, 4.0, 3.0, 4.0, 5.0, 6.0], "The run diverges."),
        ([5.0, 4.0, 3.0, 3.5], [5.0, 4.0, 3.0, 2.0], "Over-fitting may have begun."),
    ],
)
def test_what_evaluations_say_is_said(tmp_path, validation, training, said):
    lines = [
        {"step": step, "tokens": step, "epoch": step, "seconds": step, "eval_train_loss": t, "validation_loss": v}
        for step, (v, t) in enumerate(zip(validation, training))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert said in Page(write_report(tmp_path)).words


def test_a_branch_says_from_where_its_time_counts(tmp_path):
    run_dir = write_run(tmp_path / "run", 30)
    (run_dir / "environment.json").write_text(json.dumps({"parent": {"run": "runs/a", "step": 20}}))
    assert "30 steps, 3,000 tokens; 15 s since step 20" in Page(write_report(run_dir)).words


def test_what_a_stranger_wrote_is_shown_as_text(tmp_path):
    hostile = '</pre></title><script>alert(1)</script><img src=http://x onerror="x">&amp;$\\frac$\x00\x1b[31m\u202e'
    run_dir = write_run(tmp_path / '<b>"$x_', 10, text=hostile)
    (run_dir / "recipe.yaml").write_text(f"a: '{hostile[:60]}'\n")
    events = [{"event": "changed", "step": 1, "what": hostile}, {"event": hostile, "step": 2, hostile: hostile}]
    events.append({"event": "skipped", "step": 3, "grad_norm": hostile, "windows": [hostile]})
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run_dir / "environment.json").write_text(json.dumps({"device": hostile, "versions": {hostile: hostile}}))
    page = Page(write_report(run_dir))
    assert {"script", "img", "b"} & {tag for tag, _ in page.elements} == {"b"}
    assert page.count("b") == 3  # the prompt, in each of the three samples
    assert "<script>alert(1)</script>" in page.words
    assert "&amp;$\\frac$\\x00\\x1b[31m\\u202e" in page.words
    main(["plot", str(run_dir), str(write_run(tmp_path / "other", 10)), "--output", str(tmp_path / "both")])
    both = Page(tmp_path / "both" / "report.html")
    assert both.count("script") == both.count("b") == 0
    assert '1. <b>"$x_' in both.words


def test_the_history_is_told(tmp_path):
    run_dir = write_run(tmp_path / "run", 10)
    events = [
        {"event": "damaged checkpoint", "step": 4, "checkpoint": "step-00000008", "problem": "truncated"},
        {"event": "changed", "step": 4, "what": "train.max_steps 8 -> 10"},
        {"event": "resumed", "step": 4, "checkpoint": "step-00000004", "processes": 2},
        {"event": "skipped", "step": 6, "grad_norm": "inf", "windows": [3, 1]},
        {"event": "not finite", "step": 10, "grad_norm": "nan", "windows": [2]},
    ]
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    words = Page(write_report(run_dir)).words
    assert "Resumed once; 1 update skipped; 5 events in all." in words
    for told in (
        "step-00000008 was damaged: truncated",
        "changed: train.max_steps 8 -> 10",
        "went on from step-00000004 on 2 processes",
        "update skipped; gradient norm inf; windows 3, 1",
        "ended by a loss or gradient that was not finite",
    ):
        assert told in words


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
    assert "No over-fitting is to be seen." in words


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
def test_an_odd_line_of_metrics_costs_its_own_point(tmp_path, capsys, odd):
    lines = [{"step": s, "tokens": 9 * s, "epoch": s / 9, "seconds": s, "train_loss": 5 - s / 9} for s in (2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(odd + b"\n" + b"".join(json.dumps(x).encode() + b"\n" for x in lines))
    assert main(["plot", str(tmp_path)]) == 0
    assert "Loss" in Page(tmp_path / "report.html").source


def test_chinese_is_there_as_characters(tmp_path):
    run_dir = write_run(tmp_path / "中文语料", 10, text="天地玄黄。宇宙洪荒。")
    page = Page(write_report(run_dir))
    assert "天地玄黄。宇宙洪荒。" in page.words
    assert ("title", {}) in page.elements
    assert "中文语料" in page.words
    assert '"PingFang SC"' in page.source  # and fonts that have them are asked for
    assert main(["plot", str(run_dir), str(write_run(tmp_path / "b", 10)), "--output", str(tmp_path / "both")]) == 0


def test_thinning_keeps_ends_and_extremes():
    x, y = list(range(100_000)), [math.sin(step / 1000) for step in range(100_000)]
    y[31_415], y[77_777] = 50.0, -50.0
    for log in (False, True):
        thin_x, thin_y = thinned([1 + value for value in x], y, log=log)
        assert len(thin_x) <= 502
        assert list(thin_x) == sorted(set(thin_x))
        assert (thin_x[0], thin_x[-1]) == (1, 100_000)
        assert (max(thin_y), min(thin_y)) == (50, -50)
    assert list(thinned([1, 2, 3], [3, 2, 1])[0]) == [1, 2, 3]


def test_a_run_leaves_its_report_and_a_resumed_one_covers_all_of_it(tiny):
    run = hf_gpt.train(tiny)
    words = Page(run.output_dir / "report.html").words
    assert words.startswith("run")
    assert "12 steps, 1,536 tokens" in words
    assert "before training" in words
    assert "emb_dim" not in words
    assert "hidden_size: 32" in words
    assert "GFLOP/s in matrix products, measured when the run began" in words
    assert any(line == f"report     {run.output_dir / 'report.html'}" for line in run.summary())
    hf_gpt.train(changed(tiny, train__max_steps=16))
    words = Page(run.output_dir / "report.html").words
    assert "16 steps, 2,048 tokens" in words
    assert "changed: train.max_steps 12 -> 16" in words
    assert "went on from step-00000012 on 1 process" in words
    assert "before training" in words


def test_a_run_that_cannot_go_on_leaves_a_report(tiny):
    with pytest.raises(RunStopped):
        hf_gpt.train(changed(tiny, optimizer={"lr": 1e30}, schedule={"warmup_steps": 0}))
    words = Page(Path(tiny["output_dir"]) / "report.html").words
    assert "ended by a loss or gradient that was not finite" in words


def test_a_report_that_cannot_be_drawn_ends_no_run(tiny, capsys, monkeypatch):
    def fails(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(loop, "write_report", fails)
    run = hf_gpt.train(tiny)
    assert "report.html could not be written: no ink" in capsys.readouterr().err
    assert len(run.checkpoints) == 2


def test_plot_writes_a_run_anew_and_says_where(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run", 10)
    assert main(["plot", str(run_dir)]) == 0
    names = ["report.html", "loss.png", "perplexity.png", "training.png"]
    assert capsys.readouterr().out.splitlines() == [str(run_dir / name) for name in names]
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
    assert [path.name for path in written] == ["report.html", "loss.png", "loss-by-step.png", "training.png"]
    page = Page(written[0])
    assert page.count("script") == 0
    assert "1. a/run" in page.words
    assert "2. b/run" in page.words
    assert "from step 10" in page.words
    assert "optimizer.lr 0.001 0.002" in page.words
    assert "seed" not in page.words
    assert "tokens seen" in page.text
    assert "time (seconds)" in page.text
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))


def test_twenty_eight_runs_can_be_told_apart():
    assert len({(number % NUM_RUN_COLOURS, str(dash_of(number))) for number in range(28)}) == 28


def test_losses_that_do_not_compare_are_said_to(tmp_path):
    runs = [write_run(tmp_path / name, 10) for name in "abc"]
    facts = [("a.txt", 1024), ("a.txt", 2048), ("b.txt", 1024)]
    for run_dir, (source, entries) in zip(runs, facts):
        text = {"source": source, "characters": 100}
        environment = {"sources": {"validation": text, "tokenizer": {"trained": True, "entries": entries}}}
        (run_dir / "environment.json").write_text(json.dumps(environment))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        lines = [{**line, "bits_per_byte": 1.25} if "validation_loss" in line else line for line in lines]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def words(*chosen: Path) -> str:
        return compared(tmp_path, *chosen).words

    assert "compare bits per byte, not losses" in words(runs[0], runs[1])
    assert "bits per byte over-fits steps tokens time tokens/s 1. a 2.781 at step 10 (perplexity 16.1) 1.250" in words(
        runs[0], runs[1]
    )
    assert "were validated on different texts" in words(runs[0], runs[2])
    write_run(tmp_path / "d", 10)
    assert "compare" not in words(tmp_path / "d", write_run(tmp_path / "e", 10)).split("The runs")[1]


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
