"""Where text comes from: it arrives as it is, is known by its content, and what cannot work says so in one line."""

import builtins
import bz2
import csv
import gzip
import io
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hf_gpt.data.corpus import (
    Corpus,
    _hub,
    load_corpora,
    split_by_characters,
    without_blank_lines,
)
from hf_gpt.data.hub_dataset import _plain_files, _remember, _remembered
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


def test_each_csv_of_a_folder_has_its_columns_in_its_own_order(folder):
    (folder / "a.csv").write_text("text,n\nfirst,1\nsecond,2\n")
    (folder / "b.csv").write_text("n,text\n3,001\n")
    (folder / "c.csv").write_text("text\nfourth\n")
    assert documents(training(folder)) == ["first", "second", "001", "fourth"]
    (folder / "d.csv").write_text("n,body\n3,third\n")
    assert f"no 'text' in {folder / 'd.csv'}; name the column to read: 'n' or 'body'" in refusal(folder)


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
    assert "name the column to read: 'date' or 'body'" in refusal(folder / "other.jsonl")
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
        assert not list(cache.rglob("*.arrow"))  # its files are the only copy
    assert corpora[0].identity == corpora[1].identity


def test_tables_on_the_hub_are_read_as_those_that_are_here(tmp_path, monkeypatch):
    repository = tmp_path / "owner" / "name"
    write(repository / "1.jsonl", '{"text": "A"}\n')
    write(repository / "2.jsonl", '{"text": "2020-01-01"}\n')
    write(repository / "a.csv", "n;text\n1;NA\n")
    monkeypatch.chdir(tmp_path)

    def read(files, streaming):
        write(repository / "README.md", f"---\nconfigs: [{{config_name: default, {files}}}]\n---\n")
        recipe = DataRecipe(source="owner/name", streaming=streaming)
        return documents(_hub("owner/name", recipe).corpus("train", "data.train_split", "auto"))

    for streaming in (True, False):
        assert read("data_files: '*.jsonl'", streaming) == ["A", "2020-01-01"]
        assert read("data_files: a.csv", streaming) == ["NA"]
    write(repository / "a.csv", "n~text\n1~B\n")  # which only `datasets` reads, as the card says
    assert read("data_files: a.csv, sep: '~'", False) == ["B"]


def test_a_card_on_the_hub_names_no_file_of_this_machine(tmp_path, monkeypatch):
    from datasets.data_files import DataFilesDict
    from datasets.packaged_modules.json.json import JsonConfig

    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    here = write(tmp_path / "secret.jsonl", '{"text": "a"}')
    builder = SimpleNamespace(config=JsonConfig(data_files=DataFilesDict(train=[str(here)])))
    with pytest.raises(UserError, match="its card names a file of this machine"):
        _plain_files("owner/name", builder)
    asked = ["owner/name", None, None]
    url = f"hf://datasets/owner/name@{'0' * 40}/a.jsonl"
    for urls, is_believed in (([url], True), ([str(here)], False), ([url.replace("owner", "other")], False)):
        _remember(asked, {"kind": "json", "config": "default", "hash": "0" * 40, "files": {"train": urls}})
        assert bool(_remembered(asked)) == is_believed


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


def test_rows_that_are_lines_are_joined_however_many_are_blank(folder):
    rows = [" first \n", *[""] * 900, " second \n", *[""] * 300, " third \n"]
    (folder / "r.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    corpus = training(folder / "r.jsonl")
    assert not corpus.separated
    assert "".join(corpus.pieces()) == " first \n second \n third \n"


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
    assert "name the column to read: 'body' or 'title'" in refusal(folder / "columns.jsonl")
    assert f"no 'content' in {folder / 'columns.jsonl'}" in refusal(folder / "columns.jsonl", text_column="content")
    assert "line 1: 'n' holds 1, which is not text" in refusal(folder / "columns.jsonl", text_column="n")
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


# Which files are read ----------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def notes(source, **fields) -> str:
    return " ".join(training(source, **fields).notes)


def test_names_are_literal_where_they_exist(folder):
    for name in ("what?.jsonl", "what1.jsonl", "a[1]/x.jsonl", "a1/x.jsonl", "{b}.jsonl", "**/x.jsonl", "~x.jsonl"):
        write(folder / name, json.dumps({"text": name}))
        assert documents(training(folder / name)) == [name]
    assert documents(training(folder / "a[1]")) == ["a[1]/x.jsonl"]
    assert documents(training(folder / "a[1]/*.jsonl")) == ["a[1]/x.jsonl"]
    assert documents(training(folder / "w*.jsonl")) == ["what1.jsonl", "what?.jsonl"]
    assert len(documents(training(folder))) == 7


def test_each_file_is_read_once_by_whatever_ways_and_what_is_left_out_is_said(folder):
    write(folder / "a.txt", "A")
    write(folder / "b" / "b.txt", "B")
    write(folder.parent / "elsewhere" / "c.txt", "C")
    (folder / "linked").symlink_to(folder.parent / "elsewhere")
    (folder / "aa").symlink_to("b")
    assert documents(training(folder)) == ["A", "B", "C"]
    assert not notes(folder)
    for name, target in {
        "loop": ".",
        "b/loop": "../b",
        "up": "..",
        "gone.txt": "nothing.txt",
        "z.txt": "a.txt",
    }.items():
        (folder / name).symlink_to(target)
    os.link(folder / "a.txt", folder / "y.txt")
    os.mkfifo(folder / "pipe.txt")
    for source in (folder, folder / "**/*.txt", folder / "**"):
        assert sorted(documents(training(source))) == ["A", "B", "C"]
        assert "z.txt (the same file as " in notes(source)
        assert "gone.txt (No such file" in notes(source)
        assert "pipe.txt (no file)" in notes(source)
    assert "up (a link to a folder above it)" in notes(folder)
    assert documents(training(folder / "*")) == ["A"]
    assert f"{folder / 'b'} (a folder)" in notes(folder / "*")
    assert "no file that can be read twice" in refusal(folder / "pipe.txt")


def test_a_folder_in_a_split_keeps_its_files_though_another_split_has_them(folder):
    write(folder / "train.txt", "A")
    (folder / "test.txt").symlink_to("train.txt")
    write(folder / "README.md", "---\nconfigs:\n- data_files: {train: train.txt, test: test.txt}\n---\n")
    pair = load_corpora(DataRecipe(source=str(folder), validation_split="test"))
    assert [documents(corpus) for corpus in pair] == [["A"], ["A"]]


def test_text_files_with_endings_of_their_own_are_read_and_their_splits_recognised(folder):
    for name in ("bnc_spoken.train", "childes.train", "childes.dev", "childes.test", "README.md"):
        write(folder / name, name)
    pair = load_corpora(DataRecipe(source=str(folder), validation_split="validation"))
    assert [documents(corpus) for corpus in pair] == [["bnc_spoken.train", "childes.train"], ["childes.dev"]]
    assert "left out README.md" in notes(folder)
    write(folder / "picture", b"\x89PNG\r\n\0\0")
    assert "picture" in notes(folder)
    write(folder / "chapter.tok.gz", gzip.compress(b"one more"))  # no split is in its name, so there are none
    assert len(documents(training(folder))) == 5
    write(folder / "latin.tok", "caf\u00e9".encode("latin-1"))  # a text, though not as it has to be
    assert "latin.tok: byte 3" in refusal(folder)
    (folder / "latin.tok").unlink()
    write(folder / "book.txt", "known")  # which of them is the text, is not guessed
    assert "holds book.txt and bnc_spoken.train; choose with a glob" in refusal(folder)
    for name in folder.glob("*.[td][re]*"):
        name.unlink()
    assert documents(training(folder)) == ["known"]  # and other endings are left out, and named
    assert "chapter.tok.gz" in notes(folder)
    write(folder / "\x1b[31m\n.tok")
    assert r"\x1b[31m\n.tok" in notes(folder)


def test_a_folder_without_text_says_what_it_holds(folder):
    for name in (None, "README.md", "LICENSE", "readme.jsonl", "dataset_infos.json"):
        inside = folder / str(name)
        inside.mkdir()
        write(inside / ".hidden.txt", "no")
        if name:
            write(inside / name, "x")
        left = f" (left out {name})" if name else ""
        assert refusal(inside) == f"{inside}: holds no text{left}; name a file, or a glob such as '{inside}/*'"
    assert documents(training(folder / "README.md" / "*")) == ["x"]


def test_a_cloned_dataset_repository_is_its_data(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(folder / "README.md", "---\ndataset_info:\n  features: []\n---\n# A dataset\n")
    write(folder / "dataset_infos.json", '{"default": {}}')
    write(folder / ".gitattributes", "* text")
    (folder / "data").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": [split]}), folder / "data" / f"{split}-00000-of-00001.parquet")
    pair = load_corpora(DataRecipe(source=str(folder), validation_split="test"))
    assert [documents(corpus) for corpus in pair] == [["train"], ["test"]]


def test_what_a_source_does_not_have_is_refused_and_not_ignored(folder):
    text, rows = write(folder / "a.txt", "A"), write(folder / "b.jsonl", '{"body": "B", "n": "1"}\n')
    for source in (text, rows, folder, "builtin:python-docs"):
        assert refusal(source, config="x") == f"data.config: {source} has no configurations"
        assert refusal(source, revision="main") == f"data.revision: {source} has no revisions"
    for source in (text, "builtin:python-docs"):
        assert refusal(source, text_column="body") == f"data.text_column: {source} has no columns: it is plain text"
    both = load_corpora(DataRecipe(source=[str(text), str(rows)], text_column="body"))
    assert documents(both[0]) == ["A", "B"]
    pair = load_corpora(DataRecipe(source=str(rows), text_column="body", validation_source=str(text)))
    assert [documents(corpus) for corpus in pair] == [["B"], ["A"]]


def test_text_that_is_trained_on_and_validated_on_is_named(folder):
    write(folder / "a.txt", "A")
    test, other = write(folder / "test.txt", "T"), write(folder / "other" / "v.txt", "V")
    pair = load_corpora(DataRecipe(source=str(folder / "*.txt"), validation_source=[str(other), str(test)]))
    assert pair[1].notes == (f"data.validation_source: {test} (named twice) is also trained on",)
    assert load_corpora(DataRecipe(source=str(folder / "*.txt"), validation_source=str(other)))[1].notes == ()
    # In a folder the name of a split means nothing unless every file has one.
    assert notes(folder).startswith(f"{folder}: left out the splits (a.txt names none: all files are training text)")


def test_the_current_folder_has_a_name(folder, monkeypatch):
    write(folder / "a.txt", "A")
    monkeypatch.chdir(folder)
    for source in (".", "./", "../texts", "../texts/."):
        assert training(source).name == "texts"


def test_a_list_of_sources_is_read_in_its_order_each_as_what_it_is(folder):
    write(folder / "z.txt", "Z")
    write(folder / "rows.jsonl", '{"text": "R"}\n')
    write(folder / "more" / "a.txt", "A")
    write(folder / "more" / "b.txt", "B")
    sources = [str(folder / name) for name in ("z.txt", "rows.jsonl", "more/*")]
    corpus = load_corpora(DataRecipe(source=sources))[0]
    assert documents(corpus) == ["Z", "R", "A", "B"]
    assert corpus.name == "z.txt, rows.jsonl, *"
    assert [name for name, _ in corpus.origin["files"]] == ["z.txt", "rows.jsonl", "a.txt", "b.txt"]
    mixed = load_corpora(DataRecipe(source=[sources[0], "builtin:python-docs"]))[0]
    assert [*map(sorted, mixed.origin["sources"])] == [["files", "num_files"], ["builtin"]]
    assert corpus.identity != load_corpora(DataRecipe(source=sources[::-1]))[0].identity
    assert load_corpora(DataRecipe(source=sources[:1]))[0] == training(sources[0])
    held = load_corpora(DataRecipe(source=sources[0], validation_source=sources[1:]))[1]
    assert documents(held) == ["R", "A", "B"]
    with pytest.raises(UserError, match=r"list of sources names a file twice: .*a\.txt"):
        load_corpora(DataRecipe(source=[*sources, str(folder / "more" / "a.txt")]))
    write(folder / "wiki.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in ("", " A . \n", "", " B . \n")))
    with pytest.raises(UserError, match=r"data\.separator: .* lines of one text"):
        load_corpora(DataRecipe(source=[*sources, str(folder / "wiki.jsonl")]))


def card(folder: Path, configs) -> None:
    write(folder / "README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n")


def test_a_card_names_configurations_splits_and_patterns_inside_its_folder(folder):
    for name in ("x.jsonl", "d/1.jsonl", "d/2.jsonl", "d[1]/3.jsonl", "e/train.txt", "e/test.txt"):
        write(folder / name, json.dumps({"text": name}))
    files = [{"split": "train", "path": ["x.jsonl", "d/*"]}, {"split": "held", "path": "d[1]/3.jsonl"}]
    both = [{"config_name": "one", "data_files": files}, {"config_name": "two", "data_dir": "e"}]
    card(folder, both)
    assert "has several configurations; it has: one, two" in refusal(folder)
    assert "has no configuration 'three'; it has: one, two" in refusal(folder, config="three")
    pair = load_corpora(DataRecipe(source=str(folder), config="one", validation_split="held"))
    assert [documents(corpus) for corpus in pair] == [["x.jsonl", "d/1.jsonl", "d/2.jsonl"], ["d[1]/3.jsonl"]]
    assert documents(training(folder, config="two")) == ['{"text": "e/train.txt"}']
    card(folder, [both[0], {**both[1], "default": True}])
    assert documents(training(folder)) == ['{"text": "e/train.txt"}']
    card(folder, [{"data_files": "**/*.jsonl"}])
    assert len(documents(training(folder))) == 4
    card(folder, [{"data_files": "x.jsonl", "field": "data"}])
    assert "sets field, which is not understood here" in refusal(folder)
    assert "has no configurations" in refusal(folder / "x.jsonl", config="one")


@pytest.mark.parametrize(
    "named",
    [
        *("http://127.0.0.1/x.txt", "file:///etc/hostname", "hf://datasets/a/b@main/x.txt", "../x.txt", ".."),
        *(
            "d/../../x.txt",
            "/etc/hostname",
            "C:\\x.txt",
            "zip://x.txt::x.zip",
            "missing.txt",
            "",
            3,
            None,
            {"a": 1},
            [],
        ),
    ],
)
def test_a_card_stays_inside_its_folder_and_off_the_network(folder, named):
    write(folder.parent / "x.txt", "outside")
    for name in ("x.txt", "d/y.txt"):
        write(folder / name, "inside")
    for files in (named, {"train": named}, [{"split": "train", "path": [named]}]):
        card(folder, [{"config_name": "default", "data_files": files}])
        assert str(folder) in refusal(folder)
    card(folder, [{"config_name": "default", "data_dir": named or "../"}])
    assert str(folder) in refusal(folder)


def test_a_card_names_no_link_to_outside_but_the_caches_own(folder):
    blob = write(folder / "blobs" / "0a", "cached")
    snapshot = folder / "snapshots" / "abc"
    for place, target in ((folder / "clone", blob), (snapshot, blob), (snapshot / "../../link", folder / "clone")):
        place.mkdir(parents=True)
        (place / "x.txt").symlink_to(target if target.is_file() else target / "x.txt")
        card(place, [{"data_files": "*.txt"}])
    assert "clone/x.txt, a link to outside the folder" in refusal(folder / "clone")
    assert documents(training(snapshot)) == ["cached"]
    card(folder, [{"data_dir": "link"}])
    assert documents(training(folder)) == ["cached"]


# Not UTF-8 ----------------------------------------------------------------------------------------------------------

CHINESE = (
    "\u6211\u4eec\u5728\u5b66\u6821\u91cc\u5b66\u4e60\u3002\u5929\u6c14\u5f88\u597d\uff0c\u4ed6\u7684\u4e66\u3002"
)
TRADITIONAL = "\u6211\u5011\u5728\u5b78\u6821\u88e1\u3002\u5929\u6c23\u5f88\u597d\uff0c\u4ed6\u7684\u66f8\u3002"
JAPANESE = "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002\u540d\u524d\u306f\u307e\u3060\u7121\u3044\u3002"
KOREAN = "나는 학교에 갑니다. 오늘은 날씨가 좋습니다."
RUSSIAN = "Мы пошли в парк, где были люди."


@pytest.mark.parametrize(
    ("text", "codec", "named"),
    [
        (CHINESE, "gb18030", "GB18030"),
        (CHINESE, "gbk", "GB18030"),
        (TRADITIONAL, "big5", "BIG5"),
        (JAPANESE, "shift_jis", "SHIFT_JIS"),
        (JAPANESE, "euc_jp", "EUC-JP"),
        (KOREAN, "euc_kr", "EUC-KR"),
        (RUSSIAN, "cp1251", "WINDOWS-1251"),
        (RUSSIAN, "koi8_r", "KOI8-R"),
        ("The caf\u00e9 was \u00e0 la carte.", "latin-1", "WINDOWS-1252"),
        ("He said \u201cno\u201d \u2014 it\u2019s fine.", "cp1252", "WINDOWS-1252"),
        ("plain text", "utf-16", "UTF-16"),
        ("plain text", "utf-16-le", "UTF-16LE"),
        ("plain text", "utf-16-be", "UTF-16BE"),
        (CHINESE, "utf-16", "UTF-16"),
        (CHINESE, "utf-16-le", "UTF-16LE"),
        (CHINESE, "utf-16-be", "UTF-16BE"),
        ("plain text", "utf-32", "UTF-32"),
        (CHINESE, "utf-32-be", "UTF-32BE"),
    ],
)
def test_a_file_that_is_not_utf8_is_named_with_its_encoding_and_what_converts_it(folder, text, codec, named):
    path = write(folder / "it's.txt", ((text + "\n") * 30).encode(codec))
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    command = message.partition("; iconv ")[2] or message.partition("iconv ")[2]
    assert command.startswith(f"-f {named} -t UTF-8 ")
    if shutil.which("iconv"):
        subprocess.run(f"iconv {command}", shell=True, check=True)
        assert documents(training(folder / "it's-utf8.txt")) == [(text + "\n") * 30]


def test_what_is_damaged_or_no_text_is_not_called_another_encoding(folder):
    text = (CHINESE * 20).encode()
    assert "the file is damaged there" in refusal(write(folder / "a.txt", text + b"\xff" + text))
    assert "the file is damaged there" in refusal(write(folder / "b.txt", text[:-1]))
    assert "it is no text" in refusal(write(folder / "c.txt", bytes(range(256)) * 100))
    assert "it is no text" in refusal(write(folder / "a.txt.bz2", bz2.compress(b"abc")))
    assert documents(training(write(folder / "nul.txt", "a\0b"))) == ["a\0b"]
    for name in ("d.csv", "e.jsonl"):
        assert "is UTF-16, not UTF-8" in refusal(write(folder / name, '{"text": "x"}\n'.encode("utf-16")))
    gz = write(folder / "f.txt.gz", gzip.compress("caf\u00e9 noir".encode("latin-1")))
    assert f"gzip -dc {gz} | iconv -f WINDOWS-1252 -t UTF-8 > {folder / 'f-utf8.txt'}" in refusal(gz)


def test_a_byte_order_mark_at_the_start_is_no_text_and_line_ends_stay(folder):
    text = "a\r\nb\rc\n\ufeffd"
    plain, marked = (write(folder / f"{mark == ''}.txt", mark + text) for mark in ("", "\ufeff"))
    assert documents(training(marked)) == [text]
    assert training(marked).identity == training(plain).identity
    quoted = json.dumps(text, ensure_ascii=False)
    for name, content in (
        ("a.jsonl", f'{{"text": {quoted}}}\r\n'),
        ("a.json", f'[{{"text": {quoted}}}]'),
        ("a.csv", f'text\r\n"{text}"\r\n'),
    ):
        assert documents(training(write(folder / name, "\ufeff" + content))) == [text]


def test_compressed_files_are_read_whole_or_refused(folder):
    for pack, ending in ((gzip.compress, "gz"), (zstandard.compress, "zst")):
        path = folder / f"a.txt.{ending}"
        write(path, pack(b"first ") + pack(b"second"))
        assert documents(training(path)) == ["first second"]
        for cut in (1, 5):
            write(path, pack(os.urandom(300_000).hex().encode())[:-cut])
            assert f"a.txt.{ending}: cannot be read" in refusal(path)
        assert "empty" in refusal(write(path, pack(b"")))


def test_a_hub_dataset_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refusal("some-owner/some-dataset")
    assert message.startswith(
        "some-owner/some-dataset: no such file or folder, and it cannot be loaded as a dataset from the Hub"
    )
