r"""Where text comes from: files, folders, datasets on disk and on the Hub, each as a stream of text.

The one idea: a :class:`Corpus` is a stream of pieces of text that is identified by its *content*. Its `identity` is a
hash of what the stream will give. Whatever is made from a corpus (the token store) is kept under that name, and found
again from another path or on another machine. Text is never normalised: a lone carriage return, a byte order mark or a
written `<|endoftext|>` reach the tokenizer unchanged.

Tables (jsonl, parquet, csv, dataset folders, the Hub) are read through `datasets`. Local ones are streamed: the token
store is already the copy worth keeping. Plain text is read here, because `datasets` opens it with universal newlines
and would turn "\r\n" into "\n". The price of identity by content: a new local file is read twice, to be hashed (about
1 GB/s) and to be tokenised.

Tokens belong to token_store.py. `datasets` takes two seconds to import, so it is imported only when a table is named.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..recipe import DataRecipe
from ..storage import local_path
from .cache import cache_get, cache_put, digest
from .files import (
    EMPTY,
    KINDS,
    check_unchanged,
    content_hash,
    file_stamp,
    is_compressed,
    kind_of,
    read_text,
)
from .tables import are_lines, csv_options, one_line, text_rows

Pieces = Iterator[str | None]
"""Text in order; None ends a document. A document has any number of pieces."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One split of one source.

    - `name`: for people.
    - `identity`: a hash of the content of the stream, and of nothing else.
    - `separated`: whether its documents are joined with the separator. False: the stream is one text.
    - `pieces()`: streams the text.
    - `has_characters(number)`: whether so many characters may be those of the stream.
    - `origin`: where to find it again, without a local path. For files: the names and SHA-256 hashes (of the
      decompressed content) of the first `files` and their number, `num_files`. On the Hub: `dataset`, `config`,
      `split` and `revision`. Or `builtin`. If the corpus is a part of that: which `part`.
    """

    name: str
    identity: str
    separated: bool
    pieces: Callable[[], Pieces] = dataclasses.field(repr=False, compare=False)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    has_characters: Callable[[int], bool] = dataclasses.field(default=lambda number: True, repr=False, compare=False)


def load_corpora(recipe: DataRecipe) -> tuple[Corpus, Corpus | None]:
    """The training corpus and, where the recipe asks for one, the validation corpus.

    Raises:
        UserError: a source is missing, empty, not UTF-8, malformed or not reachable, or has no such split,
            configuration or column.
    """
    source = _open_source(recipe.source, recipe)
    training = source.corpus(recipe.train_split, "data.train_split", recipe.separator)
    validation = None
    if recipe.validation_source:
        other = _open_source(recipe.validation_source, recipe)
        split = recipe.validation_split or (other.splits[0] if len(other.splits) == 1 else "validation")
        validation = other.corpus(split, "data.validation_split", recipe.separator)
    elif recipe.validation_split:
        # Two splits of one source are the same kind of text: both have separators, or none.
        validation = source.corpus(recipe.validation_split, "data.validation_split", training.separated)
    if recipe.drop_blank_lines:
        training = without_blank_lines(training)
        validation = validation and without_blank_lines(validation)
    if recipe.validation_fraction:
        training, validation = split_by_characters(training, recipe.validation_fraction)
    return training, validation


def without_blank_lines(corpus: Corpus) -> Corpus:
    r"""The corpus without the lines (ended by "\n") that hold no visible character."""

    def pieces() -> Pieces:
        # Whitespace at the start of a line is held back until a visible character or the end of the line comes.
        held, visible = "", False
        for piece in corpus.pieces():
            kept = []
            for part in _PARTS_OF_LINES.findall(piece or ""):
                held += part
                if visible or held.strip():
                    kept.append(held)
                    held, visible = "", True
                if part.endswith("\n"):
                    held, visible = "", False
            if kept:
                yield "".join(kept)
            if piece is None:
                held, visible = "", False
                yield None

    name, identity = f"{corpus.name} without blank lines", digest("blank", corpus.identity)
    return Corpus(name, identity, corpus.separated, pieces, corpus.origin)


def split_by_characters(corpus: Corpus, fraction: float) -> tuple[Corpus, Corpus]:
    """Training and validation text: validation is the last `fraction` of the characters, as in the book.

    The first `int((1 - fraction) * num_characters)` characters train, also where that ends inside a document.
    """

    def num_characters(first: bool) -> int:
        total = _num_characters(corpus)
        cut = int((1 - fraction) * total)
        return cut if first else total - cut

    def part(first: bool) -> Pieces:
        left = num_characters(first=True)
        for piece in corpus.pieces():
            size = 0 if piece is None else len(piece)
            if first and left > 0:
                yield piece[:left] if piece else piece
            elif first:
                return
            elif size > left:
                yield piece[left:]
            elif piece is None and left <= 0:
                yield piece
            left = max(0, left - size)

    def corpus_of(first: bool, name: str) -> Corpus:
        identity = digest("cut", corpus.identity, repr(fraction), name)
        share = f"the first {100 * (1 - fraction):.4g}%" if first else f"the last {100 * fraction:.4g}%"
        origin = {**corpus.origin, "part": f"{share} of its characters"}
        return Corpus(
            f"{corpus.name} ({name} text)",
            identity,
            corpus.separated,
            partial(part, first),
            origin,
            lambda number: number == num_characters(first),
        )

    return corpus_of(True, "training"), corpus_of(False, "validation")


# Sources ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source that exists: the names of its splits, and a function (split, separator) that makes a corpus."""

    name: str
    splits: Sequence[str]
    make: Callable[[str, Any], Corpus]

    def corpus(self, split: str, field: str, separator: Any) -> Corpus:
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has: {', '.join(self.splits)}", field=field)
        return self.make(split, separator)


def _open_source(source: str, recipe: DataRecipe) -> _Source:
    if source.startswith("builtin:"):
        return _builtin(source)
    path = local_path(source)
    if path.is_dir():
        return _folder(source, path, recipe)
    if path.exists():
        return _files(source, {"train": [path]}, recipe)
    if glob.has_magic(source):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not found:
            raise UserError(f"data: no file matches {source!r}")
        return _files(source, {"train": found}, recipe)
    # The network is asked only for what looks like OWNER/NAME.
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) or kind_of(path) or is_compressed(path):
        raise UserError(f"{source}: no such file or folder (a dataset on the Hub is named OWNER/NAME)")
    return _hub(source, recipe)


def _builtin(source: str) -> _Source:
    """The documentation topics that come with CPython. Their text differs between Python versions."""
    if source != "builtin:python-docs":
        raise UserError(f"data.source: there is no {source!r}; the built-in corpus is builtin:python-docs")

    def make(split: str, separator: Any) -> Corpus:
        from pydoc_data.topics import topics

        documents = [topics[name] for name in sorted(topics)]
        content = ["documents", *documents]
        pieces = partial(chain.from_iterable, [(document, None) for document in documents])
        return _corpus(source, content, separator is not False, pieces, {"builtin": source})

    return _Source(source, ["train"], make)


def _folder(source: str, folder: Path, recipe: DataRecipe) -> _Source:
    """A folder: written by `save_to_disk`, a dataset with a card, or simply files."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_to_disk(source, folder, recipe)
    card = folder / "README.md"
    if card.is_file() and re.match(rb"---\s.*?^(configs|dataset_info):", card.read_bytes(), re.S | re.M):
        return _dataset_folder(source, folder, recipe)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and kind_of(p) and p.stem.lower() not in _ABOUT)
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if not files:
        raise UserError(f"{source}: holds no {', '.join(KINDS)} file; a glob such as '{source}/*' takes others")
    # Once one file names a split, `datasets` leaves out the files that name none, which loses books. Here a folder
    # has splits only if every file names one.
    named = [_SPLIT_IN_NAME.search(str(p.relative_to(folder)).lower()) for p in files]
    splits: dict[str, list[Path]] = {}
    for path, match in zip(files, named):
        splits.setdefault(_SPLITS[match[1]] if all(named) else "train", []).append(path)
    return _files(source, splits, recipe)


def _files(source: str, splits: dict[str, list[Path]], recipe: DataRecipe) -> _Source:
    """Files of one kind. A file of unknown kind that was named is plain text."""
    kinds = {kind_of(path) or "text" for paths in splits.values() for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{source}: holds files of several kinds ({', '.join(sorted(kinds))}); choose with a glob")
    (kind,) = kinds

    def make(split: str, separator: Any) -> Corpus:
        paths, name = splits[split], _name(source, split, splits)
        if kind == "text":
            return _text_corpus(name, paths, separator)

        def table(paths: Sequence[Path]) -> Any:
            from datasets import load_dataset_builder

            options = csv_options(paths[0], recipe.text_column) if kind == "csv" else {}
            builder = load_dataset_builder(kind, data_files={"train": [str(p) for p in paths]}, **options)
            return builder.as_streaming_dataset(split="train")

        tables = [(name, partial(table, paths))]
        if kind == "csv" and len(paths) > 1:  # each has its own header, in its own order
            tables = [(str(path), partial(table, [path])) for path in paths]
        return _table_corpus(name, tables, recipe.text_column, separator, kind, paths)

    return _Source(source, list(splits), make)


def _dataset_folder(source: str, folder: Path, recipe: DataRecipe) -> _Source:
    """A local folder that `datasets` knows how to read."""
    builder = _builder(source, f"{source}: cannot be read as a dataset", recipe.config, None)
    files = {str(split): [Path(p) for p in paths] for split, paths in builder.config.data_files.items()}

    def make(split: str, separator: Any) -> Corpus:
        name = _name(source, split, files, builder.config.name)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind == "text":
            return _text_corpus(name, files[split], separator)
        tables = [(name, partial(builder.as_streaming_dataset, split=split))]
        return _table_corpus(name, tables, recipe.text_column, separator, kind, files[split])

    return _Source(source, list(files), make)


def _saved_to_disk(source: str, folder: Path, recipe: DataRecipe) -> _Source:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    from datasets import Dataset, load_from_disk

    with one_line(f"{source}: cannot be read as what save_to_disk writes"):
        loaded = load_from_disk(str(folder))
    splits = {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)

    def make(split: str, separator: Any) -> Corpus:
        files = [Path(f["filename"]) for f in splits[split].cache_files]
        name = _name(source, split, splits)
        tables = [(name, lambda: splits[split])]
        return _table_corpus(name, tables, recipe.text_column, separator, "arrow", files)

    return _Source(source, list(splits), make)


def _hub(source: str, recipe: DataRecipe) -> _Source:
    """A dataset on the Hub, or the copy of it that `datasets` keeps. Its identity is its commit; nothing is read.

    With `data.streaming` the same rows are read in the same order while they arrive, and no copy is kept.
    """
    problem = (
        f"{source}: no such file or folder, and it cannot be loaded as a dataset from the Hub (is the name right, is "
        "there a network, is HF_HUB_OFFLINE set?)"
    )
    builder = _builder(source, problem, recipe.config, recipe.revision)
    splits = [str(split) for split in builder.config.data_files or builder.info.splits or ()]

    def make(split: str, separator: Any) -> Corpus:
        def table() -> Any:
            if recipe.streaming:
                return builder.as_streaming_dataset(split=split)
            builder.download_and_prepare()
            return builder.as_dataset(split=split)

        commit = digest("hub", source, builder.config.name, str(builder.hash), split)
        name = _name(source, split, splits, builder.config.name)
        corpus = _table_corpus(name, [(name, table)], recipe.text_column, separator, commit)
        config = builder.config.name if builder.config.name != "default" else None
        commit = builder.hash if re.fullmatch("[0-9a-f]{40}", str(builder.hash)) else recipe.revision
        origin = {"dataset": source, "config": config, "split": split, "revision": commit}
        return dataclasses.replace(corpus, origin=origin)

    return _Source(source, splits, make)


def _builder(source: str, problem: str, config: str | None, revision: str | None) -> Any:
    from datasets import get_dataset_config_names, load_dataset_builder

    path = str(local_path(source))
    with one_line(problem):
        try:
            return load_dataset_builder(path, config, revision=revision)
        except ValueError:
            names = get_dataset_config_names(path, revision=revision)
            if config in names or (config is None and len(names) == 1):
                raise
            found = f"has no configuration {config!r}" if config else "has several configurations"
            raise UserError(f"{source} {found}; it has: {', '.join(names)}", field="data.config") from None


def _name(source: str, split: str, splits: Iterable[str], config: str = "default") -> str:
    """`wikitext (wikitext-2-v1, test)`; `the-verdict.txt`."""
    inside = [config] * (config != "default") + [split] * (list(splits) != ["train"])
    base = source if re.fullmatch(r"[^/]+/[^/]+", source) and not Path(source).exists() else Path(source).name
    return f"{base} ({', '.join(inside)})" if inside else base


def _corpus(
    name: str, content: Sequence[str], separated: bool, documents: Callable[[], Pieces], origin: Mapping[str, Any]
) -> Corpus:
    """A corpus of documents, or of one text if they are not `separated`. `content` identifies them."""

    def pieces() -> Pieces:
        return (piece for piece in documents() if separated or piece is not None)

    return Corpus(name, digest(*content, str(separated)), separated, pieces, origin)


# Plain text ---------------------------------------------------------------------------------------------------------


def _text_corpus(name: str, paths: Sequence[Path], separator: Any) -> Corpus:
    """Files of plain text. Each is one document: a folder of books."""
    stamps, hashes = _stamps_and_hashes(name, paths, is_text=True)

    def texts() -> Pieces:
        for path, stamp in zip(paths, stamps):
            yield from read_text(path)
            check_unchanged([path], [stamp])
            yield None

    return _corpus(name, ["documents", *hashes], separator is not False, texts, _of_files(paths, hashes))


# Tables -------------------------------------------------------------------------------------------------------------


def _table_corpus(
    name: str,
    tables: Sequence[tuple[str, Callable[[], Any]]],
    wanted: str | None,
    separator: Any,
    content: str,
    paths: Sequence[Path] = (),
) -> Corpus:
    """The rows of the text column of `tables`, one table after the other.

    A table is a name for people and a function that opens it. `content` is the kind of the files in `paths`; without
    `paths` it identifies the content. With `separator: auto` rows are documents, unless the first 1000 are lines of
    one text (`are_lines`).
    """
    stamps, hashes = _stamps_and_hashes(name, paths, is_text=content in ("json", "csv"))
    json_files = paths if content == "json" else ()
    content = digest(content, *hashes)

    def rows(column: str | None) -> Iterator[tuple[str, str]]:
        for place, open_table in tables:
            with one_line(f"{place}: cannot be read", paths):
                for found, text in text_rows(place, open_table(), column, json_files):
                    column = found  # the same in every table
                    yield column, text
        check_unchanged(paths, stamps)

    key = digest("table", content, str(wanted))
    facts = cache_get(key)
    if facts is None:
        first = list(islice(rows(wanted), 1000))
        if not first:
            raise UserError(f"{name}: empty; there is nothing to train on")
        facts = {"column": first[0][0], "lines": are_lines([text for _, text in first])}
        cache_put(key, facts)

    def texts() -> Pieces:
        for _, text in rows(facts["column"]):
            yield text
            yield None

    separated = not facts["lines"] if separator == "auto" else bool(separator)
    return _corpus(name, ["table", content, facts["column"]], separated, texts, _of_files(paths, hashes))


def _stamps_and_hashes(name: str, paths: Sequence[Path], is_text: bool) -> tuple[list[list[int]], list[str]]:
    stamps = [file_stamp(path) for path in paths]
    hashes = [content_hash(path, is_text) for path in paths]
    if paths and all(found == EMPTY for found in hashes):
        raise UserError(f"{paths[0] if len(paths) == 1 else name}: empty; there is nothing to train on")
    return stamps, hashes


def _of_files(paths: Sequence[Path], hashes: Sequence[str], num_named: int = 8) -> dict[str, Any]:
    """`Corpus.origin` of local files. A person can compare a few hashes, not thousands."""
    files = [[path.name, sha256] for path, sha256 in zip(paths[:num_named], hashes)]
    return {"files": files, "num_files": len(paths)}


_ABOUT = ("readme", "license", "licence")  # files about a folder's text
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|dev|test|eval)(?:ing|id|idation|uation|elopment)?(?![a-z])")
_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "test": "test", "eval": "test"}
_PARTS_OF_LINES = re.compile(r"[^\n]*\n|[^\n]+")


def _num_characters(corpus: Corpus) -> int:
    key = digest("characters", corpus.identity)
    known = cache_get(key)
    if known is None:
        known = {"characters": sum(len(piece) for piece in corpus.pieces() if piece)}
        cache_put(key, known)
    return known["characters"]
