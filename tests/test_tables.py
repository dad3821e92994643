"""A text column is strings, read as they are written: no other column, row or file has a say."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_gpt.data.corpus import load_corpora
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


def texts(source, **fields) -> list[str]:
    corpus, _ = load_corpora(DataRecipe(source=str(source), separator=True, **fields))
    found = [piece for piece in corpus.pieces() if piece is not None]
    return found


def refusal(source, **fields) -> str:
    with pytest.raises(UserError) as error:
        texts(source, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path: Path, content: str) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(content)
    return path


LOOKS_LIKE_MORE = [
    *("2020-01-01", "2020-01-01T10:00:00Z", "12:30", "001", "1e5", "1_000", "0x1F", "-0", "NA", "NaN", "null", "None"),
    *("true", "", " ", "N/A", "inf", '{"a": 1}', "[1, 2]", '"quoted"', "=1+1", "1,5", "\u0661\u0662", "s3://x/y.png"),
    *(
        'say "hi"',
        "a\\nb",
        "back\\slash",
        "a\r\nb",
        "\ufeffmark",
        "nul\0nul",
        "\u2028",
        "\U0001f600",
        "a;b\tc|d",
        "1" * 5000,
    ),
]


def save(path: Path, rows: list[str]) -> Path:
    kind = path.suffix[1:]
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["n", "text"], *enumerate(rows)])
    elif kind == "jsonl":
        write(path, "".join(json.dumps({"n": n, "text": row}) + "\n" for n, row in enumerate(rows)))
    elif kind == "json":
        write(path, json.dumps([{"n": n, "text": row} for n, row in enumerate(rows)], indent=1))
    elif kind == "arrow":
        table = pa.table({"text": rows})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    else:
        pq.write_table(pa.table({"n": range(len(rows)), "text": rows}), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_file_gives_the_same_text_alone_and_beside_any_other(folder, kind):
    for n, row in enumerate(LOOKS_LIKE_MORE):
        save(folder / f"{n:02}.{kind}", [row])
        assert texts(folder / f"{n:02}.{kind}") == [row]
    assert texts(folder) == LOOKS_LIKE_MORE
    save(folder / f"all.{kind}", LOOKS_LIKE_MORE)
    save(folder / f"none.{kind}", [])
    assert texts(folder) == LOOKS_LIKE_MORE * 2


def test_what_the_other_columns_hold_does_not_matter(folder):
    rows = [
        {"text": "2020-01-01", "x": 1},
        {"x": "a", "text": "2020-01-02"},
        {"x": [1, {"y": 2}], "text": "2020-01-03", "z": None},
        {"text": None, "x": {"text": 3}},
        {"x": 7**500, "text": "2020-01-04"},
        {"x": {"text": "no"}, "text": '2020-01-05"text"'},
        {"x": "\u00e9", "text": "2020-01-06"},
    ]
    lines = "\n\n".join(map(json.dumps, rows)).replace(str(7**500), "7" * 5000)
    path = write(folder / "a.jsonl", lines + '\n{"x": 1, "x": 2, "text": "2020-01-07"}\n')
    assert [text[:10] for text in texts(path)] == [f"2020-01-0{n}" for n in range(1, 8)]
    assert texts(path)[4] == '2020-01-05"text"'
    write(folder / "b.jsonl", '{"y": NaN, "text": "b", "x": "2020-01-01"}\r\n')
    assert texts(folder)[-1] == "b"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("3", "3"), ("3.5", "3.5"), ("true", "true"), ("NaN", "NaN"), ('["a"]', '["a"]'), ('{"a": "b"}', '{"a": "b"}')],
)
def test_a_value_that_is_no_string_is_refused_where_it_stands(folder, value, shown):
    write(folder / "1.jsonl", '{"text": "A"}\n')
    late = "".join('{"text": "say \\"hi\\""}\n' for _ in range(3000))
    path = write(folder / "2.jsonl", f'{late}\n{{"text": {value}}}\n')
    for source in (path, folder):
        assert refusal(source) == f"{path}: line 3002: 'text' holds {shown}, which is not text"
    listed = write(folder / "a.json", f'[{{"text": "A"}}, {{"text": {value}}}]')
    assert refusal(listed) == f"{listed}: row 2: 'text' holds {shown}, which is not text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
        ('{"text": "a"\n{"text": "b"}\n', "line 1 is not JSON"),
        ('{"text": "a"}{"text": "b"}\n{"text": "c"}\n', "line 1 is not JSON"),
        ("text\nhello\n", "line 1 is not JSON"),
        ('{"text": "a"}\n"b"\n', "line 2 is not a JSON object"),
        ('"b"\n', "line 1 is not a JSON object"),
        ("[1]", "row 1 is not a JSON object"),
        ('{"text": "a", "text": "b"}\n', "line 1: 'text' stands in one object twice"),
        ('{"text": "a"}\n{"t\\u0065xt": "a", "text": "b"}\n', "line 2: 'text' stands in one object twice"),
        ('[{"text": "a", "text": "b"}]', "line 1: 'text' stands in one object twice"),
        ('{"text": "a"}\n{"text": "\\ud800b"}\n', "line 2: 'text' holds \\ud800, half a character"),
        ('{"text": "a"}\n{3: "b"}\n', "line 2 is not JSON"),
        ('{"text": "a"}\n{"text": "b", "x": %s}\n' % ("[" * 100_000), "line 2 nests too deeply"),
        ('{"text": "a\nb"}\n', "line 1 is not JSON"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_json_that_is_wrong_is_refused_by_its_line(folder, content, message):
    path = write(folder / "a.jsonl", content)
    assert message in refusal(path).removeprefix(str(path))


def test_json_over_several_lines_in_lists_and_one_after_the_other(folder):
    for content in (
        '{\n "text": "a"\n}\n{\n "text": "b"\n}\n',
        '\n[\n"a",\n"b"]\n',
        '[{"text": "a"}] [{"text": "b"}]',
    ):
        assert texts(write(folder / "a.json", content)) == ["a", "b"]


def test_csv_in_all_its_forms(folder):
    def read(content, **fields):
        return texts(write(folder / "a.csv", content), **fields)

    for delimiter in ",;\t|":
        assert read(f"id{delimiter}text\n1{delimiter}one\n") == ["one"]
        assert read(f'"id"{delimiter}"text"\n1{delimiter}"a, b; c | d"\n') == ["a, b; c | d"]
    assert read('text\n"a\r\nb ""c"""\r\n\r\nd\r') == ['a\r\nb "c"', "d"]
    assert read("text,text2\na,\nb,,,\n") == ["a", "b"]
    assert read("body\nonly\n") == ["only"]
    assert read(f"text\n{'x' * 200_000}\n") == ["x" * 200_000]
    assert "no 'text' in" in refusal(write(folder / "a.csv", "id;body\n1;x\n"))
    assert read(",review\n0,good\n") == ["good"]  # row numbers, as pandas writes them
    for content, message in (
        ("text\nHello, world\n", "line 2 has 2 fields, and the header 1"),
        ("id,text\n1,a\n2\n", "line 3 has 1 fields, and the header 2"),
        ('id,text\n1,"a\nb"\n2,a, b\n', "line 4 has 3 fields"),
        ('id,text\n1,"never closed\n2,b\n', "line 2 is not csv"),
        ('id,text\n1,"say \\"hi\\""\n', "line 2 is not csv"),
        ("text\na\rb\n", "line 2 is not csv: new-line character seen in unquoted field"),
        ("text,text\na,b\n", "2 columns are called 'text'"),
    ):
        assert message in refusal(write(folder / "a.csv", content))


def test_tsv_is_a_table_whose_delimiter_is_the_tab(folder):
    write(folder / "a.tsv", "id, or name\ttext\n1\tone, two\n")
    assert texts(folder / "a.tsv") == ["one, two"]
    write(folder / "b.csv", "id\ttext\n1\tthree\n")
    assert texts(folder) == ["one, two", "three"]
    (folder / "c.TSV.gz").write_bytes(gzip.compress(b"text\na,b\n"))
    assert texts(folder / "c.TSV.gz") == ["a,b"]
    assert "line 2 has 1 fields" in refusal(write(folder / "d.tsv", "id\ttext\n1,one\n"))


def test_parquet_of_every_type_of_text_and_of_no_other(folder):
    words = ["a", None, "b" * 300]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        array = pa.array(words, kind)
        pq.write_table(pa.table({"text.x": ["no"] * 3, "text": array, "n": [1, 2, 3]}), folder / "a.parquet")
        assert texts(folder / "a.parquet") == ["a", "b" * 300]
    struct = pa.array([{"text": "x"}])
    for array in (pa.array([1]), pa.array([b"a"]), pa.array([["a"]]), struct):
        pq.write_table(pa.table({"text": array}), folder / "a.parquet")
        assert "'text' of" in refusal(folder / "a.parquet")
        assert "no column holds text, of 'text'" in refusal(folder / "a.parquet", text_column="text")
    pq.write_table(pa.table({"text": pa.nulls(2)}), folder / "a.parquet")
    assert "empty" in refusal(folder / "a.parquet")
    not_utf8 = pa.Array.from_buffers(pa.string(), 1, [None, pa.array([b"\xff"]).buffers()[1], pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"text": not_utf8}), folder / "a.parquet")
    assert "rows 1 to 1: 'text' holds what is not UTF-8" in refusal(folder / "a.parquet")


def test_which_column_it_is_does_not_depend_on_rows_or_neighbours(folder):
    write(folder / "a.jsonl", '{"title": "t"}\n{"title": "t", "text": "a"}\n')
    assert texts(folder / "a.jsonl") == ["a"]  # not the title, though it is the only one at first
    write(folder / "b.jsonl", '{"body": "b", "text": 3}\n')
    assert texts(folder / "b.jsonl") == ["b"]
    assert "name the one to read" in refusal(folder)  # in a.jsonl it is another
    write(folder / "b.jsonl", '{"body": "b", "summary": null}\n')
    assert "no 'text' in" in refusal(folder, text_column="text")
    write(folder / "b.jsonl", '{"text": null}\n')
    assert texts(folder, text_column="text") == ["a"]
