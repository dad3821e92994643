"""`hf-gpt batch`: the windows of a step, and the file, row and byte that their tokens come from."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused
from test_training import changed

import hf_gpt
from hf_gpt.batch import Batches
from hf_gpt.cli import main
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.places import Places
from hf_gpt.data.token_store import tokenize
from hf_gpt.data.tokenizer import load_tokenizer
from hf_gpt.recipe import DataRecipe, Recipe
from hf_gpt.training.setup import prepare

ROWS = ["Första raden.", None, "", "Two lines,\nand another.", "日本語 and the rest", " ", "The last row.\n"]


def write_jsonl(path: Path, rows: list[str | None]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows))  # blank lines too
    return path


def parts_of(recipe: DataRecipe, tokenizer) -> list[tuple[bytes, hf_gpt.batch.Part]]:
    """Every part of every window of five tokens, from every token on, and the bytes of its tokens."""
    corpus, _ = load_corpora(recipe)
    store = tokenize(corpus, tokenizer)
    places = Places(store, corpus, tokenizer)
    found = []
    for start in range(store.num_tokens - 4):
        parts = [*places.parts(start, start + 5)]
        assert [part.first for part in parts] == [0, *np.cumsum([part.num_tokens for part in parts])[:-1]]
        assert sum(part.num_tokens for part in parts) == 5
        for part in parts:
            ids = store.tokens[start + part.first :][: part.num_tokens]
            text = [int(i) for i in ids if i not in (store.separator_id, store.begin_id)]
            names = "".join(tokenizer.convert_ids_to_tokens(text))
            found.append((bytes(BYTES[name] for name in names), part))
    return found


BYTES = {character: byte for byte, character in enumerate(hf_gpt.data.tokenizer.byte_characters())}


@pytest.fixture(scope="module", params=["bytes", "trained"])
def tokenizer(request):
    text = [row for row in ROWS if row] * 5
    return load_tokenizer("bytes") if request.param == "bytes" else hf_gpt.train_tokenizer(text, 300)


def test_each_token_is_found_in_its_row(tmp_path, tokenizer):
    files = [write_jsonl(tmp_path / "rows" / f"{name}.jsonl", rows) for name, rows in (("a", ROWS), ("b", ROWS[3:]))]
    rows = {str(file): rows for file, rows in zip(files, (ROWS, ROWS[3:]))}
    found = parts_of(DataRecipe(source=str(tmp_path / "rows"), separator=True), tokenizer)
    for text, part in found:
        assert rows[part.file][part.row].encode()[part.offset :].startswith(text)
    assert {(Path(part.file).stem, part.row) for _, part in found} == {
        *(("a", row) for row in (0, 3, 4, 5, 6)),
        *(("b", row) for row in range(4)),
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet"])
def test_rows_are_numbered_as_datasets_does(tmp_path, kind):
    import pandas
    from datasets import load_dataset

    rows = ["first row", "second,\n\nwith blank lines", "third"]
    file = tmp_path / f"rows.{kind}"
    if kind == "csv":
        file.write_text('text\nfirst row\n\n"second,\n\nwith blank lines"\nthird\n')
    elif kind == "parquet":
        pandas.DataFrame({"text": rows}).to_parquet(file)
    else:
        file.write_bytes(gzip.compress("\n".join(json.dumps({"text": row}) for row in rows).encode()))
    found = parts_of(DataRecipe(source=str(file)), load_tokenizer("bytes"))
    loaded = load_dataset(kind.partition(".")[0].replace("jsonl", "json"), data_files=str(file), split="train")["text"]
    assert {part.row for _, part in found} == {0, 1, 2}
    assert all(loaded[part.row].encode()[part.offset :].startswith(text) for text, part in found)


def test_lines_of_one_text_are_rows_too(tmp_path, tokenizer):
    rows = ["", " = Title = \n", "", " Första line . \n", " Second line . \n", ""]
    file = write_jsonl(tmp_path / "lines.jsonl", rows)
    ends = np.cumsum([len(row.encode()) for row in rows])
    whole = "".join(rows).encode()
    crossed = 0
    for text, part in parts_of(DataRecipe(source=str(file)), tokenizer):
        begin = int(ends[part.row]) - len(rows[part.row].encode()) + part.offset
        assert whole[begin:].startswith(text)  # a token may go on into the next row
        assert begin < ends[part.row]
        crossed += begin + len(text) > ends[part.row]
    assert crossed == 0  # here none does


def test_plain_files_are_documents_and_a_list_of_sources_has_the_files_of_all(tmp_path, tokenizer):
    texts = {"a.txt": "One book.\nÅ line.\n", "b.txt": "", "c.txt": "Another book.\n"}
    (tmp_path / "books").mkdir()
    for name, text in texts.items():
        (tmp_path / "books" / name).write_text(text)
    table = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    for separator in (True, False):
        found = parts_of(DataRecipe(source=[str(tmp_path / "books"), str(table)], separator=separator), tokenizer)
        names = {Path(part.file).name: part.row for _, part in found if part.row is None}
        assert names == {"a.txt": None, "c.txt": None}
        assert {part.row for _, part in found if part.file == str(table)} == {0, 3, 4, 5, 6}
        for text, part in found:
            row = texts[Path(part.file).name] if part.row is None else ROWS[part.row]
            assert row.encode()[part.offset :].startswith(text[: len(row.encode()) - part.offset])


def test_what_is_left_out_of_a_text_moves_no_row(tmp_path):
    rows = ["\n\n", "one\n\ntwo\n", " \n", "three\n"]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    bytes_tokenizer = load_tokenizer("bytes")
    found = parts_of(DataRecipe(source=str(file), drop_blank_lines=True, separator=True), bytes_tokenizer)
    kept = {1: "one\ntwo\n", 3: "three\n"}
    assert {part.row for _, part in found} == {1, 3}
    assert all(kept[part.row].encode()[part.offset :].startswith(text) for text, part in found)
    cut = parts_of(DataRecipe(source=str(file), validation_fraction=0.2, separator=True), bytes_tokenizer)
    assert {part.row for _, part in cut} == {0, 1, 2, 3}
    assert max((part.row, part.offset + len(text)) for text, part in cut) == (3, 2)  # of "three" two letters train
    joined = parts_of(DataRecipe(source=str(file), drop_blank_lines=True, separator=False), bytes_tokenizer)
    assert {(part.file, part.row) for _, part in joined} == {(None, None)}
    assert all(b"one\ntwo\nthree\n"[part.offset :].startswith(text) for text, part in joined)


@pytest.mark.parametrize("begin", ["<s>", "<|endoftext|>"])
def test_a_document_begins_with_its_bos(tmp_path, begin):
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer("bytes")
    tokenizer.add_special_tokens({"bos_token": begin})
    template = {"single": f"{begin} $A", "special_tokens": [(begin, tokenizer.bos_token_id)]}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**template)
    rows = ["one", "", "two", "three"]
    found = parts_of(DataRecipe(source=str(write_jsonl(tmp_path / "rows.jsonl", rows))), tokenizer)
    assert {part.row for _, part in found} == {0, 2, 3}
    assert all(rows[part.row].encode()[part.offset :].startswith(text) for text, part in found)
    corpus, _ = load_corpora(DataRecipe(source=str(tmp_path / "rows.jsonl")))
    store = tokenize(corpus, tokenizer)
    marks = 1 if begin == "<|endoftext|>" else 2  # the separator is the BOS of what follows, or stands before it
    assert store.num_tokens == 3 + 3 + 5 + 1 + 2 * marks
    parts = [*Places(store, corpus, tokenizer).parts(0, store.num_tokens)]
    assert [(part.row, part.num_tokens) for part in parts] == [(0, 3 + marks), (2, 3 + marks), (3, 6)]


def test_other_vocabularies_have_rows_and_no_bytes(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<eos>": 0, "?": 1, "one": 2, "two": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    corpus, _ = load_corpora(DataRecipe(source=str(write_jsonl(tmp_path / "r.jsonl", ["one two", "", "two x one"]))))
    places = Places(tokenize(corpus, words), corpus, words)
    file = str(tmp_path / "r.jsonl")
    assert [*places.parts(1, 6)] == [(0, 2, file, 0, None), (2, 3, file, 2, None)]
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "one": 2, "two": 3}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    unknown = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")  # "x" looks like a separator
    places = Places(tokenize(corpus, unknown), corpus, unknown)
    assert [*places.parts(1, 6)] == [(0, 5, None, None, None)]


@pytest.fixture
def documents(tiny, tmp_path) -> dict:
    """The tiny recipe on a table."""
    rows = [f"Row {row}: the quick brown fox jumps over {row * row} lazy dogs." for row in range(100)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    return changed(tiny, data__source=str(source), evaluation__sample_tokens=1)


def test_a_step_saw_what_the_loop_takes_on_any_number_of_processes(documents):
    documents = changed(documents, data__seed=5, train__epochs=2, evaluation__every=1000, checkpoint__every=None)
    del documents["train"]["max_steps"]
    run = hf_gpt.train(documents)
    batches = Batches(run.output_dir)
    steps = [*batches]
    alone = prepare(Recipe.from_dict(documents)).plan
    assert len(steps) == batches.num_steps == 2 * alone.steps_per_epoch
    for plan in (alone, replace(alone, world_size=2, accumulation=1)):
        for step, windows in enumerate(steps, start=1):
            taken = [plan.micro_batches(step, rank) for rank in range(plan.world_size)]
            rows = [row for micro in zip(*taken) for batch in micro for row in zip(*batch.values())]
            rows = [(inputs, targets) for inputs, targets in rows if targets[0] >= 0]
            assert [window.token_ids for window in windows] == [[*i.tolist(), int(t[-1])] for i, t in rows]
    first = steps[0][0]
    assert first.text.replace("<|endoftext|>", "|") == "".join("|" if i == 256 else chr(i) for i in first.token_ids)
    assert {part.row for windows in steps for window in windows for part in window.documents} == {*range(91)}


def test_the_command_shows_windows_and_prints_json(documents, capsys):
    run_dir = documents["output_dir"]
    del documents["train"]["max_steps"]
    hf_gpt.train(changed(documents, train__max_tokens=2 * 4 * 32))
    assert Batches(run_dir).num_steps == 2
    assert main(["batch", run_dir, "--step", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("step 2, epoch 1: 4 windows\n  window ")
    window = Batches(run_dir)[2][0]
    assert f"    '{window.text}'\n" in shown
    part = window.documents[0]
    assert (
        f"    {documents['data']['source']} row {part.row} from byte {part.offset}: {part.num_tokens} tokens" in shown
    )
    assert main(["batch", run_dir, "--step", "1", "--to", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["step"], one["epoch"], len(one["windows"])) for one in found["steps"]] == [(1, 1, 4), (2, 1, 4)]
    assert found["steps"][1]["windows"][0] == window.to_dict()
    assert [*window.to_dict()] == ["index", "start", "token_ids", "text", "documents"]
    assert window.to_dict()["documents"][0] == part._asdict()


def test_what_cannot_be_known_is_refused_in_one_line(documents, tmp_path, capsys):
    run_dir, source = documents["output_dir"], Path(documents["data"]["source"])
    hf_gpt.train(changed(documents, train__max_steps=4))
    assert "--step 5: the run has steps 1 to 4" in refused(capsys, "batch", run_dir, "--step", "5")
    assert "--step 0: the run has steps 1 to 4" in refused(capsys, "batch", run_dir, "--step", "0")
    assert "--to 1: is before --step" in refused(capsys, "batch", run_dir, "--step", "2", "--to", "1")
    assert "not a run" in refused(capsys, "batch", str(tmp_path), "--step", "1")
    branch = changed(documents, output_dir=f"{run_dir}-branch", train__max_steps=6)
    hf_gpt.train(branch, parent=f"{run_dir}@4")
    line = f"--step 4: the run has steps 5 to 6; those before are of {run_dir}"
    assert line in refused(capsys, "batch", branch["output_dir"], "--step", "4")
    assert Batches(branch["output_dir"])[5]
    text = source.read_text()
    source.write_text(text.replace("lazy", "busy"))
    assert "is no longer the text that the run was trained on" in refused(capsys, "batch", run_dir, "--step", "1")
    moved = source.replace(tmp_path / "moved.jsonl")
    moved.write_text(text)
    assert "no such file" in refused(capsys, "batch", run_dir, "--step", "1")


def test_places_are_kept_and_made_again_where_they_are_gone(documents, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    run = hf_gpt.train(changed(documents, train__max_steps=2))
    first = Batches(run.output_dir)[2]
    (kept,) = (tmp_path / "cache" / "places").glob("places-*/documents.npy")
    written = kept.stat().st_mtime_ns
    assert Batches(run.output_dir)[2] == first
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:-8] + b"12345678")  # another file's
    assert Batches(run.output_dir)[2] == first
    shutil.rmtree(tmp_path / "cache")
    assert Batches(run.output_dir)[2] == first


def test_a_run_of_an_earlier_version_is_read(monkeypatch, tmp_path):
    earlier = Path(__file__).parent / "fixtures" / "earlier_run"
    shutil.copytree(earlier, tmp_path / "earlier_run")
    monkeypatch.chdir(tmp_path / "earlier_run")
    text = Path("corpus.txt").read_bytes()
    windows = Batches("run")[3]
    assert len(windows) == 4
    for window in windows:
        (part,) = window.documents
        assert (part.file, part.row, len(window.token_ids)) == ("corpus.txt", None, 17)
        assert text[part.offset :].startswith(window.text.encode())
