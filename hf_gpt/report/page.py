"""`report.html`: where a run stands, its curves, what it wrote, what happened to it, and its recipe.

A page is made from the files of a run alone, so it can be made while the run trains, after it died, and on another
machine. What it shows is gathered here; `templates/run.html` lays it out. comparison.py has the page of several runs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any

from ..checkpoint import name_of
from ..display import duration, perplexity
from ..errors import RunPreempted, RunStopped, UserError
from ..storage import local_path, refuse_unwritable, write_text
from ..texts import TRAINING, VALIDATION, bits_of, is_further, label_of, loss_label, loss_of
from ..training.observers import Observer
from .comparison import comparison_page
from .html import render
from .notebook import Pictures, is_picture
from .overfitting import loss_trend
from .plots import MOST_RUNS, as_image, benchmark_plots, curve_names, draw, loss_plot, loss_plots, training_plots
from .records import RunRecord, has_losses, is_number, read_run
from .seeds import over_seeds

if TYPE_CHECKING:
    from ..training.loop import TrainingRun

REPORT = "report.html"

_MOST_PROMPTS = 6
_MOST_SAMPLES = 5  # of a prompt, side by side
_MOST_EVENTS = 100
_CHEAP = 0.01  # drawing takes at most this part of the time since the report was last drawn


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a run into `<run_dir>/report.html`, and return that.

    Raises:
        UserError: the directory holds no run, or its metrics.jsonl cannot be read.
    """
    path = Path(run_dir) / REPORT
    write_text(path, run_page(read_run(run_dir)))
    return path


def plot(
    run_dirs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    x: str = "steps",
    log: bool = False,
    say: Callable[[str], None] | None = None,
) -> Pictures:
    """Write a report of one run, or one that compares several, and its plots as PNG.

    Returns a list of the files, which a notebook shows. Its `figures` are those over runs that differ in seeds alone.

    Args:
        output: the folder to write into; by default the run's own, or `comparison` for several. A name that ends in
            .png, .pdf or .svg is a file for the curves alone, without a report.
        x: what curves are drawn over: steps, tokens or seconds.
        log: logarithmic axes for losses and perplexities.
        say: called with what could not be read.

    Raises:
        UserError: a directory holds no run, or one that has written no loss yet; no such axis; `output` is a file of
            another kind.
    """
    alone_in_file = output is not None and is_picture(output, "output")
    runs = [read_run(run_dir) for run_dir in ([run_dirs] if isinstance(run_dirs, (str, Path)) else run_dirs)]
    for run in runs:
        if not has_losses(run.metrics):
            raise UserError("; ".join([f"{run.run_dir}: metrics.jsonl holds no loss yet", *run.problems[:1]]))
        for problem in run.problems if say else ():
            say(f"warning: {problem}")
    folders = [run.run_dir.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UserError(f"{twice}: is named twice; name each run once")
    names = [name for name, _ in curve_names(runs)]
    if len(set(names)) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs: at most {MOST_RUNS} can be told apart in one report")
    folder = None if output is None else local_path(output, "output")
    if alone_in_file:
        plots = loss_plots(runs, x, log)[:3]
        if not plots:
            raise UserError(f"{runs[0].run_dir}: metrics.jsonl holds nothing to draw over {x}")
        return _with_figures([draw(folder, plots)], runs, names)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError("is a file; name a folder", field="output", value=output)
    if folder is not None:
        refuse_unwritable(folder, "output")
    alone = len(runs) == 1
    folder = folder or (runs[0].run_dir if alone else Path("comparison"))
    write_text(folder / REPORT, run_page(runs[0], x, log) if alone else comparison_page(runs, x, log))
    written = [folder / REPORT]
    if alone:
        written.append(loss_plot(runs[0].run_dir, folder / "loss.png", dpi=300))
    plots = {"curves.png" if alone else "loss.png": loss_plots(runs, x, log), "training.png": training_plots(runs, x)}
    written += [draw(folder / name, found[:3]) for name, found in plots.items() if found]
    return _with_figures(written, runs, names)


def _with_figures(paths: Sequence[Path], runs: Sequence[RunRecord], names: Sequence[str]) -> Pictures:
    written = Pictures(paths)
    written.figures = [*over_seeds(runs, names)]
    return written


def run_page(run: RunRecord, x: str = "steps", log: bool = False) -> str:
    """The page of one run."""
    trend = loss_trend(run.metrics, run.judge)
    turn = trend.step if trend and trend.kind == "overfitting" else None
    prompts = list(dict.fromkeys(str(line.get("prompt", "")) for line in run.samples))
    columns, evaluations = _evaluations(run)
    return render(
        "report/templates/run.html",
        title=run.name,
        subtitle=_status(run),
        run=run,
        trend=trend,
        judged=run.judge and loss_label(run.judge),
        name_of=name_of,
        tiles=[*_tiles(run)],
        loss_images=[(plot, as_image(plot, legend=True)) for plot in loss_plots([run], x, log, turn)],
        evaluation_columns=columns,
        evaluations=evaluations,
        benchmark_images=[(plot, as_image(plot, legend=True)) for plot in benchmark_plots(run)],
        benchmarks=sorted(run.benchmarks, key=lambda one: (one.label, one.metric, one.step)),
        training_images=[(plot, as_image(plot, legend=False)) for plot in training_plots([run], x)],
        samples=[(prompt, *_chosen_samples(run, prompt, turn)) for prompt in prompts[:_MOST_PROMPTS]],
        num_prompts=len(prompts),
        events=[(event["step"], _event(event)) for event in run.events[-_MOST_EVENTS:]],
        counted={kind: sum(event.get("event") == kind for event in run.events) for kind in ("resumed", "skipped")},
        environment=[*_environment(run.environment)],
    )


def _status(run: RunRecord) -> str:
    last = run.last
    train = run.recipe.get("train") if isinstance(run.recipe.get("train"), dict) else {}
    step, max_steps = max([last.get("step", 0), *run.checkpoints[-1:]]), train.get("max_steps")
    steps = f"{step:,} of {max_steps:,}" if isinstance(max_steps, int) and max_steps > step else f"{step:,}"
    status = f"{steps} step{'s' * (steps != '1')}"
    ended = next((event.get("event") for event in reversed(run.events) if event["step"] >= step), None)
    if ended == "not finite":
        status += "; ended by a loss or gradient that was not finite"
    elif ended == "stopped":
        status += "; stopped, and can be resumed"
    tokens = f"{round(last['tokens']):,} tokens" if is_number(last.get("tokens")) else "tokens not counted"
    took = duration(last["seconds"]) if is_number(last.get("seconds")) else "unknown time"
    parent = run.environment.get("parent")
    if isinstance(parent, dict) and isinstance(parent.get("step"), int):
        return f"{status}, {tokens}; {took} since step {parent['step']:,}"
    return f"{status}, {tokens} in {took}"


def _tiles(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    """The main figures of a run: name, value, note."""
    for text in (*run.texts, TRAINING):
        key, name = loss_of(text), f"lowest {loss_label(text)}"
        lines = [line for line in run.evaluated if is_number(line.get(key))]
        if lines:
            best = min(lines, key=lambda line: line[key])
            yield name, f"{best[key]:.3f}", f"perplexity {perplexity(best[key])}, step {best['step']:,}"
    for text in run.texts:
        if bits := _numbers(run.evaluated, bits_of(text)):
            yield "bits per byte", f"{min(bits):.3f}", label_of(text)
    if speeds := _numbers(run.trained, "tokens_per_second"):
        yield "tokens per second", f"{median_high(speeds):,.0f}", "median"
    if shares := _numbers(run.trained, "mfu"):
        yield "FLOPs utilisation (MFU)", f"{median_high(shares):.1%}", "median"
    if sizes := _numbers(run.trained, "peak_memory_bytes"):
        yield "peak memory", f"{max(sizes) / 2**20:,.0f} MiB", "of the main process"


def _evaluations(run: RunRecord) -> tuple[list[str], list[list[str]]]:
    """A table of all evaluations: its head, and its rows."""
    formats = {
        "step": ("step", "{:,}"),
        "tokens": ("tokens", "{:,.0f}"),
        "eval_train_loss": ("training loss", "{:.3f}"),
        "validation_loss": ("validation loss", "{:.3f}"),
        "perplexity": ("perplexity", "{:,.1f}"),
        "bits_per_byte": ("bits per byte", "{:.3f}"),
    }
    for text in filter(is_further, run.texts):
        bits = f"bits per byte on {label_of(text)}"
        formats |= {loss_of(text): (loss_label(text), "{:.3f}"), bits_of(text): (bits, "{:.3f}")}
    shown = {key: how for key, how in formats.items() if _numbers(run.evaluated, key)}
    rows = [
        [how.format(line[key]) if is_number(line.get(key)) else "" for key, (_, how) in shown.items()]
        for line in run.evaluated
    ]
    return [name for name, _ in shown.values()], rows


def _chosen_samples(run: RunRecord, prompt: str, turn: int | None) -> tuple[list[tuple[int, str]], int]:
    """Some samples of a prompt, from the first to the newest, and the one at the turn; and how many there are."""
    texts = {line["step"]: str(line["text"]) for line in run.samples if str(line.get("prompt", "")) == prompt}
    steps = sorted(texts)
    chosen = {steps[round(i * (len(steps) - 1) / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES)}
    if turn in texts and turn not in chosen:
        chosen -= set(sorted(sorted(chosen)[1:-1], key=lambda step: abs(step - turn))[:1])
        chosen.add(turn)
    return [(step, texts[step]) for step in sorted(chosen)], len(steps)


def _event(event: Mapping[str, Any]) -> str:
    """A line of events.jsonl, in words."""
    kind = event.get("event")
    facts = {key: value for key, value in event.items() if key not in ("event", "step")}
    count = event.get("processes")
    processes = f" on {count} process{'es' * (count != 1)}" if count is not None else ""
    if kind == "resumed":
        return f"resumed from {event.get('checkpoint')}{processes}"
    if kind == "restarted":
        return f"started again from the beginning{processes}"
    if kind == "stopped":
        return f"stopped by {event.get('signal')}, and saved"
    if kind == "changed" and "field" in event:
        return f"changed: {event['field']} {event.get('old')} -> {event.get('new')}"
    if kind == "damaged checkpoint":
        return f"{event.get('checkpoint')} was damaged: {event.get('problem')}"
    if kind in ("skipped", "not finite"):
        windows = event.get("windows")
        shown = ", ".join(map(str, windows[:8])) if isinstance(windows, list) else ""
        more = ", …" if isinstance(windows, list) and len(windows) > 8 else ""
        what = "update skipped" if kind == "skipped" else "the run ended: loss or gradient not finite"
        return f"{what}; gradient norm {event.get('grad_norm')}; windows {shown or 'not recorded'}{more}"
    if [*facts] == ["what"]:
        return f"{kind}: {event['what']}"
    return ": ".join([str(kind), *([", ".join(f"{key} {value}" for key, value in facts.items())] if facts else [])])


def _environment(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if device := environment.get("device"):
        name = f" ({environment['device_name']})" if environment.get("device_name") else ""
        threads = f", {environment.get('cpu_threads')} threads" if device == "cpu" else ""
        yield "hardware", f"{environment.get('processes', 1)} x {device}{name}{threads}"
    if is_number(peak := environment.get("peak_flops")):
        yield "peak of a device", f"{peak / 1e9:,.1f} GFLOP/s in matrix products, measured when the run began"
    sources = environment.get("sources")
    for kind, text in sources.items() if isinstance(sources, dict) else ():
        if (kind in ("training", VALIDATION) or is_further(kind)) and isinstance(text, dict) and text.get("source"):
            size = f": {text['tokens']:,} tokens" if isinstance(text.get("tokens"), int) else ""
            yield label_of(kind), f"{text['source']}{size}"
    if isinstance(parent := environment.get("parent"), dict):
        yield "branched off", f"from step {parent.get('step')} of {parent.get('run')}"
    if isinstance(versions := environment.get("versions"), dict):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _numbers(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines if is_number(line.get(key))]


class ReportWriter(Observer):
    """Draws the report when a run ends or stops, and at checkpoints where that costs next to nothing.

    Whatever is wrong with a file that the report reads, the run continues: a failure is a message.
    """

    def __init__(self) -> None:
        self._drawn_at, self._seconds = time.monotonic(), 0.5  # what drawing takes, about, until it is known

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        is_last = training.progress.step == training.max_steps
        if not is_last and self._seconds <= _CHEAP * (time.monotonic() - self._drawn_at):
            self._draw(training)

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        if error is None or isinstance(error, (RunStopped, RunPreempted, KeyboardInterrupt)):
            self._draw(training)

    def _draw(self, training: "TrainingRun") -> None:
        started = time.monotonic()
        try:
            write_report(training.run_dir)
        except Exception as error:
            training.say(f"warning: {training.run_dir / REPORT} could not be written: {error}")
        self._drawn_at = time.monotonic()
        self._seconds = self._drawn_at - started
