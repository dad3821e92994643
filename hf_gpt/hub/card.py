"""The model card: what a stranger who finds a checkpoint on the Hub should know about it.

All of it is read from the files of the run (`recipe.yaml`, `environment.json`, `metrics.jsonl`, `samples.jsonl`) and
of the checkpoint, up to the checkpoint's step, so the card can be made again at any time. What the run did not record
is left out. So are private facts: of a local path only the last part is shown, and no user or machine.

The page is `templates/card.md.jinja`; markdown.py escapes what it prints. card_merge.py keeps what people changed in a
published card.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import AutoConfig, PreTrainedConfig

from ..checkpoint import TRAINING_STATE, meta_weights, weights_hash
from ..configuration_gpt import TRANSFORMERS
from ..display import duration, escape_unprintable, perplexity, short_number
from ..errors import UserError
from ..loading import num_positions
from ..recipe import Recipe
from ..report.plots import loss_plot
from ..report.records import has_losses, read_benchmarks
from ..storage import read_file, read_json, write_bytes, write_text
from ..texts import VALIDATION, bits_of, evaluated_in, is_further, label_of, loss_of, text_of
from ..training.observers import Observer
from ..training.resume import earlier_recipe
from ..training.run_log import read_lines
from ..transformers_4 import VERSION, lost_in_transformers_4
from .card_merge import UNPUBLISHED, bare_card, compose, with_results
from .markdown import template

if TYPE_CHECKING:
    from ..training.loop import TrainingRun

_STATE = f"{TRAINING_STATE}/state.json"
# The sizes in the card, and what the types of transformers call them.
_SIZES = {
    "layers": "num_hidden_layers",
    "heads per layer": "num_attention_heads",
    "key-value heads": "num_key_value_heads",
    "width": "hidden_size",
    "width of a head": "head_dim",
    "width inside the feed-forward layers": "intermediate_size n_inner",
    "experts": "num_experts num_local_experts",
    "experts for a token": "num_experts_per_tok",
    "width inside an expert": "moe_intermediate_size",
    "size of the state": "state_size",
    "activation": "hidden_act hidden_activation activation_function",
    "positions": "max_position_embeddings",
    "attention window": "sliding_window",
    "vocabulary": "vocab_size",
    "biases of query, key and value": "qkv_bias",
    "dropout in training": "dropout resid_pdrop",
}


def write_card(checkpoint: Path, run_dir: Path) -> Path:
    """Write a checkpoint's `README.md`, with the losses beside it as `loss.png` if there are any."""
    facts = _facts(checkpoint, run_dir)
    if has_losses(facts["metrics"]) and facts["tokens"]:
        loss_plot(run_dir, checkpoint / "loss.png", until=facts["step"])
    sections: dict[str, str] = {}

    def section(name: str, caller) -> str:
        if text := caller().strip():
            sections[name] = text
        return ""

    template("card.md.jinja").render(facts, section=section, has_plot=(checkpoint / "loss.png").is_file())
    write_text(checkpoint / "README.md", compose(_metadata(facts), sections))
    return checkpoint / "README.md"


def add_benchmarks(checkpoint: Path, run_dir: Path) -> None:
    """Put what exactly a checkpoint's weights reached in benchmarks into the metadata of its card; the rest stays."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    weights, recipe = weights_hash(checkpoint), earlier_recipe(run_dir)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=one.task,
            dataset_name=escape_unprintable(one.label, one_line=True),
            dataset_args={"num_few_shot": one.num_fewshot, **({"limit": one.limit} if one.limit else {})},
            metric_type=one.metric,
            metric_name=one.metric,
            metric_value=round(one.value, 6),
        )
        for one in read_benchmarks(run_dir)
        if one.weights == weights and math.isfinite(one.value)
    ]
    card = (read_file(checkpoint / "README.md") or bare_card().encode()).decode("utf-8", "replace")
    index = eval_results_to_model_index(_name(recipe) if recipe else "gpt", results)
    write_text(checkpoint / "README.md", with_results(card, index))


class CardWriter(Observer):
    """Observer, for the main process: a card and a plot in each checkpoint, the newest plot also in the run.

    Another program may write into the run meanwhile. Where the card cannot be made, it says that this is a model.
    """

    def saving(self, training: "TrainingRun", directory: Path) -> None:
        try:
            write_card(directory, training.run_dir)
        except Exception as error:
            write_text(directory / "README.md", bare_card())
            what = f"warning: the card of step {training.progress.step} could not be made, and says next to nothing"
            training.say(f"{what}: {' '.join(str(error).split())[:300] or type(error).__name__}")

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        try:
            if (checkpoint / "loss.png").is_file():
                write_bytes(training.run_dir / "loss.png", (checkpoint / "loss.png").read_bytes())
        except OSError as error:
            training.say(f"warning: {training.run_dir / 'loss.png'} could not be written: {error.strerror}")


def _facts(checkpoint: Path, run_dir: Path) -> dict[str, Any]:
    """The variables of the template: what the run and the checkpoint recorded, up to the checkpoint's step."""
    recipe = earlier_recipe(run_dir)
    if recipe is None:
        raise UserError(f"{run_dir}: has no recipe.yaml, which a card is made from")
    environment = read_json(run_dir / "environment.json")
    written = read_json(checkpoint / "config.json")
    has_code = "auto_map" in written
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    tokenizer = read_json(checkpoint / "tokenizer_config.json")
    state = read_json(checkpoint / _STATE)
    if not state:
        raise UserError(f"{checkpoint}: has no {_STATE}, which holds its step; its card cannot be made")
    progress, processes = state["progress"], state["processes"]
    step, train = progress["step"], recipe.train
    metrics = [line for line in read_lines(run_dir / "metrics.jsonl") if line["step"] <= step]
    evaluation = next((line for line in reversed(metrics) if "eval_train_loss" in line), {})
    sources = environment.get("sources", {})
    model = sources.get("model", {})
    training = sources.get("training", {})
    texts = {text: found for text, found in sources.items() if text == VALIDATION or is_further(text)}
    every = [training, *texts.values()]
    weights = meta_weights(checkpoint).values()
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in weights}
    positions = num_positions(config)
    length, is_finished = _length(train, progress, max((line.get("epoch", 0.0) for line in metrics), default=0.0))
    prompt, samples = _samples(read_lines(run_dir / "samples.jsonl"), step, recipe.evaluation.prompts)
    parent = environment.get("parent")
    repo_id = recipe.hub.repo_id
    return {
        "name": _name(recipe),
        "address": repo_id or UNPUBLISHED,
        "recipe": recipe,
        "optimizer": recipe.optimizer,
        "recipe_yaml": yaml.safe_dump(_public(recipe, sources), sort_keys=False, allow_unicode=True, width=100),
        "environment": environment,
        "versions": environment.get("versions", {}),
        "transformers_needed": TRANSFORMERS,
        "architecture": (config.architectures or [config.model_type])[0],
        "model_type": config.model_type,
        "has_code": has_code,
        "older": VERSION,
        "lost": None if has_code else lost_in_transformers_4(written),
        "positions": positions,
        "context": min(filter(None, (positions, tokenizer.get("model_max_length"))), default=None),
        "license": recipe.hub.license or model.get("license"),
        "training": training,
        "texts": texts,  # to validate on
        "measured": [
            (text, texts.get(text, {}), evaluation[loss_of(text)], evaluation.get(bits_of(text)))
            for text in evaluated_in([evaluation])
        ],
        "tokenizer": sources.get("tokenizer", {}),
        "model": model,
        "trained_on": training.get("source", "").removesuffix(" (training text)"),
        "hashes": [*dict.fromkeys((name, sha256) for text in every for name, sha256 in text.get("files", []))],
        "num_files": max(text.get("num_files", 0) for text in every),
        "num_parameters": sum(weight.numel() for weight in weights),
        "shape": _shape(config.get_text_config(), dtypes),
        "metrics": metrics,
        "evaluation": evaluation,
        "is_evaluated": evaluation.get("step") == step,  # these weights, not earlier ones
        "step": step,
        "tokens": progress["tokens"],
        "skipped": progress.get("skipped", 0),
        "epochs": progress["tokens"] / training["tokens"] if training.get("tokens") else None,
        "duration": duration(progress["seconds"]),
        "length": length,
        "is_finished": is_finished,
        "processes": processes,
        "windows_per_step": train.global_batch_size
        or train.batch_size * (train.gradient_accumulation_steps or 1) * processes,
        "parent": parent and {**parent, "run": _last_part(parent["run"])},
        "prompt": prompt,
        "samples": samples,
        "is_sampled": bool(recipe.evaluation.temperature)
        or (recipe.evaluation.temperature is None and bool(recipe.evaluation.top_k)),
        "example": prompt if prompt and len(prompt) <= 80 else "Every effort moves you",
        "perplexity": perplexity,
        "short_number": short_number,
    }


def _shape(config: PreTrainedConfig, dtypes: set[str]) -> dict[str, Any]:
    """The table of the model's sizes, without what its configuration does not say."""
    rows = {label: _value(config, names.split()) for label, names in _SIZES.items()}
    rows["output head"] = "the token embedding" if config.tie_word_embeddings else "its own"
    rows["weights in"] = ", ".join([*sorted(dtypes), *(["trained in float32"] if dtypes != {"float32"} else [])])
    return {label: value for label, value in rows.items() if value is not None}


def _value(config: PreTrainedConfig, names: list[str]) -> Any:
    """What a configuration says under the first of some names; of a list with a value for each layer, each once."""
    for name in names:
        with contextlib.suppress(Exception):  # transformers refuses fields that differ between the layers
            if (found := getattr(config, name, None)) is not None:
                found = {True: "yes", False: "no"}[found] if isinstance(found, bool) else found
                return ", ".join(map(str, dict.fromkeys(found))) if isinstance(found, list) else found
    return None


def _length(train: Any, progress: dict[str, Any], epoch: float) -> tuple[str, bool]:
    """`300 of 900 steps` or `900 steps`, and whether the run is finished."""
    asked = {"steps": train.max_steps, "epochs": train.epochs, "tokens": train.max_tokens, "words": train.max_words}
    (unit, end), *_ = ((unit, end) for unit, end in asked.items() if end is not None)
    so_far = {"steps": progress["step"], "epochs": epoch}.get(unit) or progress.get(unit) or 0
    steps = f"{progress['step']:,}"
    if so_far >= end:
        return f"{steps} step{'s' * (progress['step'] != 1)}", True
    if unit == "steps":
        return f"{steps} of {end:,} steps", False
    done = f"{so_far:.2f} of {end:g}" if unit == "epochs" else f"{so_far:,} of {end:,}"
    return f"{steps} steps ({done} {unit})", False


def _samples(lines: list[dict[str, Any]], step: int, prompts: list[str]) -> tuple[str | None, list[tuple[int, str]]]:
    """The recipe's first prompt with samples, else the last sampled one; its first, middle and last sample."""
    lines = [line for line in lines if line["step"] <= step]
    sampled = [line["prompt"] for line in lines]
    prompt = next((prompt for prompt in prompts if prompt in sampled), sampled[-1] if sampled else None)
    texts = {line["step"]: line["text"] for line in lines if line["prompt"] == prompt}
    if not texts:
        return prompt, []
    first, last = min(texts), max(texts)
    middle = min(sorted(texts), key=lambda step: abs(step - (first + last) / 2))
    return prompt, [(step, texts[step]) for step in sorted({first, middle, last})]


# Metadata -----------------------------------------------------------------------------------------------------------


def _metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    from huggingface_hub import ModelCardData

    results = [*_eval_results(facts)]
    texts = (facts["training"], *facts["texts"].values())
    datasets = [text["dataset"] for text in texts if text.get("dataset")]
    recipe, model, named = facts["recipe"], facts["model"], ("license", "license_name", "license_link")
    return ModelCardData(
        **({"license": recipe.hub.license} if recipe.hub.license else {name: model.get(name) for name in named}),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["hf_gpt", "gpt" if facts["has_code"] else facts["model_type"]],
        datasets=[*dict.fromkeys(datasets)] or None,
        base_model=model.get("hub"),
        model_name=facts["name"] if results else None,  # a part of `model-index`
        eval_results=results or None,
    ).to_dict()


def _eval_results(facts: Mapping[str, Any]) -> Iterator[Any]:
    """Loss, perplexity and bits per byte on the validation texts, if exactly these weights were evaluated."""
    from huggingface_hub import EvalResult

    for name, text, loss, bits in facts["measured"] if facts["is_evaluated"] else ():
        split = text.get("split") if text.get("dataset") else "validation"
        if text.get("dataset") and "part" in text:
            split = None  # a part that the run cut off is not a split of the dataset; the name says which part
        source, config = text.get("source") or "validation text", text.get("config")
        if is_further(name):
            source = f"{label_of(name)}: {source}"
            config = config if text.get("dataset") else label_of(name)  # by which the Hub tells two texts apart
        values = {
            "loss": ("Loss (nats per token)", loss),
            "perplexity": ("Perplexity", math.exp(loss) if loss < 709 else math.inf),
            "bits_per_byte": ("Bits per byte", bits),
        }
        for kind, (metric, value) in values.items():
            if value is None or not math.isfinite(value):
                continue
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=text.get("dataset") or "text",
                dataset_name=escape_unprintable(source, one_line=True),
                dataset_config=config,
                dataset_split=split,
                dataset_revision=text.get("revision"),
                metric_type=kind,
                metric_name=metric,
                metric_value=round(float(value), 6),
            )


# Private facts ------------------------------------------------------------------------------------------------------


def _public(recipe: Recipe, sources: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, with only the last part of every local path."""
    values = _without_paths(recipe.to_dict())
    values["evaluation"]["prompts"] = list(recipe.evaluation.prompts)
    values["output_dir"] = _last_part(recipe.output_dir)
    fields = {
        "training": (values["data"], "source"),
        "validation": (values["data"], "validation_source"),
        "tokenizer": (values["tokenizer"], "name"),
        "model": (values["model"], "from_pretrained"),
        **{text_of(name): (text, "source") for name, text in values["evaluation"]["datasets"].items()},
    }
    for kind, (section, key) in fields.items():
        source, value = sources.get(kind, {}), section.get(key)
        if isinstance(value, list):
            origins = source.get("sources") or [source] * len(value)
            section[key] = [_published(name, origin) for name, origin in zip(value, origins)]
        elif value:
            section[key] = _published(value, source)
    return values


def _published(name: str, origin: Mapping[str, Any]) -> str:
    """The name of a source: as it is if it means the same everywhere, else without its path."""
    if {"dataset", "builtin", "hub", "name"} & set(origin):
        return name
    return origin.get("local") or _last_part(name)


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    is_path = isinstance(value, str) and re.match(r"[/\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]|file:", value)
    return _last_part(value) if is_path else value


def _name(recipe: Recipe) -> str:
    """What the model is called."""
    return recipe.hub.repo_id.rpartition("/")[2] if recipe.hub.repo_id else _last_part(recipe.output_dir)


def _last_part(path: str) -> str:
    """The last part of a path; of a home directory, which names a person, `gpt`."""
    name = next((part for part in reversed(re.split(r"[/\\]+", path.strip())) if part not in ("", ".", "..", "~")), "")
    with contextlib.suppress(RuntimeError):
        name = "" if name == Path.home().name else name
    return name if name and not re.fullmatch(r"~.*|[A-Za-z]:", name) else "gpt"
