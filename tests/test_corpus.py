"""Where text comes from: it arrives as it is, is known by its content, and what cannot work says so in one line."""

import builtins
import csv
import gzip
import io
import json
import os
import socket
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hf_gpt.data.corpus import Corpus, _hub, load_corpora, split_by_characters, without_blank_lines
from hf_gpt.errors import UserError
from hf_gpt.recipe import DataRecipe

AWKWARD = "one\r\ntwo\rthree\n\n \ufeff<|endoftext|> NA 001\u2028\x0bd\u00e9 \u6f22\U0001f600"
ROWS = [AWKWARD, "NA", "", "null", " 001 ", "007", '"quoted", and more\n\nlines\n']


@pytest.fixture(autouse=True)
def _own_caches_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")

    def refuse(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def training(source, **fields) -> Corpus:
    return load_corpora(DataRecipe(source=str(source), **fields))[0]


def documents(corpus: Corpus) -> list[str]:
    found = [""]
    for piece in corpus.pieces():
        if piece is None:
            found.append("")
        else:
            found[-1] += piece
    return [document for document in found if document]


def refusal(source, **fields) -> str:
    def read():
        for corpus in load_corpora(DataRecipe(source=str(source), **fields)):
            list(corpus.pieces() if corpus else ())

    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


def compressed(path: Path) -> list[Path]:
    data = path.read_bytes()
    gz, zst = path.with_name(path.name + ".gz"), path.with_name(path.name + ".zst")
    gz.write_bytes(gzip.compress(data))
    zst.write_bytes(zstandard.compress(data))
    return [path, gz, zst]


def test_plain_text_arrives_byte_for_byte(folder):
    path = folder / "a.txt"
    text = AWKWARD * 40_000  # several blocks: characters of several bytes lie across their ends
    path.write_bytes(text.encode())
    for file in compressed(path):
        corpus = training(file)
        assert documents(corpus) == [text], file
        assert corpus.identity == training(path).identity


def test_a_folder_or_glob_of_text_files_is_one_document_each_in_order(folder):
    for name, text in {"b.txt": "B", "a.txt": "A", "sub/c.md": "C", "README.md": "no", ".hidden.txt": "no"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert documents(training(folder)) == ["A", "B", "C"]
    assert documents(training(folder / "?.txt")) == ["A", "B"]
    assert documents(training(folder, separator=False)) == ["ABC"]
    (folder / "notes.log").write_text("any name will do when it is given")
    assert len(documents(training(folder / "*.log"))) == 1


def test_a_folder_has_splits_only_when_every_file_names_one(folder):
    (folder / "test.txt").write_text("T")
    (folder / "train-0.txt").write_text("A")
    pair = load_corpora(DataRecipe(source=str(folder), validation_split="test"))
    assert [documents(corpus) for corpus in pair] == [["A"], ["T"]]
    (folder / "moby.txt").write_text("M")
    assert documents(training(folder)) == ["M", "T", "A"]


def write_rows(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([["n", "text"], *enumerate(ROWS)])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"n": n, "text": row}) + "\n" for n, row in enumerate(ROWS)))
    elif kind == "json":
        path.write_text(json.dumps([{"n": n, "text": row} for n, row in enumerate(ROWS)]))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"n": range(len(ROWS)), "text": ROWS}), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_rows_of_tables_are_documents_and_arrive_as_they_are(folder, kind):
    path = write_rows(folder, kind)
    for file in [path] if kind == "parquet" else compressed(path):
        corpus = training(file)
        assert documents(corpus) == [row for row in ROWS if row]
        assert corpus.separated
        assert documents(training(file, separator=False)) == ["".join(ROWS)]


def test_csv_text_that_looks_like_numbers_stays_text(folder):
    (folder / "n.csv").write_text("text,n\n001,1\n1e5,3\n")
    assert documents(training(folder / "n.csv")) == ["001", "1e5"]


def test_a_csv_row_with_a_field_too_many_does_not_shift_the_others(folder):
    (folder / "n.csv").write_text("text,n\nfirst,1,\nsecond,2,\n")
    assert documents(training(folder / "n.csv")) == ["first", "second"]


def test_each_csv_of_a_folder_has_its_columns_in_its_own_order(folder):
    (folder / "a.csv").write_text("text,n\nfirst,1\nsecond,2\n")
    (folder / "b.csv").write_text("n,text\n3,001\n")
    (folder / "c.csv").write_text("text\nfourth\n")
    assert documents(training(folder)) == ["first", "second", "001", "fourth"]
    (folder / "d.csv").write_text("n,body\n3,third\n")
    assert f"no 'text' in {folder / 'd.csv'}; columns of text: n, body" in refusal(folder)


def test_endings_of_compressed_files_may_be_written_in_capitals(folder):
    (folder / "a.txt").write_text(AWKWARD)
    text = training(folder / "a.txt")
    tables = [write_rows(folder, kind) for kind in ("jsonl", "csv")]
    for path in [folder / "a.txt", *tables]:
        for file in compressed(path)[1:]:
            shouted = file.rename(file.with_suffix(file.suffix.upper()))
            corpus = training(shouted)
            assert documents(corpus) == ([AWKWARD] if path.suffix == ".txt" else [row for row in ROWS if row])
            if path.suffix == ".txt":
                assert corpus.identity == text.identity
    assert "no such file" in refusal("data/NOWHERE.GZ")


DATES = ["2020-01-01", "2021-01-01 10:00:00", "1999-12-31T23:59:59"]


def test_json_text_that_looks_like_dates_stays_as_it_is_written(folder):
    rows = [{"text": date, "id": f"n{n}", "when": date} for n, date in enumerate(DATES)]
    (folder / "lines.jsonl").write_text("\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows))
    (folder / "list.json").write_text(json.dumps([*rows, {"text": None, "id": "x"}]))
    for file in [*compressed(folder / "lines.jsonl"), folder / "list.json"]:
        assert documents(training(file)) == DATES
        assert documents(training(file, text_column="when")) == DATES
    # A date is a string like any other: which of two columns is the text is not guessed from what they look like.
    (folder / "other.jsonl").write_text(json.dumps({"date": DATES[0], "body": "b"}) + "\n")
    assert "columns of text: date, body" in refusal(folder / "other.jsonl")
    (folder / "mixed.jsonl").write_text('{"text": "2020-01-01"}\n' + '{"text": null}\n')
    assert documents(training(folder / "mixed.jsonl")) == ["2020-01-01"]


def test_a_hub_dataset_can_be_read_as_it_arrives(tmp_path, monkeypatch):
    """The code path of the Hub, on a folder that stands for the repository."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    repository = tmp_path / "owner" / "name"
    repository.mkdir(parents=True)
    for number in range(3):
        pq.write_table(
            pa.table({"text": [f"{number} {n}" for n in range(700)]}), repository / f"train-{number}.parquet"
        )
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'train-*.parquet'}\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "datasets"
    corpora = []
    for streaming in (True, False):
        source = _hub("owner/name", DataRecipe(source="owner/name", streaming=streaming))
        corpora.append(source.corpus("train", "data.train_split", "auto"))
        assert documents(corpora[-1]) == [f"{number} {n}" for number in range(3) for n in range(700)]
        assert bool(list(cache.rglob("*.arrow"))) == (not streaming)
    assert corpora[0].identity == corpora[1].identity


def test_rows_are_lines_of_one_text_when_some_are_blank_and_all_end_in_a_newline(folder):
    def separated(rows):
        path = folder / "r.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        return training(path).separated

    wikitext = ["", " = Title = \n", "", " A paragraph . \n", " Another . \n"]
    assert not separated(wikitext)
    assert separated([row for row in wikitext if row])  # no blank rows: single-line documents look like this
    assert separated([*wikitext, "two\nlines\n"])
    assert separated([row.strip() for row in wikitext])


def test_save_to_disk_folders_and_only_column_of_text(folder):
    from datasets import Dataset, DatasetDict

    made = DatasetDict({s: Dataset.from_dict({"body": [s, "x"], "n": [1, 2]}) for s in ("train", "held")})
    made.save_to_disk(folder / "both")
    made["train"].save_to_disk(folder / "one")
    pair = load_corpora(DataRecipe(source=str(folder / "both"), validation_split="held"))
    assert [documents(c) for c in pair] == [["train", "x"], ["held", "x"]]
    assert documents(training(folder / "one", text_column="body")) == ["train", "x"]


def test_wikitext_is_the_published_text(data_dir):
    recipe = DataRecipe(
        source=str(data_dir / "wikitext"),
        config="wikitext-2-v1",
        train_split="test",
        validation_split="validation",
    )
    test, validation = load_corpora(recipe)
    assert not test.separated
    assert not validation.separated
    (text,) = documents(test)
    assert len(text) == 1_252_084
    assert text.startswith(" = Robert <unk> = \n Robert <unk> is an English film")
    assert test.name == "wikitext (wikitext-2-v1, test)"


def test_builtin_documentation_is_documents_in_a_fixed_order():
    corpus = training("builtin:python-docs")
    assert len(documents(corpus)) > 70
    assert corpus == training("builtin:python-docs")
    assert "assert" in documents(corpus)[0]


def test_identity_follows_content_not_path(folder):
    (folder / "a.txt").write_text("same")
    (folder / "b.txt").write_text("same")
    (folder / "c.txt").write_text("other")
    (folder / "a.jsonl").write_text('{"text": "same"}\n')
    a, b, c, table = (training(folder / name).identity for name in ("a.txt", "b.txt", "c.txt", "a.jsonl"))
    assert a == b
    assert len({a, c, table}) == 3
    variants = [{"drop_blank_lines": True}, {"separator": False}, {"validation_fraction": 0.5}]
    assert len({training(folder / "a.txt", **fields).identity for fields in [{}, *variants]}) == 4
    # What is joined is not only the sum of the contents.
    (folder / "split").mkdir()
    (folder / "split" / "1.txt").write_text("sa")
    (folder / "split" / "2.txt").write_text("me")
    assert training(folder / "split").identity != a


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_an_unchanged_file_is_not_opened_again(folder, monkeypatch, kind):
    path = folder / f"a.{kind}"
    path.write_text(json.dumps({"text": "one"}))
    os.utime(path, (1_000_000_000, 1_000_000_000.5))
    before = training(path)
    real = io.open

    def guarded(file, *args, **kwargs):
        assert str(file) != str(path), "the corpus was opened"
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", guarded)
        assert training(path) == before
    path.write_text(json.dumps({"text": "two"}))
    os.utime(path, (1_000_000_000, 1_000_000_000.5))  # same size, same times as far as a program can set them
    assert training(path).identity != before.identity


def test_a_file_that_changes_while_it_is_read_is_refused(folder):
    path = folder / "a.txt"
    path.write_text("one")
    corpus = training(path)
    path.write_text("three")
    with pytest.raises(UserError, match="changed while it was read"):
        list(corpus.pieces())


pieces_of_text = st.lists(st.none() | st.text("ab \n\t\r", max_size=8), max_size=12)


@given(pieces_of_text)
def test_blank_lines_are_removed_wherever_pieces_end(pieces):
    def lines(text):
        return "".join(line for line in text.split("\n") for line in [line + "\n"] if line.strip())

    corpus = without_blank_lines(Corpus("c", "i", True, lambda: iter(pieces)))
    cleaned = documents(corpus)
    whole = documents(Corpus("c", "i", True, lambda: iter(pieces)))
    expected = [lines(text) if text.endswith("\n") else lines(text + "\n")[:-1] for text in whole]
    # An unfinished last line that is blank goes as well, and the newline before it stays.
    expected = [lines(t) if not t.rpartition("\n")[2].strip() else e for t, e in zip(whole, expected)]
    assert cleaned == [text for text in expected if text]


@given(pieces_of_text, st.floats(0.01, 0.99))
def test_a_cut_by_characters_loses_nothing_and_falls_where_the_book_has_it(tmp_path_factory, pieces, fraction):
    os.environ["HF_GPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    corpus = Corpus("c", "i", True, lambda: iter(pieces))
    first, second = ("".join(p for p in part.pieces() if p) for part in split_by_characters(corpus, fraction))
    text = "".join(p for p in pieces if p)
    assert (first, second) == (text[: int((1 - fraction) * len(text))], text[int((1 - fraction) * len(text)) :])


def test_the_verdict_is_cut_as_in_the_book(data_dir):
    recipe = DataRecipe(source=str(data_dir / "the-verdict.txt"), validation_fraction=0.1)
    text = (data_dir / "the-verdict.txt").read_text()
    parts = ["".join(documents(corpus)) for corpus in load_corpora(recipe)]
    assert parts == [text[: int(0.90 * 20479)], text[int(0.90 * 20479) :]]


def test_validation_from_a_second_source(folder):
    (folder / "a.txt").write_text("A")
    (folder / "held").mkdir()
    (folder / "held" / "h.txt").write_text("H")
    recipe = DataRecipe(source=str(folder / "a.txt"), validation_source=str(folder / "held"))
    assert documents(load_corpora(recipe)[1]) == ["H"]


def test_what_cannot_work_says_so_in_one_line(folder, monkeypatch):
    (folder / "empty.txt").write_text("")
    (folder / "none").mkdir()
    (folder / "latin.txt").write_bytes(b"x" * (1 << 20) + b"caf\xe9 noir")
    (folder / "cut.txt").write_bytes("é".encode()[:1])
    (folder / "latin.csv").write_bytes(b"text\ncaf\xe9\n")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    (folder / "list.jsonl").write_text('{"text": "a"}\n["b"]\n')
    (folder / "columns.jsonl").write_text('{"body": "a", "title": "b", "n": 1}\n')
    (folder / "mixed.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (folder / "junk.parquet").write_bytes(b"not parquet")
    (folder / "junk.gz").write_bytes(b"not gzip")
    (folder / "short.txt.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    assert "nowhere.txt: no such file" in refusal(folder / "nowhere.txt")
    assert "no such file" in refusal("nowhere")
    assert "no such file" in refusal("data/nowhere.jsonl.gz")
    assert "empty.txt: empty" in refusal(folder / "empty.txt")
    assert "none: holds no text" in refusal(folder / "none")
    assert "no file matches" in refusal(folder / "*.nothing")
    assert "latin.txt: byte 1048579 (0xe9) is not UTF-8" in refusal(folder / "latin.txt")
    assert "cut.txt: byte 0 (0xc3) is not UTF-8" in refusal(folder / "cut.txt")
    assert "latin.csv: byte 8 (0xe9) is not UTF-8" in refusal(folder / "latin.csv")
    assert "bad.jsonl: line 2 is not JSON" in refusal(folder / "bad.jsonl")
    assert "list.jsonl: line 2 is not a JSON object" in refusal(folder / "list.jsonl")
    assert "columns of text: body, title; all: body, title, n" in refusal(folder / "columns.jsonl")
    assert f"no 'content' in {folder / 'columns.jsonl'}" in refusal(folder / "columns.jsonl", text_column="content")
    assert "columns of text: body, title" in refusal(folder / "columns.jsonl", text_column="n")
    assert "mixed.jsonl: line 2: 'text' holds 3, which is not text" in refusal(folder / "mixed.jsonl")
    assert "junk.parquet: cannot be read" in refusal(folder / "junk.parquet")
    assert "junk.gz: cannot be read" in refusal(folder / "junk.gz")
    assert "short.txt.gz: cannot be read" in refusal(folder / "short.txt.gz")
    assert "several kinds" in refusal(folder)
    assert "builtin:python-docs" in refusal("builtin:python")
    (folder / "a.txt").write_text("a")
    assert "data.train_split: " in refusal(folder / "a.txt", train_split="test")
    assert "has no split 'test'; it has: train" in refusal(folder / "a.txt", validation_split="test")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (folder / "a.txt.zst").write_bytes(zstandard.compress(b"a"))
    assert "pip install 'hf_gpt[zstd]'" in refusal(folder / "a.txt.zst")


def test_a_missing_configuration_or_split_of_a_dataset_names_those_there_are(data_dir):
    wikitext = data_dir / "wikitext"
    assert "it has: wikitext-2-v1" in refusal(wikitext, config="wikitext-103-v1")
    assert "it has: validation, test" in refusal(wikitext, config="wikitext-2-v1")


def test_a_hub_dataset_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refusal("some-owner/some-dataset")
    assert message.startswith(
        "some-owner/some-dataset: no such file or folder, and it cannot be loaded as a dataset from the Hub"
    )
