"""From a recipe to the windows of its text: tokenizer, token stores, and the plan of which windows a step sees.

`hf-gpt tokenize` shows what this file finds; training reads it.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import TOKENIZER_MAPPING, PreTrainedConfig, PreTrainedTokenizerFast

from .. import checkpoint
from ..data.batches import BatchPlan, Windows
from ..data.cache import cache_folder, digest, kept, seal
from ..data.corpus import Corpus, load_corpora, load_text
from ..data.progress import WorkProgress
from ..data.token_store import TokenStore, fraction_of_split_characters, store_name, tokenize
from ..data.tokenizer import content_of, load_tokenizer, save_tokenizer, train_tokenizer, vocab_size
from ..display import escape_unprintable
from ..errors import UserError
from ..loading import memory_of_machine, num_positions
from ..recipe import Recipe, TokenizerRecipe
from ..storage import local_path, replacing_directory
from ..texts import TRAINING, VALIDATION, recorded_as, text_of
from .model import Pretrained, canonical_field_names, model_config

# Of English under gpt2 almost no token is part of a character, of Chinese more than half are.
_MANY_SPLIT = 0.2
_LONGEST_WINDOW = 8192  # that is taken unasked
_BYTES_OF_TOKEN = 16  # in a batch: an input and a target, both int64


@dataclass
class Data:
    """Text, tokenised: what `hf-gpt tokenize` reports on and training reads."""

    recipe: Recipe  # with the `auto`s of `model`, `tokenizer`, `data` and `evaluation` resolved
    tokenizer: PreTrainedTokenizerFast
    config: PreTrainedConfig
    windows: Windows  # what training sees
    evaluated: dict[str, Windows]  # by the names of the texts (texts.py): windows that do not overlap
    pretrained: Pretrained | None  # the model to continue
    notes: tuple[str, ...] = ()  # what a person might have expected to be read and is not

    def facts(self) -> dict[str, Any]:
        """What a person should know before training, as `hf-gpt tokenize --json` prints it."""
        marks = {"separator": self.windows.store.separator_id, "begin": self.windows.store.begin_id}
        plan = batch_plan(self.recipe, self.windows)
        inputs, targets = self.windows.window(0)
        return {
            "training": text_facts(self.windows),
            VALIDATION: None,
            **{text: text_facts(windows) for text, windows in self.evaluated.items() if text != TRAINING},
            **{f"{name}_id": mark for name, mark in marks.items()},
            **{
                name: None if mark is None else self.tokenizer.convert_ids_to_tokens(mark)
                for name, mark in marks.items()
            },
            "vocabulary": vocab_size(self.tokenizer),
            "context_length": self.windows.context_length,
            "stride": self.windows.stride,
            "batches_per_epoch": plan.steps_per_epoch,
            "notes": list(self.notes),
            "first_input": self.tokenizer.decode(inputs[:16].tolist()),
            "first_target": self.tokenizer.decode(targets[:16].tolist()),
            "split_characters": round(fraction_of_split_characters(self.windows.store, self.tokenizer), 4),
        }

    def describe(self) -> Iterator[str]:
        """The same for people, line by line."""
        facts = self.facts()
        for name in self.evaluated:
            text, (kind, _, named) = facts[recorded_as(name)], recorded_as(name).partition("/")
            source = f"{named}, {text['source']}" if named else text["source"]
            documents = "" if text["documents"] == 1 else f" in {text['documents']:,} documents"
            yield (
                f"{kind:11}{source}: {text['characters']:,} characters{documents},"
                f" {text['tokens']:,} tokens ({text['characters_per_token']:.2f} characters each),"
                f" {text['windows']:,} windows of {facts['context_length']}"
            )
        if len(self.evaluated) == 1:
            yield "validation none; data.validation_fraction: 0.1 would keep a tenth of the text for it"
        begin, separator = (
            facts[name] and f"{escape_unprintable(facts[name], one_line=True)} ({facts[f'{name}_id']})"
            for name in ("begin", "separator")
        )
        joined = f"documents, {separator} between them" if separator else "lines of one text, joined as they are"
        if begin:
            joined = f"documents, each from {begin} to {separator}" if separator else f"{joined}, after {begin}"
        yield f"read as    {joined}; stride {facts['stride']}; vocabulary {facts['vocabulary']:,}"
        yield f"an epoch   {facts['batches_per_epoch']:,} steps on one process"
        for name in ("input", "target"):
            yield f"{name:11}'{escape_unprintable(facts[f'first_{name}'], one_line=True)}' ..."
        if self.pretrained:
            yield from self.pretrained.describe()
        for note in self.notes:
            yield f"note       {note}"
        if facts["split_characters"] > _MANY_SPLIT:
            remedy = "this text wants a vocabulary of its own, tokenizer: {train: {vocab_size: 4096}}"
            if trained := self.recipe.tokenizer.train:
                if facts["vocabulary"] < trained.vocab_size:  # nothing occurs twice that is not a token
                    return
                remedy = "a larger tokenizer.train.vocab_size keeps more of them whole"
            yield f"note       {facts['split_characters']:.0%} of the tokens are only parts of a character: {remedy}"


def prepare_data(recipe: Recipe, pretrained: Pretrained | None = None) -> Data:
    """Load or train the tokenizer, tokenise the corpora (or find them tokenised), and cut windows.

    Args:
        pretrained: the model that `recipe.model.from_pretrained` names.

    Raises:
        UserError: something in the recipe's `data`, `tokenizer` or `model` cannot work here.
    """
    corpus, to_validate = load_texts(recipe)
    named = recipe.tokenizer
    if not named.name and not named.train:
        named = dataclasses.replace(named, name=recipe.model.from_pretrained or "gpt2", revision=recipe.model.revision)
    if named.name and named.name == recipe.model.from_pretrained:
        named = dataclasses.replace(named, name=checkpoint.resolve_model(named.name))
        if not local_path(named.name).exists():  # a Hub id, perhaps with its revision
            repo_id, _, revision = named.name.partition("@")
            named = dataclasses.replace(named, name=repo_id, revision=named.revision or revision or None)
    tokenizer = _tokenizer(named, corpus)
    pretrained = pretrained and pretrained.with_tokenizer(tokenizer)
    config = model_config(recipe.model, tokenizer, pretrained, recipe.data.context_length)
    _refuse_unsaved(tokenizer, config)
    context_length = tokenizer.model_max_length = _context_length(recipe.data.context_length, config)
    stride = recipe.data.stride or context_length
    data = dataclasses.replace(recipe.data, context_length=context_length, stride=stride, separator=corpus.separated)
    datasets = {
        name: dataclasses.replace(text, separator=to_validate[text_of(name)].separated)
        for name, text in recipe.evaluation.datasets.items()
    }
    evaluation = dataclasses.replace(recipe.evaluation, datasets=datasets)
    fields = canonical_field_names(recipe.model.config, type(config))
    model = dataclasses.replace(recipe.model, config={**fields, "vocab_size": config.vocab_size})

    def windows(store: TokenStore, stride: int, **options: str) -> Windows:
        return Windows(store, context_length, stride, data.isolate_documents, **options)

    store = _tokenize(corpus, tokenizer)
    evaluated = {TRAINING: windows(store, context_length)}
    remedies = {VALIDATION: "raise data.validation_fraction"} if data.validation_fraction else {}
    for name, text in to_validate.items():
        remedy = remedies.get(name, "give more text to validate on")
        evaluated[name] = windows(_tokenize(text, tokenizer), context_length, remedy=remedy)
    return Data(
        recipe=dataclasses.replace(recipe, data=data, model=model, tokenizer=named, evaluation=evaluation),
        tokenizer=tokenizer,
        config=config,
        windows=windows(store, stride),
        evaluated=evaluated,
        pretrained=pretrained,
        notes=tuple(dict.fromkeys(note for text in (corpus, *to_validate.values()) for note in text.notes)),
    )


def load_texts(recipe: Recipe) -> tuple[Corpus, dict[str, Corpus]]:
    """The training corpus, and those to validate on by the names of the texts.

    Raises:
        UserError: as `load_corpora`.
    """
    corpus, validation = load_corpora(recipe.data)
    named = recipe.evaluation.datasets.items()
    further = {text_of(name): load_text(name, text, recipe.data, corpus) for name, text in named}
    return corpus, further if validation is None else {VALIDATION: validation, **further}


def _refuse_unsaved(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer that would be another one beside a model of this type.

    transformers loads that of a Qwen2 as a `Qwen2Tokenizer`, which splits text in its own way, whatever the files say.
    """
    if type(config) not in TOKENIZER_MAPPING:  # it is loaded as what its files say
        return
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        loaded = load_tokenizer(folder)
    if content_of(loaded) != content_of(tokenizer):
        kind = config.model_type
        what = f"transformers makes a {type(loaded).__name__} of every {kind} model's, with other tokens"
        raise UserError(f"tokenizer: {what}; use that of a {kind} model, or another type of model")


def _context_length(given: int | None, config: PreTrainedConfig) -> int:
    """How long windows are."""
    positions = num_positions(config)
    if given is None and (positions is None or positions > _LONGEST_WINDOW):
        limit = "any length" if positions is None else f"up to {positions:,} tokens"
        what = f"is missing: a {config.model_type} model takes texts of {limit}; say how long windows are to be"
        raise UserError(f"data.context_length: {what}, such as 1024")
    if given is not None and positions is not None and given > positions:
        raise UserError(f"data.context_length: {given:,}, and the model has {positions:,} positions")
    return given or positions


def batch_plan(recipe: Recipe, windows: Windows, num_processes: int = 1) -> BatchPlan:
    """Which windows each step of a recipe sees.

    Raises:
        UserError: the windows of a step cannot be dealt out evenly.
    """
    train = recipe.train
    at_once = train.batch_size * num_processes
    if train.batch_size * windows.context_length * _BYTES_OF_TOKEN > memory_of_machine():
        raise UserError(
            f"train.batch_size: the token ids of {train.batch_size:,} windows exceed this machine's memory"
        )
    accumulation = train.gradient_accumulation_steps or 1
    if train.global_batch_size is not None:
        accumulation, rest = divmod(train.global_batch_size, at_once)
        if rest or not accumulation:
            raise UserError(
                f"train.global_batch_size: {train.global_batch_size} windows are not {train.batch_size} at once"
                f" (train.batch_size) x {num_processes} processes, any number of times"
            )
    return BatchPlan(
        windows,
        train.batch_size,
        world_size=num_processes,
        accumulation=accumulation,
        seed=recipe.data_seed,
        shuffle=recipe.data.shuffle,
        drop_last=recipe.data.drop_last,
    )


def text_facts(windows: Windows) -> dict[str, Any]:
    """What is known of a text, for people and for `environment.json`."""
    store = windows.store
    return {
        "source": store.name,
        "characters": store.num_characters,
        "bytes": store.num_bytes,
        "documents": store.num_documents,
        "words": store.num_words,
        "tokens": store.num_tokens,
        "characters_per_token": round(store.characters_per_token, 4),
        "windows": len(windows),
    }


def _tokenizer(recipe: TokenizerRecipe, corpus: Corpus) -> PreTrainedTokenizerFast:
    if recipe.train is None:
        folder = local_path(recipe.name, "tokenizer.name")
        name = str(checkpoint.tokenizer_folder(folder)) if folder.is_dir() else recipe.name
        return load_tokenizer(name, revision=recipe.revision)
    # Trained once for a corpus and a size, by the first process that asks, and kept beside the token stores.
    how, padding = recipe.train, f"-{digest(recipe.train.pad_token)[:16]}" if recipe.train.pad_token else ""
    folder = cache_folder() / "tokenizers" / f"bpe-1-{how.vocab_size}-{corpus.identity}{padding}"

    def make() -> None:
        with replacing_directory(folder) as directory:
            save_tokenizer(train_tokenizer(_texts(corpus), how.vocab_size, how.pad_token), directory)
            seal(directory, folder.name)

    kept(folder, folder.name, make)
    return load_tokenizer(str(folder))


def text_of_run(recipe: Recipe, name: str | None) -> tuple[Corpus, PreTrainedTokenizerFast, TokenStore]:
    """The training text of a run's own recipe, in which nothing is left open; `name` is what the run calls its store.

    Raises:
        UserError: the text or the tokenizer is not there, or no longer what it was.
    """
    corpus, _ = load_corpora(recipe.data)
    tokenizer = _tokenizer(recipe.tokenizer, corpus)
    if store_name(corpus, tokenizer) != name:
        raise UserError(
            f"{corpus.name}: is no longer the text that the run was trained on: files of the corpus or the tokenizer"
            " have changed since, or an earlier version read them otherwise; put back what it began with"
        )
    return corpus, tokenizer, _tokenize(corpus, tokenizer)


def _tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> TokenStore:
    with WorkProgress(f"tokenising {corpus.name}") as progress:
        return tokenize(corpus, tokenizer, progress=progress)


def _texts(corpus: Corpus) -> Iterator[str]:
    """The text of a corpus, piece by piece, without the marks between its documents."""
    return (piece for piece in corpus.pieces() if piece)
