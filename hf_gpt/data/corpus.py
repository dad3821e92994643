r"""Where text comes from: files, folders, datasets on disk and on the Hub, each as a stream of text.

The one idea: a :class:`Corpus` is a stream of pieces of text that is identified by its *content*. Its `identity` is a
hash of what the stream will give. Whatever is made from a corpus (the token store) is kept under that name, and found
again from another path or on another machine. Text is never normalised: a lone carriage return or a written
`<|endoftext|>` reach the tokenizer unchanged.

Which files a source has is found in listing.py, or on the Hub in hub_dataset.py, and the rows of tables are read in
tables.py. No copy is made of a local file: the token store is the one worth keeping. The price of
identity by content: a new local file is read twice, to be hashed (about 1 GB/s) and to be tokenised.

Tokens belong to token_store.py.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..recipe import DataRecipe, TextRecipe
from ..storage import local_path
from .cache import cache_get, cache_put, digest
from .files import (
    EMPTY,
    check_unchanged,
    content_hash,
    file_stamp,
    is_compressed,
    kind_of,
    open_bytes,
    read_text,
)
from .hub_dataset import find_dataset
from .listing import Listing, list_path, once
from .tables import Table, are_lines, text_column, texts

Pieces = Iterator[str | None]
"""Text in order; None ends a document. A document has any number of pieces."""

Place = tuple[int, int]
"""Where a document stands: the number of its file, and of its row in that file, or -1 where a file is a document."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One split of one source.

    - `name`: for people.
    - `identity`: a hash of the content of the stream, and of nothing else.
    - `separated`: whether its documents are joined with the separator. False: the stream is one text.
    - `pieces()`: streams the text.
    - `documents()`: streams it with each document's place after it, also where documents are joined, and to the end
      where only the first part is trained on. None where lines of a joined text were left out, and its rows with them.
    - `file_names`: what the numbers of files in places mean.
    - `has_characters(number)`: whether so many characters may be those of the stream.
    - `origin`: where to find it again, without a local path. For files: the names and SHA-256 hashes (of the
      decompressed content) of the first `files` and their number, `num_files`. On the Hub: `dataset`, `config`,
      `split` and `revision`. Or `builtin`. Of several sources, not all of files: that of each, in `sources`. If the
      corpus is a part of that: which `part`.
    - `notes`: what a person might have expected to be read and is not, a line each.
    - `files`: those of them that are here.
    """

    name: str
    identity: str
    separated: bool
    pieces: Callable[[], Pieces] = dataclasses.field(repr=False, compare=False)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    has_characters: Callable[[int], bool] = dataclasses.field(default=lambda number: True, repr=False, compare=False)
    documents: Callable[[], Iterator[str | Place]] | None = dataclasses.field(default=None, repr=False, compare=False)
    file_names: Sequence[str] = dataclasses.field(default=(), repr=False, compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    files: Sequence[Path] = dataclasses.field(default=(), repr=False, compare=False)


def load_corpora(recipe: DataRecipe) -> tuple[Corpus, Corpus | None]:
    """The training corpus and, where the recipe asks for one, the validation corpus.

    Raises:
        UserError: a source is missing, empty, not UTF-8, malformed or not reachable, or has no such split,
            configuration or column.
    """
    source = _open_source(recipe.source, recipe)
    other = _open_source(recipe.validation_source, recipe) if recipe.validation_source else source
    _refuse_untaken(recipe, source.name, source.takes | other.takes)
    training = source.corpus(recipe.train_split, "data.train_split", recipe.separator)
    validation = None
    if other is not source:
        split = recipe.validation_split or other.validation_split
        validation = other.corpus(split, "data.validation_split", recipe.separator)
        validation = _compared(validation, training, "data.validation_source")
    elif recipe.validation_split:
        # Two splits of one source are the same kind of text: both have separators, or none.
        validation = source.corpus(recipe.validation_split, "data.validation_split", training.separated)
    if recipe.drop_blank_lines:
        training = without_blank_lines(training)
        validation = validation and without_blank_lines(validation)
    if recipe.validation_fraction:
        training, validation = split_by_characters(training, recipe.validation_fraction)
    return training, validation


def load_text(name: str, recipe: TextRecipe, data: DataRecipe, training: Corpus) -> Corpus:
    """The text that `evaluation.datasets` calls `name`, for a run that trains on `training` as `data` says.

    Raises:
        UserError: as `load_corpora`.
    """
    field = f"evaluation.datasets.{name}"
    how = {key: getattr(recipe, key) for key in _OF_SOME}
    like = dataclasses.replace(data, source=recipe.source, validation_source=None, validation_split=None, **how)
    try:
        source = _open_source(recipe.source, like)
        _refuse_untaken(like, source.name, source.takes)
        corpus = source.corpus(recipe.split or source.validation_split, "data.split", recipe.separator)
    except UserError as error:
        part = (error.field or "data.source").removeprefix("data.")
        raise UserError(error.message, field=f"{field}.{part}", value=error.value) from None
    corpus = without_blank_lines(corpus) if data.drop_blank_lines else corpus
    return _compared(corpus, training, field)


def _refuse_untaken(recipe: DataRecipe, name: str, takes: Set[str]) -> None:
    for field, things in _OF_SOME.items():
        if getattr(recipe, field) is not None and field not in takes:
            raise UserError(f"{name} has no {things}", field=f"data.{field}")


def _compared(corpus: Corpus, training: Corpus, field: str) -> Corpus:
    """A text to evaluate, which notes the files that are trained on too."""
    _, again = once([*training.files, *corpus.files])
    both = tuple(f"{field}: {name} is also trained on" for name in again)
    return dataclasses.replace(corpus, notes=(*corpus.notes, *both))


def without_blank_lines(corpus: Corpus) -> Corpus:
    r"""The corpus without the lines (ended by "\n") that hold no visible character."""

    def shortened(stream: Callable[[], Iterator[str | Place | None]]) -> Iterator[str | Place | None]:
        # Whitespace at the start of a line is held back until a visible character or the end of the line comes.
        held, visible = "", False
        for piece in stream():
            kept = []
            for part in _PARTS_OF_LINES.findall(piece) if isinstance(piece, str) else ():
                held += part
                if visible or held.strip():
                    kept.append(held)
                    held, visible = "", True
                if part.endswith("\n"):
                    held, visible = "", False
            if kept:
                yield "".join(kept)
            if not isinstance(piece, str):
                held, visible = "", False
                yield piece

    name, identity = f"{corpus.name} without blank lines", digest("blank", corpus.identity)
    streams = {"pieces": partial(shortened, corpus.pieces), "documents": None}
    if corpus.separated and corpus.documents is not None:
        streams["documents"] = partial(shortened, corpus.documents)
    return dataclasses.replace(corpus, name=name, identity=identity, **streams)


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
        return dataclasses.replace(
            corpus,
            name=f"{corpus.name} ({name} text)",
            identity=identity,
            pieces=partial(part, first),
            origin=origin,
            documents=corpus.documents if first else None,
            has_characters=lambda number: number == num_characters(first),
        )

    return corpus_of(True, "training"), corpus_of(False, "validation")


_OF_SOME = {"config": "configurations", "revision": "revisions", "text_column": "columns: it is plain text"}


# Sources ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source that exists.

    Its splits, a function (split, separator) that makes a corpus, its files here, and which fields of `_OF_SOME` it
    takes.
    """

    name: str
    splits: Sequence[str]
    make: Callable[[str, Any], Corpus]
    files: Mapping[str, Sequence[Path]] = dataclasses.field(default_factory=dict)
    takes: frozenset[str] = frozenset()

    @property
    def validation_split(self) -> str:
        """The one to validate on unless another is named."""
        return self.splits[0] if len(self.splits) == 1 else "validation"

    def corpus(self, split: str, field: str, separator: Any) -> Corpus:
        if split not in self.splits:
            raise UserError(f"{self.name} has no split '{split}'; it has: {', '.join(self.splits)}", field=field)
        return dataclasses.replace(self.make(split, separator), files=self.files.get(split, ()))


def _open_source(source: str | Sequence[str], recipe: DataRecipe) -> _Source:
    if not isinstance(source, str):
        return _joined([_open_source(one, recipe) for one in source])
    if source.startswith("builtin:"):
        return _builtin(source)
    path = local_path(source)
    if (listing := list_path(source, path, recipe.config)) is not None:
        return _local(source, listing, recipe)
    # The network is asked only for what looks like OWNER/NAME.
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) or kind_of(path) or is_compressed(path):
        raise UserError(f"{source}: no such file or folder (a dataset on the Hub is named OWNER/NAME)")
    return _hub(source, recipe)


def _joined(sources: Sequence[_Source]) -> _Source:
    """Sources one after the other, each read as what it is."""
    if len(sources) == 1:
        return sources[0]
    splits = [split for split in sources[0].splits if all(split in other.splits for other in sources)]

    def make(split: str, separator: Any) -> Corpus:
        _, again = once(files_of[split])
        if again:
            raise UserError(f"the list of sources names a file twice: {again[0]}")
        corpora = [source.make(split, separator) for source in sources]
        names = {corpus.separated: corpus.name for corpus in corpora}
        if len(names) > 1:
            raise UserError(
                f"{names[True]} holds documents, and {names[False]} the lines of one text; give true or false",
                field="data.separator",
            )
        origins = [corpus.origin for corpus in corpora]
        origin: dict[str, Any] = {"sources": origins}
        if all("files" in one for one in origins):
            files = [file for one in origins for file in one["files"]]
            origin = {"files": files[:_NUM_NAMED], "num_files": sum(one["num_files"] for one in origins)}
        return Corpus(
            _listed([corpus.name for corpus in corpora]),
            digest("sources", *(corpus.identity for corpus in corpora)),
            corpora[0].separated,
            lambda: chain.from_iterable(corpus.pieces() for corpus in corpora),
            origin,
            documents=lambda: chain.from_iterable(_renumbered(corpora)),
            file_names=[name for corpus in corpora for name in corpus.file_names],
            notes=tuple(note for corpus in corpora for note in corpus.notes),
        )

    files_of = {split: [path for source in sources for path in source.files.get(split, ())] for split in splits}
    takes = frozenset[str]().union(*(source.takes for source in sources))
    return _Source(_listed([source.name for source in sources]), splits, make, files_of, takes)


def _renumbered(corpora: Sequence[Corpus]) -> Iterator[Iterator[str | Place]]:
    """The documents of each corpus, the numbers of whose files go on from the corpus before."""
    before = 0
    for corpus in corpora:
        shifted = partial(
            lambda before, piece: piece if isinstance(piece, str) else (before + piece[0], piece[1]), before
        )
        yield map(shifted, corpus.documents())
        before += len(corpus.file_names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _builtin(source: str) -> _Source:
    """The documentation topics that come with CPython. Their text differs between Python versions."""
    if source != "builtin:python-docs":
        raise UserError(f"there is no '{source}'; the built-in corpus is builtin:python-docs", field="data.source")

    def make(split: str, separator: Any) -> Corpus:
        from pydoc_data.topics import topics

        documents = [topics[name] for name in sorted(topics)]
        content = ["documents", *documents]
        pieces = partial(chain.from_iterable, [(document, (0, row)) for row, document in enumerate(documents)])
        return _corpus(source, content, separator is not False, pieces, {"builtin": source}, [source])

    return _Source(source, ["train"], make)


def _local(source: str, listing: Listing, recipe: DataRecipe) -> _Source:
    """Files here. A file of unknown kind is plain text."""

    def kinds_of(paths: Sequence[Path]) -> list[str]:
        return sorted({kind_of(path) or "text" for path in paths})

    def make(split: str, separator: Any) -> Corpus:
        paths, name = listing.splits[split], _name(source, split, listing.splits, listing.config or "default")
        kinds = kinds_of(paths)
        if len(kinds) > 1:
            raise UserError(f"{source}: holds files of several kinds ({', '.join(kinds)}); choose with a glob")
        stamps = [file_stamp(path) for path in paths]
        hashes = [content_hash(path, kinds[0]) for path in paths]
        if all(found == EMPTY for found in hashes):
            raise UserError(f"{paths[0] if len(paths) == 1 else name}: empty; there is no text in it")
        unchanged = [partial(check_unchanged, path, stamp) for path, stamp in zip(paths, stamps)]
        origin = {"files": [[path.name, sha256] for path, sha256 in zip(paths[:_NUM_NAMED], hashes)]}
        origin["num_files"] = len(paths)
        if kinds == ["text"]:

            def documents() -> Iterator[str | Place]:  # each file is one: a folder of books
                for number, (path, check) in enumerate(zip(paths, unchanged)):
                    yield from read_text(path)
                    check()
                    yield number, -1

            files = [*map(str, paths)]
            corpus = _corpus(name, ["documents", *hashes], separator is not False, documents, origin, files)
        else:
            tables = [Table(str(p), kinds[0], partial(open_bytes, p), check) for p, check in zip(paths, unchanged)]
            corpus = _table_corpus(name, tables, digest(kinds[0], *hashes), recipe.text_column, separator, origin)
        return dataclasses.replace(corpus, notes=listing.notes)

    has_tables = any(kinds_of(paths) != ["text"] for paths in listing.splits.values())
    takes = {field for field, so in (("config", listing.config), ("text_column", has_tables)) if so}
    return _Source(source, list(listing.splits), make, listing.splits, frozenset(takes))


def _hub(source: str, recipe: DataRecipe) -> _Source:
    """A dataset on the Hub, or the copy of it here. Its identity is its commit; nothing is read."""
    found = find_dataset(source, recipe.config, recipe.revision)

    def make(split: str, separator: Any) -> Corpus:
        name = _name(source, split, found.splits, found.config)
        content = digest(digest("hub", source, found.config, found.revision, split))
        commit = found.revision if re.fullmatch("[0-9a-f]{40}", found.revision) else recipe.revision
        config = found.config if found.config != "default" else None
        origin = {"dataset": source, "config": config, "split": split, "revision": commit}
        tables = found.tables(split, name, recipe.streaming)
        return _table_corpus(name, tables, content, recipe.text_column, separator, origin)

    return _Source(source, found.splits, make, takes=frozenset(_OF_SOME))


def _name(source: str, split: str, splits: Iterable[str], config: str = "default") -> str:
    """`wikitext (wikitext-2-v1, test)`; `the-verdict.txt`."""
    inside = [config] * (config != "default") + [split] * (list(splits) != ["train"])
    path = local_path(source)
    base = source if re.fullmatch(r"[^/]+/[^/]+", source) and not path.exists() else path.name
    if base in ("", ".."):  # of `.`, `..` and `~`
        base = path.resolve().name or source
    return f"{base} ({', '.join(inside)})" if inside else base


def _corpus(
    name: str,
    content: Sequence[str],
    separated: bool,
    documents: Callable[[], Iterator[str | Place]],
    origin: Mapping[str, Any],
    file_names: Sequence[str],
) -> Corpus:
    """A corpus of documents, or of one text if they are not `separated`. `content` identifies them."""

    def pieces() -> Pieces:
        for piece in documents():
            if isinstance(piece, str):
                yield piece
            elif separated:
                yield None

    identity = digest(*content, str(separated))
    return Corpus(name, identity, separated, pieces, origin, documents=documents, file_names=file_names)


def _table_corpus(
    name: str,
    tables: Sequence[Table],
    content: str,
    wanted: str | None,
    separator: Any,
    origin: Mapping[str, Any],
) -> Corpus:
    """The rows of the text column of `tables`, one table after the other; `content` identifies them.

    With `separator: auto` rows are documents, unless the first 1000 are lines of one text (`are_lines`).
    """

    def rows(column: str) -> Iterator[str]:
        return (text for table in tables for _, text in texts(table, column))

    key = digest("column", content, str(wanted))
    facts = cache_get(key)
    if facts is None:
        column = text_column(tables, wanted)
        first = list(islice(rows(column), 1000)) if column is not None else ()
        if not first:
            raise UserError(f"{name}: empty; there is no text in it")
        facts = {"column": column, "lines": are_lines(first)}
        cache_put(key, facts)

    def documents() -> Iterator[str | Place]:
        for number, table in enumerate(tables):
            for row, text in texts(table, facts["column"]):
                yield text
                yield number, row

    def lines() -> Pieces:
        found = rows(facts["column"])
        while some := list(islice(found, 256)):
            yield "".join(some)

    separated = not facts["lines"] if separator == "auto" else bool(separator)
    files = [table.name for table in tables]
    corpus = _corpus(name, ["table", content, facts["column"]], separated, documents, origin, files)
    return corpus if separated else dataclasses.replace(corpus, pieces=lines)


_NUM_NAMED = 8  # files of a corpus that are named: a person can compare a few hashes, not thousands
_PARTS_OF_LINES = re.compile(r"[^\n]*\n|[^\n]+")


def _num_characters(corpus: Corpus) -> int:
    key = digest("characters", corpus.identity)
    known = cache_get(key)
    if known is None:
        known = {"characters": sum(len(piece) for piece in corpus.pieces() if piece)}
        cache_put(key, known)
    return known["characters"]
