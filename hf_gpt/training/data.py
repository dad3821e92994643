"""From a recipe to the windows of its text: tokenizer, token stores, and the plan of which windows a step sees.

`hf-gpt tokenize` shows what this file finds; training reads it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from .. import checkpoint
from ..configuration_gpt import GPTConfig
from ..data.batches import BatchPlan, Windows
from ..data.corpus import Corpus, load_corpora
from ..data.files import cache_folder
from ..data.progress import ReadingProgress
from ..data.token_store import TokenStore, fraction_of_split_characters, tokenize
from ..data.tokenizer import load_tokenizer, train_tokenizer, vocab_size
from ..errors import UserError
from ..recipe import Recipe, TokenizerRecipe, TrainRecipe
from ..storage import replacing_directory
from .model import Pretrained, model_config
from .resume import canonical_field_names

# Of English under gpt2 almost no token is part of a character, of Chinese more than half are.
_MANY_SPLIT = 0.2


@dataclass
class Data:
    """Text, tokenised: what `hf-gpt tokenize` reports on and training reads."""

    recipe: Recipe  # with the `auto`s of `model`, `tokenizer` and `data` resolved
    tokenizer: PreTrainedTokenizerFast
    config: GPTConfig
    windows: Windows  # what training sees
    evaluated: dict[str, Windows]  # "eval_train" and, if there is any, "validation": windows that do not overlap
    pretrained: Pretrained | None  # the model to continue

    def facts(self) -> dict[str, Any]:
        """What a person should know before training, as `hf-gpt tokenize --json` prints it."""
        validation = self.evaluated.get("validation")
        plan = batch_plan(self.recipe, self.windows)
        inputs, targets = self.windows.window(0)
        return {
            "training": text_facts(self.windows),
            "validation": text_facts(validation) if validation else None,
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


def prepare_data(recipe: Recipe, pretrained: Pretrained | None = None) -> Data:
    """Load or train the tokenizer, tokenise the corpora (or find them tokenised), and cut windows.

    Args:
        pretrained: the model that `recipe.model.from_pretrained` names.

    Raises:
        UserError: something in the recipe's `data`, `tokenizer` or `model` cannot work here.
    """
    corpus, validation = load_corpora(recipe.data)
    named = recipe.tokenizer
    if not named.name and not named.train:
        named = dataclasses.replace(named, name=recipe.model.from_pretrained or "gpt2", revision=recipe.model.revision)
    if named.name and named.name == recipe.model.from_pretrained:
        named = dataclasses.replace(named, name=checkpoint.resolve_model(named.name))
    tokenizer = _tokenizer(named, corpus)
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


def text_facts(windows: Windows) -> dict[str, Any]:
    """What is known of a text, for people and for `environment.json`."""
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


def _tokenizer(recipe: TokenizerRecipe, corpus: Corpus) -> PreTrainedTokenizerFast:
    if recipe.train is None:
        folder = Path(recipe.name).expanduser()
        name = str(checkpoint.tokenizer_folder(folder)) if folder.is_dir() else recipe.name
        return load_tokenizer(name, revision=recipe.revision)
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
