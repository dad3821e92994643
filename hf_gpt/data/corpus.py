r"""Where text comes from: files, folders, datasets on disk and on the Hub, all as one kind of stream.

The one idea: a :class:`Corpus` is a stream of pieces of text known by its *content*. Its `identity` is a hash of what
the stream will give, found without reading the text a second time, so that whatever is made from a corpus (the token
store) can be kept under that name and found again, from another path or another machine. Text is normalised nowhere:
a lone carriage return, a byte order mark or `<|endoftext|>` written out all reach the tokenizer as they are.

Tables (jsonl, parquet, csv, dataset folders, the Hub) are read through `datasets`; local ones are streamed, since the
token store is already the copy worth keeping. Plain text is read here, because `datasets` opens it with universal
newlines and would turn "\r\n" into "\n". The price of identity by content is that a new local file is read twice, once
to be hashed (about 1 GB/s) and checked for UTF-8, once to be tokenised; an unchanged one is recognised by its size,
times and inode and not opened at all.

Tokens are tokens.py's; the `datasets` import takes two seconds and waits until a table is named.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..recipe import DataRecipe
from .files import (
    EMPTY,
    KINDS,
    cache_get,
    cache_put,
    check_unchanged,
    content_hash,
    digest,
    file_stamp,
    is_compressed,
    kind_of,
    read_text,
)
from .tables import are_lines, csv_options, one_line, text_rows

Pieces = Iterator[str | None]
"""Text in order; None ends a document. A document comes in any number of pieces."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One split of one source.

    `name` is what a person would call it; `identity` hashes the content of the stream and nothing else; `separated`
    says whether its documents are to be joined with `<|endoftext|>` (False: it is one text). `pieces()` streams it.
    `origin` says where to find it again, without a local path: the first of its `files` by name and SHA-256 of their
    (decompressed) content and how many there are (`num_files`), or `dataset`, `config`, `split` and `revision` on the
    Hub, or `builtin`; and the `part` that `cut` took of it.
    """

    name: str
    identity: str
    separated: bool
    pieces: Callable[[], Pieces] = dataclasses.field(repr=False, compare=False)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)


def load_corpora(recipe: DataRecipe) -> tuple[Corpus, Corpus | None]:
    """The training corpus and, where the recipe asks for one, the validation corpus.

    Raises :class:`UserError` for everything about a source that cannot work: missing, empty, not UTF-8, malformed,
    no such split, configuration or column, not reachable.
    """
    source = _open_source(recipe.source, recipe)
    training = source.corpus(recipe.train_split, "data.train_split", recipe.separator)
    validation = None
    if recipe.validation_source:
        other = _open_source(recipe.validation_source, recipe)
        split = recipe.validation_split or (other.splits[0] if len(other.splits) == 1 else "validation")
        validation = other.corpus(split, "data.validation_split", recipe.separator)
    elif recipe.validation_split:
        # Two splits of one source are the same kind of text: what was found out about one holds for the other.
        validation = source.corpus(recipe.validation_split, "data.validation_split", training.separated)
    if recipe.drop_blank_lines:
        training = without_blank_lines(training)
        validation = validation and without_blank_lines(validation)
    if recipe.validation_fraction:
        training, validation = cut(training, recipe.validation_fraction)
    return training, validation


def without_blank_lines(corpus: Corpus) -> Corpus:
    r"""The corpus without its lines (ended by "\n") that hold no visible character."""

    def pieces() -> Pieces:
        # White space at the start of a line is held back until the line shows a visible character or ends.
        held, visible = "", False
        for piece in corpus.pieces():
            if piece is None:
                held, visible = "", False
                yield None
                continue
            head = ""
            if visible:
                line_end = piece.find("\n") + 1 or len(piece)
                head, piece = piece[:line_end], piece[line_end:]
                visible = not head.endswith("\n")
            text = held + piece
            last_line = text.rfind("\n") + 1
            text, held = _BLANK_LINE.sub("", text[:last_line]), text[last_line:]
            if held.strip():
                text, held, visible = text + held, "", True
            if head or text:
                yield head + text

    name, identity = f"{corpus.name} without blank lines", digest("blank", corpus.identity)
    return Corpus(name, identity, corpus.separated, pieces, corpus.origin)


def cut(corpus: Corpus, fraction: float) -> tuple[Corpus, Corpus]:
    """Training and validation text: the last `fraction` of the characters is cut off, as the book cuts it.

    `int((1 - fraction) * num_characters)` characters train, wherever in a document that falls.
    """

    def part(first: bool) -> Pieces:
        left = int((1 - fraction) * _num_characters(corpus))
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
        return Corpus(f"{corpus.name} ({name} text)", identity, corpus.separated, partial(part, first), origin)

    return corpus_of(True, "training"), corpus_of(False, "validation")


# Sources ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source that was found: the names of its splits, and how to make a corpus of one (split, separator)."""

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
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(source, path, recipe)
    if path.exists():
        return _files(source, {"train": [path]}, recipe)
    if glob.has_magic(source):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not found:
            raise UserError(f"data: no file matches {source!r}")
        return _files(source, {"train": found}, recipe)
    # Only what looks like OWNER/NAME is ever asked of the network.
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) or kind_of(path) or is_compressed(path):
        raise UserError(f"{source}: no such file or folder (a dataset on the Hub is named OWNER/NAME)")
    return _hub(source, recipe)


def _builtin(source: str) -> _Source:
    """The documentation topics every CPython carries; their text differs between Python versions."""
    if source != "builtin:python-docs":
        raise UserError(f"data.source: there is no {source!r}; the built-in corpus is builtin:python-docs")

    def make(split: str, separator: Any) -> Corpus:
        from pydoc_data.topics import topics

        documents, separated = [topics[name] for name in sorted(topics)], separator is not False
        identity = digest("documents", *documents, str(separated))

        def pieces() -> Pieces:
            return _stream(chain(*zip(documents, repeat(None))), separated)

        return Corpus(source, identity, separated, pieces, {"builtin": source})

    return _Source(source, ["train"], make)


def _folder(source: str, folder: Path, recipe: DataRecipe) -> _Source:
    """A folder: what `save_to_disk` wrote, a dataset with a card, or simply files."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_to_disk(source, folder, recipe)
    card = folder / "README.md"
    has_card = card.is_file() and re.match(rb"---\s.*?^(configs|dataset_info):", card.read_bytes(), re.S | re.M)
    if has_card:
        return _dataset_folder(source, folder, recipe)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and kind_of(p) and p.stem.lower() not in _ABOUT)
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if not files:
        raise UserError(f"{source}: holds no {', '.join(KINDS)} file; a glob such as '{source}/*' takes others")
    # `datasets` leaves out files whose name matches no split once one does, which loses books; here a folder has
    # splits only when every file names one.
    named = [_SPLIT_IN_NAME.search(str(p.relative_to(folder)).lower()) for p in files]
    splits: dict[str, list[Path]] = {}
    for path, match in zip(files, named):
        split = (
            {"train": "train", "test": "test", "eval": "test"}.get(match[1], "validation") if all(named) else "train"
        )
        splits.setdefault(split, []).append(path)
    return _files(source, splits, recipe)


def _files(source: str, splits: dict[str, list[Path]], recipe: DataRecipe) -> _Source:
    """Files of one kind. A file of unknown kind that was asked for by name is plain text."""
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
        if kind == "csv" and len(paths) > 1:  # each has a header of its own, in an order of its own
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
    """A dataset on the Hub, or the copy of it that `datasets` keeps; known by its commit, not by reading it.

    With `data.streaming` it is read as it arrives and no copy is kept: the same rows in the same order.
    """
    problem = (
        f"{source}: no such file or folder, and as a dataset on the Hub it cannot be had (is the name right, is there "
        "a network, is HF_HUB_OFFLINE set?)"
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

    path = os.path.expanduser(source)
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


# Plain text ---------------------------------------------------------------------------------------------------------


def _text_corpus(name: str, paths: Sequence[Path], separator: Any) -> Corpus:
    """Files of plain text, each one document: a folder of books."""
    stamps = [file_stamp(path) for path in paths]
    hashes = [content_hash(path, is_text=True) for path in paths]
    if all(found == EMPTY for found in hashes):
        raise UserError(f"{paths[0] if len(paths) == 1 else name}: empty; there is nothing to train on")

    def texts() -> Pieces:
        for path, stamp in zip(paths, stamps):
            yield from read_text(path)
            check_unchanged([path], [stamp])
            yield None

    separated = separator is not False
    identity = digest("documents", *hashes, str(separated))
    return Corpus(name, identity, separated, lambda: _stream(texts(), separated), _of_files(paths, hashes))


def _stream(texts: Iterable[str | None], separated: bool) -> Pieces:
    """`texts` as they are; when they are documents, with the end of each marked."""
    for text in texts:
        if separated or text is not None:
            yield text


# Tables -------------------------------------------------------------------------------------------------------------


def _table_corpus(
    name: str,
    tables: Sequence[tuple[str, Callable[[], Any]]],
    wanted: str | None,
    separator: Any,
    content: str,
    paths: Sequence[Path] = (),
) -> Corpus:
    """The rows of a text column of `tables`, one after the other: what each is called, and how to open it.

    `content` is the kind of the files in `paths`, or what stands for their hashes.
    With `separator: auto` rows are documents unless the first 1000 of them are lines of one text (`are_lines`).
    """
    stamps = [file_stamp(path) for path in paths]
    json_files = paths if content == "json" else ()
    hashes = [content_hash(path, is_text=content in ("json", "csv")) for path in paths]
    if paths and all(found == EMPTY for found in hashes):
        raise UserError(f"{paths[0] if len(paths) == 1 else name}: empty; there is nothing to train on")
    content = digest(content, *hashes)

    def rows(column: str | None) -> Iterator[tuple[str, str]]:
        for place, open_table in tables:
            with one_line(f"{place}: cannot be read", paths):
                for found, text in text_rows(place, open_table(), column, json_files):
                    column = found  # in every table the same
                    yield column, text
        check_unchanged(paths, stamps)

    note = digest("table", content, str(wanted))
    facts = cache_get(note)
    if facts is None:
        first = list(islice(rows(wanted), 1000))
        if not first:
            raise UserError(f"{name}: empty; there is nothing to train on")
        facts = {"column": first[0][0], "lines": are_lines([text for _, text in first])}
        cache_put(note, facts)

    def texts() -> Pieces:
        for _, text in rows(facts["column"]):
            yield text
            yield None

    separated = not facts["lines"] if separator == "auto" else bool(separator)
    identity = digest("table", content, facts["column"], str(separated))
    return Corpus(name, identity, separated, lambda: _stream(texts(), separated), _of_files(paths, hashes))


def _of_files(paths: Sequence[Path], hashes: Sequence[str], num_named: int = 8) -> dict[str, Any]:
    """What `Corpus.origin` says of local files: a person can compare a few hashes, not thousands."""
    files = [[path.name, sha256] for path, sha256 in zip(paths[:num_named], hashes)]
    return {"files": files, "num_files": len(paths)}


_ABOUT = ("readme", "license", "licence")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|dev|test|eval)(?:ing|id|idation|uation|elopment)?(?![a-z])")
_BLANK_LINE = re.compile(r"^[^\S\n]*\n", re.M)


def _num_characters(corpus: Corpus) -> int:
    note = digest("characters", corpus.identity)
    known = cache_get(note)
    if known is None:
        known = {"characters": sum(len(piece) for piece in corpus.pieces() if piece)}
        cache_put(note, known)
    return known["characters"]
