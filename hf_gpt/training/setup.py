"""From a recipe to everything a loop needs: device, tokenizer, token stores, model, with every `auto` resolved.

Each `auto` is decided here, once, by a rule that looks at the hardware and the corpus and never at a clock; the
decision is written to `recipe.yaml`, and a run that goes on takes it from there. `hf-gpt tokenize` uses the first half
of this file (`prepare_data`), training all of it.
"""

import dataclasses
import importlib.metadata
import os
import pickle
import platform
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from filelock import FileLock
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from .. import checkpoint
from ..configuration_gpt import GPTConfig
from ..conversion import from_gpt2
from ..data.batches import BatchPlan, Windows
from ..data.corpus import Corpus, load_corpora
from ..data.files import cache_folder, content_hash, digest
from ..data.progress import ReadingProgress
from ..data.token_store import TokenStore, fraction_of_split_characters, tokenize
from ..data.tokenizer import load_tokenizer, train_tokenizer, vocab_size
from ..errors import UserError, did_you_mean
from ..hub.push import fetch_run
from ..modeling_gpt import GPTForCausalLM
from ..recipe import ModelRecipe, Recipe, TokenizerRecipe, TrainRecipe
from ..storage import read_json, refuse_unwritable, replacing_directory
from . import deepspeed
from .distributed import start_accelerator, together
from .resume import (
    canonical_field_names,
    changes_of_environment,
    changes_of_recipe,
    describe_parent,
    earlier_recipe,
    find_parent,
)

# Of English under gpt2 almost no token is part of a character, of Chinese more than half are.
_MANY_SPLIT = 0.2


@dataclass(frozen=True)
class Pretrained:
    """What `model.from_pretrained` names: its files in our layout, and of a Hub id the commit they are of.

    It is looked up once for a run: the branch that it names may move on in the meantime.
    """

    folder: Path
    commit: str | None


@dataclass
class Data:
    """Text, tokenised: what `hf-gpt tokenize` reports on and training reads."""

    recipe: Recipe  # with the `auto`s of `model`, `tokenizer` and `data` resolved
    tokenizer: PreTrainedTokenizerFast
    config: GPTConfig
    windows: Windows  # what training sees
    evaluated: dict[str, Windows]  # "eval_train" and, if there is any, "validation": windows that do not overlap
    pretrained: Pretrained | None  # what the model goes on from

    def facts(self) -> dict[str, Any]:
        """What a person should know before training, as `hf-gpt tokenize --json` prints it."""
        validation = self.evaluated.get("validation")
        plan = batch_plan(self.recipe, self.windows)
        inputs, targets = self.windows.window(0)
        return {
            "training": _facts(self.windows),
            "validation": _facts(validation) if validation else None,
            "separator": "<|endoftext|>" if self.recipe.data.separator else None,
            "vocabulary": vocab_size(self.tokenizer),
            "context_length": self.windows.context_length,
            "stride": self.windows.stride,
            "batches_per_epoch": plan.steps_per_epoch,
            "first_input": self.tokenizer.decode(inputs[:16].tolist()),
            "first_target": self.tokenizer.decode(targets[:16].tolist()),
            "split_characters": round(fraction_of_split_characters(self.windows.store, self.tokenizer), 4),
        }

    def describe(self) -> Iterator[str]:
        """The same for people, line by line."""
        facts = self.facts()
        for name in ("training", "validation"):
            if text := facts[name]:
                documents = "" if text["documents"] == 1 else f" in {text['documents']:,} documents"
                yield (
                    f"{name:11}{text['source']}: {text['characters']:,} characters{documents},"
                    f" {text['tokens']:,} tokens ({text['characters_per_token']:.2f} characters each),"
                    f" {text['windows']:,} windows of {facts['context_length']}"
                )
        if not facts["validation"]:
            yield "validation none; data.validation_fraction: 0.1 would keep a tenth of the text for it"
        joined = (
            "documents, <|endoftext|> between them" if facts["separator"] else "lines of one text, joined as they are"
        )
        yield f"read as    {joined}; stride {facts['stride']}; vocabulary {facts['vocabulary']:,}"
        yield f"an epoch   {facts['batches_per_epoch']:,} steps on one process"
        yield f"input      {facts['first_input']!r} ..."
        yield f"target     {facts['first_target']!r} ..."
        if facts["split_characters"] > _MANY_SPLIT:
            yield (
                f"note       {facts['split_characters']:.0%} of the tokens are only parts of a character: this text"
                " wants a vocabulary of its own, tokenizer: {train: {vocab_size: 4096}}"
            )


@dataclass
class Job:
    """Everything a training loop needs."""

    recipe: Recipe  # every `auto` resolved
    run_dir: Path
    accelerator: Accelerator
    data: Data
    plan: BatchPlan
    model: GPTForCausalLM
    max_steps: int
    environment: dict[str, Any]
    changes: list[str]  # of the recipe, since the run in `run_dir` began
    warnings: list[str]  # what else a person who goes on with a run should know
    earlier: Recipe | None  # of the run that `run_dir` holds
    parent: Path | None  # the checkpoint of another run that this one starts from

    def describe(self) -> Iterator[str]:
        """What is about to happen, line by line."""
        yield from self.data.describe()
        train, processes = self.recipe.train, self.accelerator.num_processes
        precision = {"no": "fp32"}.get(train.mixed_precision, train.mixed_precision)
        yield (
            f"model      {self.model.num_parameters():,} parameters, {precision} on {processes} x {train.device}"
            f", {'compiled' if train.compile else 'not compiled'}"
        )
        yield (
            f"training   {self.max_steps:,} steps of {self.plan.global_batch_size} windows,"
            f" {self.max_steps / self.plan.steps_per_epoch:.2f} epochs, into {self.run_dir}"
        )


def prepare_data(recipe: Recipe) -> Data:
    """Load or train the tokenizer, tokenise the corpora (or find them tokenised), and cut windows."""
    corpus, validation = load_corpora(recipe.data)
    named = recipe.tokenizer
    if not named.name and not named.train:
        named = dataclasses.replace(named, name=recipe.model.from_pretrained or "gpt2", revision=recipe.model.revision)
    if named.name and named.name == recipe.model.from_pretrained:
        named = dataclasses.replace(named, name=checkpoint.resolve_model(named.name))
    tokenizer = _tokenizer(named, corpus)
    pretrained = _pretrained(recipe.model)
    config = model_config(recipe.model, tokenizer, pretrained)
    context_length = tokenizer.model_max_length = config.max_position_embeddings
    data = dataclasses.replace(recipe.data, stride=recipe.data.stride or context_length, separator=corpus.separated)
    fields = canonical_field_names(recipe.model.config)
    model = dataclasses.replace(recipe.model, config={**fields, "vocab_size": config.vocab_size})

    def windows(store: TokenStore, stride: int, **options: str) -> Windows:
        return Windows(store, context_length, stride, data.isolate_documents, **options)

    store = _tokenize(corpus, tokenizer)
    evaluated = {"eval_train": windows(store, context_length)}
    if validation is not None:
        remedy = "raise data.validation_fraction" if data.validation_fraction else "give more text to validate on"
        evaluated["validation"] = windows(_tokenize(validation, tokenizer), context_length, remedy=remedy)
    return Data(
        recipe=dataclasses.replace(recipe, data=data, model=model, tokenizer=named),
        tokenizer=tokenizer,
        config=config,
        windows=windows(store, data.stride),
        evaluated=evaluated,
        pretrained=pretrained,
    )


def _facts(windows: Windows) -> dict[str, Any]:
    store = windows.store
    return {
        "source": store.name,
        "characters": store.num_characters,
        "bytes": store.num_bytes,
        "documents": store.num_documents,
        "tokens": store.num_tokens,
        "characters_per_token": round(store.characters_per_token, 4),
        "windows": len(windows),
    }


def batch_plan(recipe: Recipe, windows: Windows, num_processes: int = 1) -> BatchPlan:
    """Which windows each step of a recipe sees.

    Raises:
        UserError: the windows of a step cannot be dealt out evenly.
    """
    train = recipe.train
    at_once = train.batch_size * num_processes
    accumulation = train.gradient_accumulation_steps or 1
    if train.global_batch_size is not None:
        accumulation, rest = divmod(train.global_batch_size, at_once)
        given = train.gradient_accumulation_steps
        if rest or not accumulation or (given is not None and given != accumulation):
            times = f" x {given} accumulated (train.gradient_accumulation_steps)" if given is not None else ""
            raise UserError(
                f"train.global_batch_size: {train.global_batch_size} windows are not {train.batch_size} at once"
                f" (train.batch_size) x {num_processes} processes{times or ', any number of times'}"
            )
    return BatchPlan(
        windows,
        train.batch_size,
        world_size=num_processes,
        accumulation=accumulation,
        seed=recipe.seed,
        shuffle=recipe.data.shuffle,
        drop_last=recipe.data.drop_last,
    )


def num_steps(train: TrainRecipe, plan: BatchPlan) -> int:
    """How long a run is, whether its recipe counts in steps or in epochs."""
    return train.max_steps if train.max_steps is not None else max(1, round(train.epochs * plan.steps_per_epoch))


def prepare(recipe: Recipe, parent: str | None = None) -> Job:
    """Resolve `recipe` and build what it names. Nothing is written but the caches.

    Args:
        parent: `RUN@STEP` (or `RUN`, for its latest checkpoint): the run to branch off from.

    Raises:
        UserError: anything in the recipe that cannot work here, including an output folder that holds another run.
    """
    run_dir = Path(recipe.output_dir).expanduser()
    refuse_unwritable(run_dir, "output_dir")
    if recipe.checkpoint.resume == "hub":
        fetch_run(recipe.hub.repo_id, recipe.hub.branch, run_dir)
    earlier = earlier_recipe(run_dir)
    recipe = resolve_hardware(recipe, earlier)
    accelerator = start_accelerator(recipe)
    with together(accelerator):
        data = prepare_data(recipe)
    plan = batch_plan(data.recipe, data.windows, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = plan.accumulation
    if deepspeed.asked_for():
        deepspeed.configure(accelerator, recipe, plan)
    train = dataclasses.replace(
        recipe.train, global_batch_size=plan.global_batch_size, gradient_accumulation_steps=None
    )
    if train.compile == "auto":
        tokens_per_step = plan.global_batch_size * data.windows.context_length
        pays = _pays_to_compile(train.device, data.config, num_steps(train, plan), tokens_per_step)
        sharded = accelerator.distributed_type == DistributedType.FSDP  # where it was not tried
        train = dataclasses.replace(train, compile=pays and not sharded)
    recipe = dataclasses.replace(data.recipe, train=train)
    changes = changes_of_recipe(run_dir, earlier, recipe) if earlier is not None else []
    environment = describe_environment(accelerator, data)
    branched_from = find_parent(run_dir, parent, data.config, data.tokenizer, recipe.optimizer.name)
    if branched_from is not None:
        environment["parent"] = describe_parent(branched_from)

    torch.manual_seed(recipe.seed)
    model = _model(recipe, data.config, data.pretrained)
    if accelerator.process_index > 0:  # the same weights everywhere, but dropout of one's own
        torch.manual_seed(recipe.seed + 7919 * accelerator.process_index)

    return Job(
        recipe=recipe,
        run_dir=run_dir,
        accelerator=accelerator,
        data=data,
        plan=plan,
        model=model,
        max_steps=num_steps(train, plan),
        environment=environment,
        changes=changes,
        earlier=earlier,
        warnings=changes_of_environment(run_dir, environment),
        parent=branched_from,
    )


def model_config(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast, pretrained: Pretrained | None) -> GPTConfig:
    """The configuration a recipe names, with the tokenizer's vocabulary unless a size is given.

    Raises:
        UserError: an impossible shape, an unknown field or preset, or a vocabulary smaller than the tokenizer's.
    """
    known = GPTConfig._own_names()
    for name in recipe.config:
        if name not in known:
            raise UserError(f"model.{name}: unknown key{did_you_mean(name, known | {'preset', 'from_pretrained'})}")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = vocab_size(tokenizer)
    fields = {"vocab_size": size, **special, **recipe.config}
    given = recipe.config.get("vocab_size")
    if isinstance(given, int) and given < size:
        raise UserError(_too_small(given, size))
    try:
        if pretrained:
            config = GPTConfig.from_pretrained(pretrained.folder, **recipe.config)
        elif recipe.preset:
            config = GPTConfig.from_preset(recipe.preset, **fields)
        else:
            config = GPTConfig(**fields)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"model: {error}") from None
    if config.vocab_size < size:
        raise UserError(_too_small(config.vocab_size, size))
    return config


def _pretrained(recipe: ModelRecipe) -> Pretrained | None:
    """What the recipe's `from_pretrained` names; a GPT-2 is converted once and kept in the cache.

    Raises:
        UserError: it is not there, or neither ours nor a GPT-2 that can be converted.
    """
    if not recipe.from_pretrained:
        return None
    try:
        folder = checkpoint.model_folder(recipe.from_pretrained, recipe.revision)
        kind = GPTConfig.get_config_dict(folder)[0].get("model_type")
        if kind not in (GPTConfig.model_type, "gpt2"):
            raise ValueError(
                f"{recipe.from_pretrained} is a {kind} model; {GPTConfig.model_type} and gpt2 models can be gone on"
                " from"
            )
        in_our_layout = folder if kind == GPTConfig.model_type else _converted_once(folder)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"model: {error}") from None
    return Pretrained(in_our_layout, folder.name if folder.parent.name == "snapshots" else None)  # the Hub's cache


def _converted_once(folder: Path) -> Path:
    """A GPT-2 in our layout, kept under the name of its content."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    content = digest("gpt2", *(f"{path.name} {content_hash(path, is_text=False)}" for path in files))
    kept = cache_folder() / "models" / f"gpt2-{content[:32]}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not (kept / "config.json").is_file():
            from_gpt2(str(folder), str(kept), tokenizer="none")
    return kept


def _too_small(vocabulary: int, size: int) -> str:
    return (
        f"model.vocab_size: {vocabulary} is smaller than the tokenizer's {size} entries; raise it to {size} or leave"
        " it out (a model that was trained already wants the tokenizer it was trained with)"
    )


def describe_environment(accelerator: Accelerator, data: Data) -> dict[str, Any]:
    """What decides a run beside its recipe: versions and hardware, and the content of the text by its hash."""
    packages = ("hf_gpt", "torch", "transformers", "accelerate", "datasets", "tokenizers", "tiktoken", "safetensors")
    versions = {p: importlib.metadata.version(p) for p in packages} | {"deepspeed": deepspeed.version()}
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "run_id": uuid.uuid4().hex[:8],  # by which trackers know the run again
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "device": device.type,
        "device_name": name,
        "processes": accelerator.num_processes,
        "cpu_threads": torch.get_num_threads(),
        "text": {name: windows.store.path.name for name, windows in data.evaluated.items()},
        "sources": describe_sources(data),
    }


def describe_sources(data: Data) -> dict[str, Any]:
    """What a run was made from, in words that hold on another machine: no paths, but names, revisions and hashes."""
    facts = {name.removeprefix("eval_"): (_facts(windows), windows.store) for name, windows in data.evaluated.items()}
    sources: dict[str, Any] = {name: {**found, **store.origin} for name, (found, store) in facts.items()}
    sources["training"] = sources.pop("train")
    tokenizer, model = data.recipe.tokenizer, data.recipe.model
    sources["tokenizer"] = {"trained": True} if tokenizer.train else _named(tokenizer.name, tokenizer.revision)
    sources["tokenizer"]["entries"] = vocab_size(data.tokenizer)
    if model.from_pretrained:
        sources["model"] = _named(checkpoint.resolve_model(model.from_pretrained), data.pretrained.commit)
    return sources


def _named(name: str, revision: str | None) -> dict[str, Any]:
    """A model or tokenizer: a Hub id with its revision, or what is on this disk by its name, if a run's with that."""
    if name in ("gpt2", "bytes"):
        return {"name": name}
    path = Path(name).expanduser()
    if not path.exists():
        return {"hub": name, "revision": revision}
    path = path.absolute()
    if path.parent.name != "checkpoints":
        return {"local": path.name}
    weights = read_json(path / checkpoint.MANIFEST).get("files", {}).get("model.safetensors", {})
    return {"local": f"{path.parent.parent.name} {path.name}", "sha256": weights.get("sha256")}


def resolve_hardware(recipe: Recipe, earlier: Recipe | None) -> Recipe:
    """Decide device, precision and compilation: as the earlier run in this folder did, else by what is here."""
    train = recipe.train
    before = earlier.train if earlier is not None else train
    device = train.device if train.device != "auto" else before.device
    if device == "auto":
        device = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else checkpoint.best_device()
    if device != "cpu" and not getattr(torch, device).is_available():
        raise UserError(f"train.device: {device} is not available here; use cpu or auto")
    precision = train.mixed_precision if train.mixed_precision != "auto" else before.mixed_precision
    if precision == "auto":
        precision = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and device == "cpu":
        raise UserError("train.mixed_precision: fp16 needs a GPU; use bf16 or no on a cpu")
    compiled = train.compile if train.compile != "auto" else before.compile  # perhaps still auto: see _pays_to_compile
    resolved = dataclasses.replace(train, device=device, mixed_precision=precision, compile=compiled)
    return dataclasses.replace(recipe, train=resolved)


def _pays_to_compile(device: str, config: GPTConfig, steps: int, tokens_per_step: int) -> bool:
    """`train.compile: auto`, by a rule on device, size of the model and length of the run; never by a clock.

    On two cores compiling took half a minute, and then saved 4% of the step of a model of 2 layers x 128, 14% at 4 x
    192 and 9% at 6 x 384: it pays for itself within 10^14 operations, and larger models were not measured. It needs a
    C++ compiler. On a GPU, where it was not measured, it takes about a minute.
    """
    if device == "cuda":
        return steps >= 500
    block_parameters = 12 * config.num_hidden_layers * config.hidden_size**2
    operations = 6 * block_parameters * tokens_per_step * steps
    has_compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    return device == "cpu" and block_parameters < 11e6 and operations > 1e14 and has_compiler


def _tokenizer(recipe: TokenizerRecipe, corpus: Corpus) -> PreTrainedTokenizerFast:
    if recipe.train is None:
        return load_tokenizer(recipe.name, revision=recipe.revision)
    # Trained once for a corpus and a size, by the first process that asks, and kept beside the token stores.
    kept = cache_folder() / "tokenizers" / f"bpe-1-{recipe.train.vocab_size}-{corpus.identity}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not (kept / "tokenizer.json").is_file():
            with replacing_directory(kept) as directory:
                train_tokenizer(_texts(corpus), recipe.train.vocab_size).save_pretrained(directory)
    return load_tokenizer(str(kept))


def _tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> TokenStore:
    with ReadingProgress(f"tokenising {corpus.name}") as progress:
        return tokenize(corpus, tokenizer, progress=progress)


def _texts(corpus: Corpus) -> Iterator[str]:
    """The text of a corpus, piece by piece, without the marks between its documents."""
    return (piece for piece in corpus.pieces() if piece)


def _model(recipe: Recipe, config: GPTConfig, pretrained: Pretrained | None) -> GPTForCausalLM:
    attention = recipe.train.attn_implementation
    try:
        if pretrained:
            model, report = AutoModelForCausalLM.from_pretrained(
                pretrained.folder,
                config=config,
                attn_implementation=attention,
                dtype=torch.float32,
                output_loading_info=True,
            )
            checkpoint.refuse_missing_weights(recipe.model.from_pretrained, report)
        else:
            model = GPTForCausalLM._from_config(config, attn_implementation=attention)
    except pickle.UnpicklingError:
        raise UserError(
            f"model: the weights of {recipe.model.from_pretrained} are a pickle that could run code, and were not read"
        ) from None
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise UserError(f"model: {error}") from None
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model
