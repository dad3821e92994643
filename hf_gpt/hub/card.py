"""The model card: what a stranger who finds a checkpoint on the Hub should know of it.

Everything in it is read from the files of the run (`recipe.yaml`, `environment.json`, `metrics.jsonl`,
`samples.jsonl`) and of the checkpoint, up to the checkpoint's step; what the run does not know is left out. So the
card of a checkpoint can be made again at any time, for example under the name that the model got on the Hub.

Two things are kept apart from the page. What is private: of a local path its last part is shown, never a folder, a
user or a machine. And what nobody vouches for: samples, prompts and names stand in code, with control characters
spelled out, so that they are seen and are no Markdown, no HTML and none of our marks.

Which part of a published card is a person's, and stays, is card_merge.py's.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import TRAINING_STATE
from ..display import duration
from ..display import escape_unprintable as _visible
from ..errors import UserError
from ..recipe import Recipe
from ..report.plots import loss_plot
from ..report.records import has_losses, read_lines, read_metrics
from ..storage import read_json, write_text
from .card_merge import code_block, compose, merge, replace_in_sections, with_section

__all__ = ["UNPUBLISHED", "addressed", "as_stock", "bare_card", "merge", "model_card", "write_card"]

UNPUBLISHED = "path/to/this/model"
"""What the code in a card loads while the model's name on the Hub is not known."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_STATE = f"{TRAINING_STATE}/state.json"


def write_card(checkpoint: str | Path, run_dir: str | Path, *, repo_id: str | None = None) -> Path:
    """Write a checkpoint's `README.md`, with the losses beside it as `loss.png` if there are any.

    Args:
        checkpoint: a folder with the model and its training state; it may be one that is being written.
        run_dir: the run that it is of.
        repo_id: the model's name on the Hub; by default the recipe's `hub.repo_id`.
    """
    checkpoint = Path(checkpoint)
    facts = _Facts.of(checkpoint, Path(run_dir), repo_id)
    if has_losses(facts.metrics) and facts.tokens:
        loss_plot(run_dir, checkpoint / "loss.png", until=facts.step)
    write_text(checkpoint / "README.md", _card(facts, has_plot=(checkpoint / "loss.png").is_file()))
    return checkpoint / "README.md"


def model_card(checkpoint: str | Path, run_dir: str | Path, *, repo_id: str | None = None) -> str:
    """The text of the card that `write_card` writes."""
    facts = _Facts.of(Path(checkpoint), Path(run_dir), repo_id)
    return _card(facts, has_plot=(Path(checkpoint) / "loss.png").is_file())


def addressed(card: str, repo_id: str) -> str:
    """A card that was written before the model had a name on the Hub, with that name in the code that loads it."""
    return replace_in_sections(card, UNPUBLISHED, repo_id)


def bare_card() -> str:
    """The card of a model that nothing is known of."""
    return compose("library_name: transformers\npipeline_tag: text-generation", {})


def as_stock(card: str, repo_id: str) -> str:
    """The card of the same model in stock GPT-2's form, which is loaded in another way."""
    address = _literal(repo_id)
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({address})
tokenizer = AutoTokenizer.from_pretrained({address})"""
    paragraphs = (
        "## How to load it",
        "This is a stock GPT-2. It needs nothing but `transformers`, and no code of its own:",
        code_block(code, "python"),
        "`hf-gpt` trained it in its own form, converted it, and compared the logits of the two.",
    )
    return with_section(card, "use", "\n\n".join(paragraphs))


# What the card is made from -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a run and a checkpoint know, up to the checkpoint's step."""

    name: str
    repo_id: str | None
    recipe: Recipe
    environment: dict[str, Any]
    config: dict[str, Any]
    num_parameters: int
    dtypes: set[str]
    step: int
    tokens: int
    seconds: float
    skipped: int
    processes: int
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @classmethod
    def of(cls, checkpoint: Path, run_dir: Path, repo_id: str | None) -> "_Facts":
        recipe = Recipe.from_yaml(run_dir / "recipe.yaml")
        state = read_json(checkpoint / _STATE)
        if not state:
            raise UserError(f"{checkpoint}: has no {_STATE}, which says how far the run was; its card cannot be made")
        progress = state["progress"]
        repo_id = repo_id or recipe.hub.repo_id
        num_parameters, dtypes = _parameters(checkpoint)
        metrics = read_metrics(run_dir) if (run_dir / "metrics.jsonl").is_file() else []
        samples = read_lines(run_dir / "samples.jsonl")
        return cls(
            name=repo_id.rpartition("/")[2] if repo_id else _last_part(recipe.output_dir),
            repo_id=repo_id,
            recipe=recipe,
            environment=read_json(run_dir / "environment.json"),
            config=read_json(checkpoint / "config.json"),
            num_parameters=num_parameters,
            dtypes=dtypes,
            processes=state["processes"],
            metrics=[line for line in metrics if line["step"] <= progress["step"]],
            samples=[line for line in samples if line["step"] <= progress["step"]],
            skipped=progress.get("skipped", 0),
            **{name: progress[name] for name in ("step", "tokens", "seconds")},
        )

    @property
    def address(self) -> str:
        """What `from_pretrained` is given."""
        return self.repo_id or UNPUBLISHED

    @property
    def evaluation(self) -> dict[str, Any]:
        """The last line of metrics with an evaluation; empty if there was none."""
        return next((line for line in reversed(self.metrics) if "eval_train_loss" in line), {})

    @property
    def own_evaluation(self) -> dict[str, Any]:
        """The same if it is of these very weights."""
        return self.evaluation if self.evaluation.get("step") == self.step else {}

    def source(self, kind: str) -> dict[str, Any]:
        """What is known of the `training` or `validation` text, the `tokenizer`, or the `model` gone on from."""
        return self.environment.get("sources", {}).get(kind, {})

    @property
    def epochs(self) -> float | None:
        """How often the training text was seen, by the tokens."""
        in_text = self.source("training").get("tokens")
        return self.tokens / in_text if in_text else None

    @property
    def prompt(self) -> str | None:
        """The first prompt of the recipe with a sample, else that of the last sample."""
        prompts = [line["prompt"] for line in self.samples]
        return next((p for p in self.recipe.evaluation.prompts if p in prompts), prompts[-1] if prompts else None)


def _parameters(checkpoint: Path) -> tuple[int, set[str]]:
    """How many there are and of which types, from the headers of the weights' files."""
    from safetensors import safe_open

    count, dtypes = 0, set()
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_slice(name)
                count += math.prod(tensor.get_shape())
                dtypes.add(str(tensor.get_dtype()))
    return count, dtypes


# Metadata -----------------------------------------------------------------------------------------------------------


def _card(facts: _Facts, has_plot: bool) -> str:
    sections = {
        "about": _about(facts),
        "use": _use(facts),
        "results": _results(facts, has_plot),
        "samples": _samples(facts),
        "training": _training(facts),
        "limits": _limits(facts),
    }
    written = {name: "\n\n".join(paragraphs) for name, paragraphs in sections.items()}
    return compose(_metadata(facts), {name: text for name, text in written.items() if text})


def _metadata(facts: _Facts) -> str:
    from huggingface_hub import ModelCardData

    texts = [facts.source("training"), facts.source("validation")]
    data = ModelCardData(
        license=facts.recipe.hub.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hf_gpt", "gpt"],
        datasets=[*dict.fromkeys(text["dataset"] for text in texts if text.get("dataset"))] or None,
        base_model=facts.source("model").get("hub"),
        model_name=facts.name,
        eval_results=[*_eval_results(facts)] or None,
    )
    if data.eval_results is None:
        del data.model_name  # it stands in `model-index`, and is no field of its own
    return data.to_yaml()


def _eval_results(facts: _Facts) -> Iterator[Any]:
    """Loss, perplexity and bits per byte on the validation text, if it was these weights that were evaluated."""
    from huggingface_hub import EvalResult

    found, text = facts.own_evaluation, facts.source("validation")
    if "validation_loss" not in found:
        return
    split = text.get("split") if text.get("dataset") else "validation"
    if text.get("dataset") and "part" in text:
        split = None  # a part that the run cut off is none of the dataset's; its name says so
    values = {
        "loss": ("Loss (nats per token)", found["validation_loss"]),
        "perplexity": ("Perplexity", found["perplexity"]),
        "bits_per_byte": ("Bits per byte", found.get("bits_per_byte")),
    }
    for kind, (name, value) in values.items():
        if value is not None and math.isfinite(value):
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=text.get("dataset") or "text",
                dataset_name=_visible(text.get("source") or "validation text", one_line=True),
                dataset_config=text.get("config"),
                dataset_split=split,
                dataset_revision=text.get("revision"),
                metric_type=kind,
                metric_name=name,
                metric_value=round(float(value), 6),
            )


# The page -----------------------------------------------------------------------------------------------------------


def _about(facts: _Facts) -> Iterator[str]:
    recipe, text, found = facts.recipe, facts.source("training"), facts.own_evaluation
    yield (
        f"# {_escaped(facts.name)}\n\n<!-- hf_gpt writes what stands between its begin and end marks. What you write"
        " outside them stays. A section that you change is yours from then on and no longer brought up to date. -->"
    )
    origin = "from scratch"
    if recipe.model.from_pretrained:
        base = facts.source("model")
        origin = f"from the weights of {_of_model(base) if base else 'another model'}"
    name = text.get("source", "").removesuffix(" (training text)")
    source = f"on {_span(name)}" if name else "on a text that is not recorded"
    yield (
        f"A GPT language model with {_large(facts.num_parameters)} parameters, trained {origin} {source} for"
        f" {_how_far(facts)}. Given the beginning of a text it continues it, in the style of its training text."
    )
    yield (
        "It is not an assistant. It was not tuned to follow instructions or to answer questions, and what it writes"
        " may be wrong, nonsense or offensive."
    )
    rows = [("Parameters", f"{facts.num_parameters:,}")]
    rows.append(("Context", f"{facts.config.get('max_position_embeddings'):,} tokens"))
    if facts.tokens:
        passes = f" ({facts.epochs:.2f} passes over its training text)" if facts.epochs else ""
        rows.append(("Tokens seen", f"{facts.tokens:,}{passes}"))
    if "validation_loss" in found:
        rows.append(("Validation", _figures(found)))
    none = "none was given; ask the publisher before you use the model"
    rows.append(("Licence", _span(recipe.hub.license) if recipe.hub.license else none))
    yield _table(("", ""), rows)


def _use(facts: _Facts) -> Iterator[str]:
    address = _literal(facts.address)
    prompt = _literal(facts.prompt if facts.prompt and len(facts.prompt) <= 80 else "Every effort moves you")
    version = facts.environment.get("versions", {}).get("hf_gpt")
    yield "## How to load it"
    yield "With the package that trained it" + (f" (`hf_gpt` {version})" if version else " (`hf_gpt`)") + " installed:"
    yield code_block(
        f"""\
import hf_gpt  # registers the model with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({address})
tokenizer = AutoTokenizer.from_pretrained({address})
print(hf_gpt.generate_text(model, tokenizer, {prompt}, temperature=0.8, top_k=40))""",
        "python",
    )
    yield (
        "Without it, `transformers` runs the model's code from `configuration_gpt.py` and `modeling_gpt.py` beside the"
        " weights. Read them first, and add `revision=` with the commit that you read:"
    )
    yield code_block(
        f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({address}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({address}, trust_remote_code=True)
inputs = tokenizer({prompt}, return_tensors="pt", add_special_tokens=False)
output = model.generate(**inputs, max_new_tokens=50, do_sample=True, temperature=0.8, top_k=40)
print(tokenizer.decode(output[0]))""",
        "python",
    )
    yield (
        "As a stock GPT-2, for tools that know GPT-2 and without any code of its own. `hf-gpt`, from the same package,"
        " converts it and compares the logits:"
    )
    yield code_block(f"hf-gpt convert {facts.address} gpt2-form --to gpt2", "bash")
    yield code_block(
        """\
from transformers import AutoTokenizer, GPT2LMHeadModel

model = GPT2LMHeadModel.from_pretrained("gpt2-form")
tokenizer = AutoTokenizer.from_pretrained("gpt2-form")""",
        "python",
    )


def _results(facts: _Facts, has_plot: bool) -> Iterator[str]:
    found = facts.evaluation
    yield "## Evaluation"
    if not found:
        yield "The run has not evaluated the model yet."
    else:
        at = f"after step {found['step']:,}"
        if found["step"] != facts.step:
            at += f", {facts.step - found['step']:,} steps before these weights"
        tokens = facts.recipe.evaluation.tokens
        how_much = f"the first {tokens:,} tokens of each text (all, if it has fewer)" if tokens else "all of each text"
        yield (
            f"Measured {at}, on {how_much}, in windows of {facts.config.get('max_position_embeddings'):,} tokens that"
            " do not overlap. Loss is the mean over the tokens, in nats; perplexity is its exponential; bits per byte"
            " can be compared between tokenizers."
        )
        rows = []
        for kind, name in (("validation", "validation"), ("training", "eval_train")):
            if (loss := found.get(f"{name}_loss")) is not None:
                bits = found.get("bits_per_byte") if kind == "validation" else None
                in_bytes = f"{bits:.3f}" if bits else "not measured"
                rows.append((_text_name(facts, kind), f"{loss:.3f}", _perplexity(loss), in_bytes))
        yield _table(("text", "loss", "perplexity", "bits per byte"), rows)
        if "validation_loss" not in found:
            yield "No text was held out, so nothing here says how well the model does on text it has not seen."
    if has_plot:
        yield "![Loss on training and validation text over the run](loss.png)"


def _samples(facts: _Facts) -> Iterator[str]:
    prompt, how = facts.prompt, facts.recipe.evaluation
    of_prompt = {line["step"]: line["text"] for line in facts.samples if line["prompt"] == prompt}
    if not of_prompt:
        return
    steps = sorted(of_prompt)
    middle = min(steps, key=lambda step: abs(step - (steps[0] + steps[-1]) / 2))
    if how.temperature or (how.temperature is None and how.top_k):
        decoding = f"sampled at temperature {how.temperature or 1.0:g}"
        decoding += f" among the {how.top_k} most likely tokens" if how.top_k else ""
    else:
        decoding = "each token the most likely one"
    yield "## Samples"
    yield f"Continuations of the prompt {_span(prompt)} during training, unedited ({decoding}):"
    for step in sorted({steps[0], middle, steps[-1]}):
        yield f"**{f'After step {step:,}' if step else 'Before training'}**"
        yield code_block(_visible(of_prompt[step], limit=2000))


def _training(facts: _Facts) -> Iterator[str]:
    config = facts.config
    yield "## How it was made"
    yield "### Text"
    rows = []
    for kind in ("training", "validation"):
        text = facts.source(kind)
        if text:
            documents = f" in {text['documents']:,} documents" if text["documents"] > 1 else ""
            size = f"{text['characters']:,} characters ({text['bytes']:,} bytes){documents}, {text['tokens']:,} tokens"
            rows.append((kind, f"{_origin(facts, text)}<br>{size}"))
    if not facts.source("training"):
        rows.append(("training", "not recorded"))
    elif not facts.source("validation"):
        rows.append(("validation", "none"))
    rows.append(("tokenizer", _tokenizer(facts)))
    yield _table(("", ""), rows)
    hashes = [file for kind in ("training", "validation") for file in facts.source(kind).get("files", [])]
    if hashes:
        named = dict(map(tuple, hashes))
        total = max(facts.source(kind).get("num_files", 0) for kind in ("training", "validation"))
        more = f" The first of {total:,} files." if total > len(named) else ""
        yield f"SHA-256 of the text's files, decompressed where they are compressed.{more}"
        yield _table(("file", "SHA-256"), [(_span(name), f"`{digest}`") for name, digest in named.items()])

    yield "### Model"
    width, inner = config.get("hidden_size"), config.get("intermediate_size")
    shape = [
        ("layers", config.get("num_hidden_layers")),
        ("heads per layer", config.get("num_attention_heads")),
        ("width", width),
        ("width inside the feed-forward layers", inner or (4 * width if width else None)),
        ("activation", config.get("hidden_act")),
        ("context, learned positions", config.get("max_position_embeddings")),
        ("vocabulary", config.get("vocab_size")),
        ("biases of query, key and value", "yes" if config.get("qkv_bias") else "no"),
        ("output head", "the token embedding" if config.get("tie_word_embeddings") else "its own"),
        ("dropout in training", config.get("dropout")),
        ("weights in", ", ".join(sorted(_DTYPES.get(dtype, dtype) for dtype in facts.dtypes))),
    ]
    yield "A decoder-only transformer of GPT-2's kind: LayerNorm before attention and before the feed-forward layers."
    yield _table(("", ""), [(name, _value(value)) for name, value in shape if value is not None])

    yield "### Training"
    yield _table(("", ""), [*_training_rows(facts)])
    shown = yaml.safe_dump(_public(facts), sort_keys=False, allow_unicode=True, width=100)
    yield "<details><summary>The whole recipe</summary>"
    yield code_block(_visible(shown).rstrip("\n"), "yaml")
    yield "Local paths are shown by their last part.\n\n</details>"


def _training_rows(facts: _Facts) -> Iterator[tuple[str, str]]:
    recipe, environment = facts.recipe, facts.environment
    optimizer, schedule, train = recipe.optimizer, recipe.schedule, recipe.train
    if parent := environment.get("parent"):
        yield "branched off", f"after step {parent['step']:,} of the run {_span(_last_part(parent['run']))}"
    yield "length", _how_far(facts) + (f"; {facts.skipped} updates were skipped" if facts.skipped else "")
    windows = train.global_batch_size
    if windows is None:
        windows = train.batch_size * (train.gradient_accumulation_steps or 1) * facts.processes
    yield "a step", f"{windows:,} windows of {facts.config.get('max_position_embeddings'):,} tokens"
    muon = f" (matrices {optimizer.muon_lr or optimizer.lr:g}), momentum {optimizer.muon_momentum:g}"
    yield (
        "optimizer",
        f"{optimizer.name}, learning rate {optimizer.lr:g}{muon if optimizer.name == 'muon' else ''},"
        f" betas {optimizer.betas[0]:g} and {optimizer.betas[1]:g}, weight decay {optimizer.weight_decay:g}",
    )
    yield "schedule", f"{schedule.name}, {schedule.warmup_steps:,} steps of warmup"
    yield "precision", {"no": "fp32"}.get(train.mixed_precision, train.mixed_precision)
    if device := environment.get("device"):
        name = environment.get("device_name")
        what = f"{device} ({_span(name)})" if name and name != device else device
        began = environment.get("processes", facts.processes)
        begun = f" (begun on {began})" if began != facts.processes else ""
        threads = environment.get("cpu_threads") if device == "cpu" else None
        threads = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
        yield "hardware", f"{facts.processes} x {what}{threads}{begun}"
    yield "time", f"{duration(facts.seconds)}, evaluating and saving included"
    yield "seed", str(recipe.seed)
    versions = environment.get("versions", {})
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _limits(facts: _Facts) -> Iterator[str]:
    yield "## Limitations"
    length = facts.config.get("max_position_embeddings")
    points = [f"It takes at most {length:,} tokens into account; what came before them is forgotten."]
    text = facts.source("training")
    if text:
        points.append(
            f"Its training text has {text['characters']:,} characters, of the kind named above. On other text expect"
            " it to do worse, and expect errors and prejudices of the training text to come back."
        )
    else:
        points.append("Expect errors and prejudices of its training text to come back.")
    if facts.recipe.model.from_pretrained:
        points.append("What is said here of its text does not cover what the model it started from was trained on.")
    if facts.epochs and facts.epochs > 2:
        points.append(
            f"It saw its training text about {facts.epochs:.0f} times and may repeat passages word for word."
        )
    if "part" in facts.source("validation"):
        points.append("The validation text comes from the same source as the training text; other text is harder.")
    points.append("It was not tested on any benchmark, nor for bias or harmful output.")
    if not _is_finished(facts):
        points.append(f"Its training was not finished: these are the weights after {_how_far(facts)}.")
    yield "\n".join(f"- {point}" for point in points)


# Words --------------------------------------------------------------------------------------------------------------


def _is_finished(facts: _Facts) -> bool:
    train = facts.recipe.train
    return facts.step >= train.max_steps if train.max_steps is not None else _epoch(facts) >= train.epochs


def _epoch(facts: _Facts) -> float:
    return max((line["epoch"] for line in facts.metrics), default=0.0)


def _how_far(facts: _Facts) -> str:
    """`300 of 900 steps`, `900 steps`"""
    train, step = facts.recipe.train, facts.step
    if _is_finished(facts):
        return f"{step:,} step{'s' * (step != 1)}"
    if train.max_steps is not None:
        return f"{step:,} of {train.max_steps:,} steps"
    return f"{step:,} steps ({_epoch(facts):.2f} of {train.epochs:g} epochs)"


def _figures(found: Mapping[str, Any]) -> str:
    bits = f", {found['bits_per_byte']:.3f} bits per byte" if found.get("bits_per_byte") else ""
    return f"loss {found['validation_loss']:.3f}, perplexity {_perplexity(found['validation_loss'])}{bits}"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.1f}" if loss < 30 else f"{math.exp(loss):.1e}" if loss < 709 else "beyond measure"


def _text_name(facts: _Facts, kind: str) -> str:
    name = facts.source(kind).get("source")
    return f"{kind}: {_span(name)}" if name else kind


def _origin(facts: _Facts, text: Mapping[str, Any]) -> str:
    """Where a text comes from, so that somebody else finds the same."""
    if text.get("dataset"):
        inside = [f"{name} {_span(text[name])}" for name in ("config", "split", "revision") if text.get(name)]
        link = f"[{_escaped(text['dataset'])}](https://huggingface.co/datasets/{text['dataset']})"
        what = ", ".join([link, *inside])
    elif text.get("builtin"):
        python = facts.environment.get("versions", {}).get("python", "")
        what = f"{_span(text['builtin'])}, the documentation inside Python {python}".rstrip()
    else:
        what = _span(text["source"]) + (f", {text['num_files']:,} files" if text.get("num_files", 1) > 1 else "")
    return what + (f", {text['part']}" if text.get("part") else "")


def _tokenizer(facts: _Facts) -> str:
    named = facts.source("tokenizer")
    size = f", {named['entries']:,} entries" if named.get("entries") else ""
    if named.get("trained"):
        return f"byte-level BPE, trained on the training text{size}"
    known = {"gpt2": "GPT-2's byte-level BPE", "bytes": "one token per byte"}
    if named.get("name") in known:
        return f"{known[named['name']]}{size}"
    return f"{_of_model(named) if named else 'not recorded'}{size}"


def _of_model(named: Mapping[str, Any]) -> str:
    """A model or tokenizer that was there before."""
    if named.get("hub"):
        link = f"[{_escaped(named['hub'])}](https://huggingface.co/{named['hub']})"
        return link + (f" at {_span(named['revision'])}" if named.get("revision") else "")
    sha256 = f" (SHA-256 of its weights `{named['sha256']}`)" if named.get("sha256") else ""
    return f"{_span(named.get('local', 'a local folder'))}{sha256}"


def _public(facts: _Facts) -> dict[str, Any]:
    """The recipe, with the last part of every local path in its place."""
    values = _without_paths(facts.recipe.to_dict())
    values["evaluation"]["prompts"] = list(facts.recipe.evaluation.prompts)
    values["output_dir"] = _last_part(facts.recipe.output_dir)
    sections = {
        ("data", "source"): "training",
        ("data", "validation_source"): "validation",
        ("tokenizer", "name"): "tokenizer",
        ("model", "from_pretrained"): "model",
    }
    for (section, key), kind in sections.items():
        source, value = facts.source(kind), values[section].get(key)
        if value and not {"dataset", "builtin", "hub", "name"} & set(source):
            values[section][key] = source.get("local") or _last_part(value)
    return values


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    is_path = isinstance(value, str) and re.match(r"[/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", value)
    return _last_part(value) if is_path else value


def _last_part(path: str) -> str:
    """A path's last part, unless that is somebody's home."""
    name = next((part for part in reversed(re.split(r"[/\\]+", path.strip())) if part not in ("", ".", "..", "~")), "")
    with contextlib.suppress(RuntimeError):
        name = "" if name == Path.home().name else name
    return name if name and not re.fullmatch(r"~.*|[A-Za-z]:", name) else "gpt"


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _span(value) if isinstance(value, str) and not re.fullmatch(r"[\w ,.]+", value) else str(value)


def _literal(text: str) -> str:
    """A string as Python code has it, in double quotes where that needs no more escapes."""
    found = repr(text)
    return found if '"' in found else f'"{found[1:-1]}"'


def _large(count: int) -> str:
    """1998720 -> 2.0 million"""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return f"{count:,}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def _span(text: Any) -> str:
    """Text that nobody vouches for, in a line, as code."""
    text = _visible(str(text), one_line=True, limit=200)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) or not text else ""
    return f"{ticks}{room}{text}{room}{ticks}"


def _escaped(text: str) -> str:
    """Text that nobody vouches for, in a line, as text."""
    return re.sub(r"([!-,:-@\[-`{-~])", r"\\\1", _visible(text, one_line=True, limit=200))
