"""The text column of a table: which column it is, its rows, and one-line errors.

Tables are read by `datasets` (jsonl, parquet, csv, dataset folders, the Hub). This file chooses the text column, makes
sure that it holds the text as it was written and not a parser's interpretation of it, and translates the exceptions of
`datasets`, pandas, pyarrow and fsspec into messages a person can act on. Where tables come from is in corpus.py.
"""

import codecs
import contextlib
import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..network import limited_requests
from .files import kind_of, open_bytes

_ROWS = 256  # converted to Python strings at once


def text_rows(
    name: str, dataset: Any, wanted: str | None, json_files: Sequence[Path] = ()
) -> Iterator[tuple[str, str]]:
    """(column, text) of every row of a `Dataset` or `IterableDataset` whose text is not null.

    `json_files` are the files of the dataset. pyarrow parses strings that look like dates and forgets how they were
    written, so such a text is read from the files again.
    """
    from pyarrow.types import is_timestamp

    column = wanted
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
        dated = column or "text"
        if json_files and dated in table.column_names and is_timestamp(table.schema.field(dated).type):
            yield from ((dated, text) for text in _json_texts(json_files, dated))
            return
        column = _text_column(name, table.schema, column)
        for text in table.column(column).to_pylist():
            if text is not None:
                yield column, text


def are_lines(rows: Sequence[str]) -> bool:
    """Whether rows are the lines of one text, as WikiText's are, and not documents.

    They are lines if every row with a visible character is one line with its newline at the end, and some row has no
    visible character. The lines of a text have blank ones between them; nobody keeps blank documents.
    """
    shown = [row for row in rows if row.strip()]
    return 0 < len(shown) < len(rows) and all(row.find("\n") == len(row) - 1 for row in shown)


def csv_options(path: Path, wanted: str | None) -> dict[str, Any]:
    """Options for `datasets`' csv reader.

    pandas would read `NA` as null and `001` as 1; here both are text. If rows have a field more than the header, it
    would take the first column for row names; here columns are where the header has them.
    """
    with open_bytes(path) as file:
        header = next(csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline="")), [])
    column = wanted or "text"
    return {"keep_default_na": False, "index_col": False, "converters": {column: str} if column in header else None}


@contextlib.contextmanager
def one_line(problem: str, paths: Sequence[Path] = ()) -> Iterator[None]:
    """Turn exceptions raised inside into a :class:`UserError` that begins with `problem`; libraries log nothing."""
    loggers = [logging.getLogger(library) for library in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with limited_requests() as requests:
            yield
    except UserError:
        raise
    except Exception as error:  # each library has its own exceptions, some of them plain `Exception`
        for path in paths:
            if kind_of(path) == "json":
                for _ in _json_records(path):
                    pass
        reason = isinstance(error, OSError) and requests.trouble
        raise UserError(f"{problem}: {reason or str(error)[:300]}") from error
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _text_column(name: str, schema: Any, wanted: str | None) -> str:
    """The column that was asked for, else the only one that holds text, else `text`."""
    from pyarrow.types import is_large_string, is_string, is_string_view

    columns = {f.name: f.type for f in schema}
    texts = [c for c, kind in columns.items() if is_string(kind) or is_large_string(kind) or is_string_view(kind)]
    column = wanted or (texts[0] if len(texts) == 1 else "text")
    if column in texts:
        return column
    found = f"column {column!r} of {name} holds {columns[column]}" if column in columns else f"no {column!r} in {name}"
    raise UserError(
        f"{found}; columns of text: {', '.join(texts) or 'none'}; all: {', '.join(columns)}", field="data.text_column"
    )


def _json_texts(paths: Sequence[Path], column: str) -> Iterator[str]:
    """The strings under a key, as written."""
    for path in paths:
        for record in _json_records(path):
            text = record.get(column)
            if isinstance(text, str):
                yield text
            elif text is not None:
                raise UserError(f"{path}: {column!r} holds {json.dumps(text)[:40]}, which is not text")


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file that holds one a line, or one list of them. Errors name the line, as pyarrow's do not."""
    number = 1
    with open_bytes(path) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        try:
            if first.lstrip().startswith(b"["):
                yield from json.loads(first + file.read())
                return
            for number, line in enumerate(chain([first], file), 1):
                if line := line.rstrip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise UserError(f"{path}: line {number} is not a JSON object")
                    yield record
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number + error.lineno - 1} is not JSON: {error.msg}, column {error.colno}"
            ) from None
