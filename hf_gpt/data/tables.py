"""The text column of a table: jsonl, csv, parquet and arrow files, each read as what it is.

The one idea: a text column is strings, and they are read as they are written. No type is guessed, nothing is cast, and
no other column, row or file has a say: json is read line by line, csv with text in every column, parquet by its one
column. So a file gives the same text whatever lies beside it, and a value that is no string is refused by file, line
and column, wherever it stands.

Which column it is: the one that is asked for, else `text` where it holds text, else the only one that does.

Where tables come from is in corpus.py.
"""

import codecs
import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import IO, Any, NamedTuple

from ..errors import UserError
from ..network import limited_requests

_ROWS = 256  # converted to Python strings at once


class Table(NamedTuple):
    """A file with rows. `open` gives its decompressed bytes; for `rows` a `Dataset` or `IterableDataset`."""

    name: str
    kind: str  # json, csv, parquet or arrow; or rows, which `datasets` reads
    open: Callable[[], Any]
    check_unchanged: Callable[[], None] = lambda: None  # raises if the file has changed since it was hashed


def text_column(tables: Sequence[Table], wanted: str | None) -> str | None:
    """The column that holds the text of every table; None if there is none because there are no rows.

    Raises:
        UserError: it is not clear which it is, in a table, or different ones in two.
    """
    if wanted is not None:
        return wanted
    chosen: dict[str, str] = {}
    for table in tables:
        with one_line(f"{table.name}: cannot be read"):
            columns = _READERS[table.kind][0](table)
        texts = [name for name, is_text in columns.items() if is_text]
        if not texts and (not columns or None in columns.values()):
            continue  # no rows, or nothing but nulls
        if "text" not in texts and len(texts) != 1:
            raise _no_column("text", table, columns)
        chosen.setdefault("text" if "text" in texts else texts[0], table.name)
    if len(chosen) > 1:
        found = " and ".join(f"'{column}' in {name}" for column, name in list(chosen.items())[:2])
        raise UserError(f"the only column of text is {found}; name the one to read", field="data.text_column")
    return next(iter(chosen), None)


def texts(table: Table, column: str) -> Iterator[tuple[int, str]]:
    """(row, text) of the texts under `column`, in order; rows are counted from 0, and a null is no text."""
    with one_line(f"{table.name}: cannot be read"):
        for row, text in enumerate(_READERS[table.kind][1](table, column)):
            if text is not None:
                yield row, text
    table.check_unchanged()


def are_lines(rows: Sequence[str]) -> bool:
    """Whether rows are the lines of one text, as WikiText's are, and not documents.

    They are lines if every row with a visible character is one line with its newline at the end, and some row has no
    visible character. The lines of a text have blank ones between them; nobody keeps blank documents.
    """
    shown = [row for row in rows if row.strip()]
    return 0 < len(shown) < len(rows) and all(row.find("\n") == len(row) - 1 for row in shown)


@contextlib.contextmanager
def one_line(problem: str) -> Iterator[None]:
    """Turn exceptions raised inside into a :class:`UserError` that begins with `problem`."""
    try:
        with limited_requests() as requests:
            yield
    except UserError:
        raise
    except Exception as error:  # each library has its own exceptions, some of them plain `Exception`
        trouble = requests.trouble if isinstance(error, OSError) else None
        reason = trouble or getattr(error, "strerror", None) or str(error)[:300] or type(error).__name__
        raise UserError(f"{problem}: {reason}") from error


Columns = dict[str, bool | None]
"""The columns of a table -> whether they hold text; None if they hold nothing."""


def _no_column(column: str, table: Table, columns: Columns) -> UserError:
    found = f"'{column}' of {table.name} holds no text" if column in columns else f"no '{column}' in {table.name}"
    texts = [f"'{name}'" for name, is_text in columns.items() if is_text]
    others = ", ".join(f"'{name}'" for name, is_text in columns.items() if not is_text)
    advice = f"name the column to read: {' or '.join(texts)}" if texts else f"no column holds text, of {others}"
    return UserError(f"{found}; {advice}", field="data.text_column")


def _not_text(table: Table, place: str, column: str, value: Any) -> UserError:
    try:
        shown = json.dumps(value, ensure_ascii=False)[:40]
    except (ValueError, RecursionError):
        shown = "a value"
    return UserError(f"{table.name}: {place}: '{column}' holds {shown}, which is not text")


# JSON ---------------------------------------------------------------------------------------------------------------


_BLANKS = re.compile(r"[ \t\r\n]*")


def _json_columns(table: Table) -> Columns:
    """Keys -> whether strings, and nothing else but null, stand under them. Reading ends where `text` holds one."""
    strings: Columns = {}
    for _, _, record in _json_records(table, "text"):
        for key, value in record.items():
            if value is None:
                strings.setdefault(key, None)  # nothing yet
            else:
                strings[key] = strings.get(key) is not False and isinstance(value, str)
        if isinstance(record.get("text"), str):
            return strings | {"text": True}
    return strings


def _json_texts(table: Table, column: str) -> Iterator[str | None]:
    found = None
    for unit, number, record in _json_records(table, column):
        text = record.get(column)
        if isinstance(text, str):
            found = True
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    wrong = f"'{column}' holds \\u{ord(text[error.start]):04x}, half a character"
                    raise UserError(f"{table.name}: {unit} {number}: {wrong}") from None
        elif text is None:
            found = found or column in record
        else:
            raise _not_text(table, f"{unit} {number}", column, text)
        yield text
    if found is False:
        raise _no_column(column, table, _json_columns(table))


def _json_records(table: Table, column: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """("line", its number, object) of a file that holds one a line; of others ("row", its number, object).

    Others hold objects over several lines, or a list of objects or strings; the latter are texts. An object in which
    `column` stands twice is refused: which of the two is the text?
    """
    with table.open() as file:
        start_line, first = 0, b""
        for start_line, first in enumerate(file, 1):
            first = first.removeprefix(codecs.BOM_UTF8) if start_line == 1 else first
            if first.strip():
                break
        second = file.readline()
        start = first.lstrip()[:1]
        if start == b"[" or (start == b"{" and not _is_object(first) and not _is_object(second)):
            yield from _json_values(table, column, b"\n" * (start_line - 1) + first + second + file.read())
            return
        # The plain decoder is twice as fast. Whatever it does not take, and where the column may stand twice, is
        # looked at more closely.
        decode, key = json.JSONDecoder().raw_decode, f'"{column}"'.encode()
        escape = b"\\u" if re.fullmatch(r'[^"\\/\x00-\x1f]*', column) else b""  # of other spellings of the key
        for number, line in enumerate(chain([first, second], file), start_line):
            if not (line := line.strip()):
                continue
            text, end = line.decode(), 0
            try:
                if escape not in line and line.count(key) < 2:
                    record, end = decode(text)
            except (ValueError, RecursionError):
                end = 0
            if end < len(text):
                record, end = _decoded(table, number, column, text)
                if end < len(text):
                    raise UserError(f"{table.name}: line {number} is not JSON: Extra data, column {end + 1}")
            if not isinstance(record, dict):
                raise UserError(f"{table.name}: line {number} is not a JSON object")
            yield "line", number, record


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_values(table: Table, column: str, content: bytes) -> Iterator[tuple[str, int, dict[str, Any]]]:
    text, row = content.decode(), 0
    at = _BLANKS.match(text).end()
    while at < len(text):
        value, at = _decoded(table, 1, column, text, at)
        for record in value if isinstance(value, list) else [value]:
            row += 1
            record = {"text": record} if isinstance(record, str) and isinstance(value, list) else record
            if not isinstance(record, dict):
                raise UserError(f"{table.name}: row {row} is not a JSON object")
            yield "row", row, record
        at = _BLANKS.match(text, at).end()


def _decoded(table: Table, number: int, column: str, text: str, at: int = 0) -> tuple[Any, int]:
    """The value that begins at `text[at]`, and where it ends. `text` begins at line `number`."""

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if [key for key, _ in pairs].count(column) > 1:
            raise ValueError(f"{column!r} stands in one object twice")
        return dict(pairs)

    try:
        return json.JSONDecoder(object_pairs_hook=record, parse_int=_integer).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{table.name}: line {number + error.lineno - 1} is not JSON: {error.msg}, column {error.colno}"
        ) from None
    except RecursionError:
        raise UserError(f"{table.name}: line {number} nests too deeply") from None
    except ValueError as error:
        raise UserError(f"{table.name}: line {number}: {error}") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else float(digits)  # of which Python makes no integer


# CSV ----------------------------------------------------------------------------------------------------------------


def _csv_columns(table: Table) -> Columns:
    return {name: bool(name) for name in _csv_header(table)[1]}  # pandas writes row numbers below an empty name


def _csv_texts(table: Table, column: str) -> Iterator[str]:
    """The fields under `column`. `NA`, `001` and an empty field are text; a blank line is no row."""
    delimiter, header = _csv_header(table)
    if not header:
        return
    if column not in header:
        raise _no_column(column, table, _csv_columns(table))
    if header.count(column) > 1:
        raise UserError(f"{table.name}: {header.count(column)} columns are called '{column}'")
    rows, place, size = _csv_rows(table, delimiter), header.index(column), len(header)
    next(rows)
    for number, row in rows:
        if len(row) != size and (len(row) < size or any(row[size:])):
            raise UserError(
                f"{table.name}: line {number} has {len(row)} fields, and the header {size}; "
                f"a text with {delimiter!r}, a quote or a line end in it stands in quotes"
            )
        yield row[place]


def _csv_header(table: Table) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns. It is a comma, unless another cuts a header that has none.

    In a file `.tsv` it is the tab, whatever the header has.
    """
    delimiters = "\t" if re.search(r"\.tsv(\.\w+)?$", table.name, re.I) else ",;\t|"
    headers = {}
    for delimiter in delimiters:
        with contextlib.suppress(UserError):
            _, headers[delimiter] = next(_csv_rows(table, delimiter), (1, []))
        if len(headers.get(",", ())) > 1:
            break
    if not headers:
        next(_csv_rows(table, delimiters[0]))  # raises
    delimiter = max(headers, key=lambda delimiter: len(headers[delimiter]))
    return delimiter, headers[delimiter]


def _csv_rows(table: Table, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every row, the header first."""
    csv.field_size_limit(sys.maxsize)  # a text may be long
    with table.open() as file, io.TextIOWrapper(file, "utf-8-sig", newline="\n") as text:
        reader, number = csv.reader(text, delimiter=delimiter, strict=True), 1
        try:
            for row in reader:
                if row:
                    yield number, row
                number = reader.line_num + 1
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]  # behind it is advice to a programmer
            raise UserError(f"{table.name}: line {number} is not csv: {reason}") from None


# Parquet and Arrow --------------------------------------------------------------------------------------------------


def _parquet_columns(table: Table) -> Columns:
    import pyarrow.parquet

    with table.open() as file, pyarrow.parquet.ParquetFile(file) as parquet:
        return _text_types(parquet.schema_arrow)


def _parquet_texts(table: Table, column: str) -> Iterator[str | None]:
    import pyarrow.parquet

    with table.open() as file, pyarrow.parquet.ParquetFile(file) as parquet:
        _check_column(table, column, parquet.schema_arrow)
        yield from _strings(table, column, parquet.iter_batches(_ROWS, columns=[column]))


def _arrow_columns(table: Table) -> Columns:
    with table.open() as file:
        return _text_types(_open_arrow(file).schema)


def _arrow_texts(table: Table, column: str) -> Iterator[str | None]:
    with table.open() as file:
        stream = _open_arrow(file)
        _check_column(table, column, stream.schema)
        yield from _strings(table, column, stream)


def _open_arrow(file: IO[bytes]) -> Any:
    """A stream of record batches: what `datasets` writes, or the format of a file."""
    import pyarrow as pa

    start = file.read(6)
    file.seek(0)
    if start == b"ARROW1":
        opened = pa.ipc.open_file(file)
        return pa.RecordBatchReader.from_batches(
            opened.schema, (opened.get_batch(n) for n in range(opened.num_record_batches))
        )
    return pa.ipc.open_stream(file)


def _rows_columns(table: Table) -> Columns:
    first = next(_batches(table), None)
    return {} if first is None else _text_types(first.schema)


def _rows_texts(table: Table, column: str) -> Iterator[str | None]:
    for batch in _batches(table):
        _check_column(table, column, batch.schema)
        yield from _strings(table, column, [batch])


def _batches(table: Table) -> Iterator[Any]:
    return table.open().with_format("arrow").iter(batch_size=_ROWS)


def _strings(table: Table, column: str, batches: Any) -> Iterator[str | None]:
    row = 0
    for batch in batches:
        values = batch.column(column)
        try:
            yield from values.to_pylist()
        except UnicodeDecodeError as error:
            rows = f"rows {row + 1} to {row + len(values)}"
            raise UserError(f"{table.name}: {rows}: '{column}' holds what is not UTF-8: {error.reason}") from None
        row += len(values)


def _check_column(table: Table, column: str, schema: Any) -> None:
    columns = _text_types(schema)
    if columns.get(column, False) is False:
        raise _no_column(column, table, columns)
    if schema.names.count(column) > 1:
        raise UserError(f"{table.name}: {schema.names.count(column)} columns are called '{column}'")


def _text_types(schema: Any) -> Columns:
    from pyarrow import types

    def is_text(kind: Any) -> bool | None:
        if types.is_null(kind):
            return None
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    return {field.name: is_text(field.type) for field in schema}


_READERS = {
    "json": (_json_columns, _json_texts),
    "csv": (_csv_columns, _csv_texts),
    "parquet": (_parquet_columns, _parquet_texts),
    "arrow": (_arrow_columns, _arrow_texts),
    "rows": (_rows_columns, _rows_texts),
}
