"""`report.html`: where a run stands, its curves, what it wrote, what happened to it, and its recipe.

The page is made from the files of a run alone, so it can be written while the run goes on, after it died, and on
another machine. report_html.py says what it is made of, run_pictures.py which pictures are in it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

from ..checkpoint import name_of
from ..errors import RunPreempted, RunStopped, UserError
from ..storage import write_text
from ..training.observers import Observer
from .comparison import comparison_page
from .figures import DASHES, NUM_RUN_COLOURS, png
from .html import escaped, grid, legend, page, section, table, view_chooser
from .overfitting import Course, course, turning_point
from .pictures import loss_views, training_pictures
from .records import RunRecord, has_losses, is_number, loss_plot, read_run
from .wording import duration, perplexity_of, tokens_of

REPORT = "report.html"

_MOST_PROMPTS = 6
_MOST_SAMPLES = 5  # of a prompt, side by side
_SAMPLE_LENGTH = 1500  # characters
_MOST_EVENTS = 100
_RECIPE_LENGTH = 20_000
_MOST_RUNS = NUM_RUN_COLOURS * len(DASHES)


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a run into `<run_dir>/report.html`, and return that.

    Raises:
        UserError: the directory holds no run, or its metrics.jsonl is damaged.
    """
    path = Path(run_dir) / REPORT
    write_text(path, run_page(read_run(run_dir)))
    return path


def plot(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> list[Path]:
    """Write a report of one run, or one that compares several, and pictures for papers. Returns the files.

    Args:
        output: the folder to write into; by default the run's own, or `comparison` for several.

    Raises:
        UserError: a directory holds no run, or one that has written no loss yet.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    for run in runs:
        if not has_losses(run.metrics):
            raise UserError(f"{run.run_dir}: metrics.jsonl holds no loss yet")
    folders = [run.run_dir.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UserError(f"{twice}: is named twice; name each run once")
    if len(runs) > _MOST_RUNS:
        raise UserError(f"{len(runs)} runs: at most {_MOST_RUNS} can be told apart in one report")
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise UserError("is a file; name a folder", field="output", value=output)
    if len(runs) == 1:
        (run,) = runs
        folder = Path(output or run.run_dir)
        page = run_page(run)
        figures = {"perplexity.png": [loss_views([run])[0][1]], "training.png": training_pictures([run])[:3]}
    else:
        folder = Path(output or "comparison")
        page = comparison_page(runs)
        views = loss_views(runs)
        figures = {"loss.png": [view[0] for view in views[::2]], "loss-by-step.png": [*views[0]]}
        figures["training.png"] = training_pictures(runs)[:3]
    write_text(folder / REPORT, page)
    written = [folder / REPORT]
    if len(runs) == 1:
        written.append(loss_plot(runs[0].run_dir, folder / "loss.png", dpi=300))
    written += [png(folder / name, pictures) for name, pictures in figures.items() if pictures]
    return written


def run_page(run: RunRecord) -> str:
    """The page of one run."""
    found = course(run.metrics)
    turn = turning_point(run.metrics)
    sections = [
        section("Where it stands", [_verdict(run, found), *_facts(run)]),
        section("Loss and perplexity", view_chooser(loss_views([run], turn), legend([run]))),
        section("While training", grid(training_pictures([run]))),
        section("What it wrote", _samples(run, turn)),
        section("What happened", _history(run)),
        section("The recipe", _recipe(run)),
    ]
    return page(run.name, _status(run), sections)


def _status(run: RunRecord) -> str:
    last = run.last
    train = run.recipe.get("train") if isinstance(run.recipe.get("train"), dict) else {}
    step, length = max([last.get("step", 0), *run.checkpoints[-1:]]), train.get("max_steps")
    steps = f"{step:,} of {length:,}" if isinstance(length, int) and length > step else f"{step:,}"
    how_far = f"{steps} step{'s' * (steps != '1')}"
    ended = next((event for event in reversed(run.events) if event["step"] >= step), {})
    if ended.get("event") == "not finite":
        how_far += "; ended by a loss or gradient that was not finite"
    elif ended.get("event") == "stopped":
        how_far += "; stopped, and can go on"
    took = f"{tokens_of(last):,} tokens in {duration(last.get('seconds', 0))}"
    parent = run.environment.get("parent")
    if isinstance(parent, dict) and isinstance(parent.get("step"), int):
        took = f"{tokens_of(last):,} tokens; {duration(last.get('seconds', 0))} since step {parent['step']:,}"
    return f"{how_far}, {took}"


def _verdict(run: RunRecord, found: Course | None) -> str:
    """Which weights to use, and why."""
    if found is None:
        why = "No text was held out" if run.evaluated else "Nothing was evaluated yet"
        return f'<p class="verdict">{why}, so where over-fitting begins cannot be told.</p>'
    loss = f"{found.validation_loss:.3f} (perplexity {perplexity_of(found.validation_loss)})"
    lowest = f"Validation loss is lowest at step {found.step:,}, {loss}"
    count = sum(is_number(line.get("validation_loss")) for line in run.evaluated)
    told, why = {
        "over-fits": (
            f"Over-fitting begins at step {found.step:,}.",
            f"Validation loss was lowest there, {loss}, and has risen by {found.rise:.3f} since, while the loss on the"
            " training text did not.",
        ),
        "diverges": (
            "The run diverges.",
            f"{lowest}; since then both it and the loss on the training text have risen. That is no over-fitting: a"
            " smaller learning rate may help.",
        ),
        "unsettled": (
            "Over-fitting may have begun.",
            f"{lowest}, and was higher at the last of {count:,} evaluations, but not for long enough, or not clearly"
            " enough, to call it a turn.",
        ),
        "falls": ("No over-fitting is to be seen.", f"{lowest}; {count:,} evaluations so far."),
        "too early": (
            "It is too early to tell whether it over-fits.",
            f"{lowest}; {count:,} evaluation{'s' * (count != 1)} so far.",
        ),
    }[found.trend]
    colour = " turned" if found.trend in ("over-fits", "diverges") else ""
    return f'<p class="verdict{colour}"><strong>{told}</strong> {why} {_to_use(run, found.step)}</p>'


def _to_use(run: RunRecord, step: int) -> str:
    """The checkpoint of a step, or the best of those that were kept."""
    if step in run.checkpoints:
        same = " (<code>checkpoints/best</code>)" if run.best == step else ""
        return f"The checkpoint to use: <code>checkpoints/{name_of(step)}</code>{same}."
    if step == 0:
        return "That is the untrained model."
    none = f"No checkpoint was kept at step {step:,}"
    if run.best is not None:
        loss = next((x.get("validation_loss") for x in run.evaluated if x["step"] == run.best), None)
        told = f", validation loss {loss:.3f}" if is_number(loss) else ""
        return f"{none}; the best one kept is <code>checkpoints/{name_of(run.best)}</code>{told}."
    return f"{none}, so none can be named; a <code>checkpoint.every</code> that meets evaluations keeps one."


def _facts(run: RunRecord) -> Iterator[str]:
    """The figures of a run, as a row of tiles."""
    tiles: list[tuple[str, str, str]] = []
    for key, name in (
        ("validation_loss", "lowest validation loss"),
        ("eval_train_loss", "lowest training loss"),
    ):
        lines = [line for line in run.evaluated if is_number(line.get(key))]
        if lines:
            best = min(lines, key=lambda line: line[key])
            tiles.append((name, f"{best[key]:.3f}", f"perplexity {perplexity_of(best[key])}, step {best['step']:,}"))
    bits = [line["bits_per_byte"] for line in run.evaluated if is_number(line.get("bits_per_byte"))]
    if bits:
        tiles.append(("bits per byte", f"{min(bits):.3f}", "validation text"))
    for key, name, show in (
        ("tokens_per_second", "tokens per second", lambda value: f"{value:,.0f}"),
        ("mfu", "FLOPs utilisation (MFU)", lambda value: f"{value:.1%}"),
    ):
        values = [line[key] for line in run.trained if is_number(line.get(key))]
        if values:
            tiles.append((name, show(median_high(values)), "median"))
    if memory := [x["peak_memory_bytes"] for x in run.trained if is_number(x.get("peak_memory_bytes"))]:
        tiles.append(("peak memory", f"{max(memory) / 2**20:,.0f} MiB", "of the main process"))
    for problem in run.problems:
        yield f'<p class="problem">Could not be read: {escaped(problem, 300)}</p>'
    if tiles:
        shown = "".join(
            f"<div><dt>{name}</dt><dd>{value}</dd><dd class='note'>{note}</dd></div>" for name, value, note in tiles
        )
        yield f'<dl class="tiles">{shown}</dl>'


def _samples(run: RunRecord, turn: Course | None) -> Iterator[str]:
    """For each prompt some samples side by side, from the first to the newest, and the one at the turn."""
    prompts = list(dict.fromkeys(str(line.get("prompt", "")) for line in run.samples))
    if not prompts:
        yield "<p>No samples; <code>evaluation.prompts</code> asks for some.</p>"
    for prompt in prompts[:_MOST_PROMPTS]:
        texts = {line["step"]: str(line["text"]) for line in run.samples if str(line.get("prompt", "")) == prompt}
        steps = sorted(texts)
        chosen = {steps[round(i * (len(steps) - 1) / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES)}
        if turn is not None and turn.step in texts and turn.step not in chosen:
            inner = sorted(chosen)[1:-1]
            if inner:
                chosen.remove(min(inner, key=lambda step: abs(step - turn.step)))
            chosen.add(turn.step)
        few = f" &middot; {len(chosen)} of {len(steps)} samples" if len(steps) > len(chosen) else ""
        yield f"<h3>Prompt: <q>{escaped(prompt, 200)}</q>{few}</h3>"
        cards = []
        for step in sorted(chosen):
            mark = " <em>lowest validation loss</em>" if turn is not None and step == turn.step else ""
            begins = texts[step].startswith(prompt) and len(prompt) < _SAMPLE_LENGTH
            rest = texts[step][len(prompt) :] if begins else texts[step]
            start = f"<b>{escaped(prompt, 200)}</b>" if begins else ""
            title = f"step {step:,}" if step else "before training"
            cards.append(f"<figure><figcaption>{title}{mark}</figcaption><pre>{start}{escaped(rest, _SAMPLE_LENGTH)}")
            cards.append("</pre></figure>")
        yield f'<div class="samples">{"".join(cards)}</div>'
    if len(prompts) > _MOST_PROMPTS:
        more = len(prompts) - _MOST_PROMPTS
        yield f"<p>{more} more prompt{'s are' if more > 1 else ' is'} in <code>samples.jsonl</code>.</p>"


def _history(run: RunRecord) -> Iterator[str]:
    """events.jsonl, in words."""
    skipped = sum(event.get("event") == "skipped" for event in run.events)
    went_on = sum(event.get("event") == "resumed" for event in run.events)
    if not run.events:
        yield "<p>Nothing was skipped, resumed, retried or found damaged.</p>"
        return
    yield (
        f"<p>{_resumed(went_on)}; {skipped:,} update{'s' * (skipped != 1)} skipped;"
        f" {len(run.events):,} event{'s' * (len(run.events) != 1)} in all.</p>"
    )
    rows = [(f"{event['step']:,}", _event(event)) for event in run.events[-_MOST_EVENTS:]]
    if len(run.events) > _MOST_EVENTS:
        yield f"<p>The last {_MOST_EVENTS}; the others are in <code>events.jsonl</code>.</p>"
    yield table(("step", "what"), rows)


def _event(event: Mapping[str, Any]) -> str:
    kind = event.get("event")
    if kind == "resumed":
        return f"went on from <code>{escaped(event.get('checkpoint'), 100)}</code>{_processes(event)}"
    if kind == "stopped":
        return f"stopped by {escaped(event.get('signal'), 40)}, and saved"
    if kind == "publishing":
        return f"while publishing: {escaped(event.get('what'), 400)}"
    if kind == "restarted":
        return f"began again from the start{_processes(event)}"
    if kind == "changed":
        return f"changed: <code>{escaped(event.get('what'), 300)}</code>"
    if kind == "damaged checkpoint":
        return (
            f"<code>{escaped(event.get('checkpoint'), 100)}</code> was damaged: {escaped(event.get('problem'), 400)}"
        )
    if kind in ("skipped", "not finite"):
        windows = event.get("windows")
        windows = windows if isinstance(windows, list) else []
        seen = ", ".join(escaped(window, 20) for window in windows[:8]) + (", …" if len(windows) > 8 else "")
        what = "update skipped" if kind == "skipped" else "the run ended: loss or gradient not finite"
        return f"{what}; gradient norm {escaped(event.get('grad_norm'), 40)}; windows {seen or 'not recorded'}"
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "step"))
    return escaped(f"{kind}: {rest}" if rest else kind, 400)


def _processes(event: Mapping[str, Any]) -> str:
    count = event.get("processes")
    return f" on {escaped(count, 20)} process{'es' * (count != 1)}" if count is not None else ""


def _recipe(run: RunRecord) -> Iterator[str]:
    """recipe.yaml as it is, and where it ran."""
    rows = [*_environment(run.environment)]
    if rows:
        yield table(("where it ran", ""), rows)
    if run.recipe_text:
        yield f'<pre class="recipe">{escaped(run.recipe_text, _RECIPE_LENGTH)}</pre>'
    else:
        yield "<p>There is no <code>recipe.yaml</code>.</p>"


def _environment(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if device := environment.get("device"):
        name = environment.get("device_name")
        threads = f", {escaped(environment.get('cpu_threads'), 20)} threads" if device == "cpu" else ""
        named = f" ({escaped(name, 100)})" if name else ""
        yield "hardware", f"{escaped(environment.get('processes', 1), 20)} x {escaped(device, 40)}{named}{threads}"
    if is_number(peak := environment.get("peak_flops")):
        yield "peak of a device", f"{peak / 1e9:,.1f} GFLOP/s in matrix products, measured when the run began"
    sources = environment.get("sources")
    for kind in ("training", "validation"):
        text = sources.get(kind) if isinstance(sources, dict) else None
        if isinstance(text, dict) and text.get("source"):
            size = f": {text['tokens']:,} tokens" if isinstance(text.get("tokens"), int) else ""
            yield f"{kind} text", escaped(text["source"], 200) + size
    if isinstance(parent := environment.get("parent"), dict):
        yield "branched off", f"from step {escaped(parent.get('step'), 20)} of {escaped(parent.get('run'), 300)}"
    versions = environment.get("versions")
    if isinstance(versions, dict):
        yield "versions", escaped(", ".join(f"{name} {version}" for name, version in versions.items() if version), 400)


def _resumed(count: int) -> str:
    return {0: "Never resumed", 1: "Resumed once", 2: "Resumed twice"}.get(count, f"Resumed {count:,} times")


class ReportWriter(Observer):
    _SHARE = 0.01

    def __init__(self):
        self._cost, self._drawn_at = 0.5, time.monotonic()

    def saved(self, training, checkpoint):
        if training.progress.step != training.max_steps and self._cost <= self._SHARE * (
            time.monotonic() - self._drawn_at
        ):
            self._draw(training)

    def ended(self, training, error):
        if error is None or isinstance(error, (RunStopped, RunPreempted, KeyboardInterrupt)):
            self._draw(training)

    def _draw(self, training):
        started = time.monotonic()
        try:
            write_report(training.run_dir)
        except Exception as error:
            training.say(f"warning: {training.run_dir / 'report.html'} could not be written: {error}")
        self._drawn_at = time.monotonic()
        self._cost = self._drawn_at - started
