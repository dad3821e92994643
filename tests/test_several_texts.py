"""Runs that are validated on several texts: their losses, the best checkpoint, resuming, and who shows them."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.cli import main
from hf_gpt.evaluation import bits_per_byte, loss_on_windows, targets_and_bytes
from hf_gpt.report.page import write_report
from hf_gpt.report.records import read_run
from hf_gpt.training.data import prepare_data
from hf_gpt.training.run_log import read_metrics

CLOCK = {"seconds", "tokens_per_second", "mfu", "peak_memory_bytes"}


@pytest.fixture
def several(tiny, tmp_path) -> dict:
    """The tiny recipe with two more texts. Training makes the dialogue's characters less likely with each step."""
    (tmp_path / "dialogue").mkdir()
    (tmp_path / "dialogue" / "a.txt").write_text("".join(f"- Hello {i}. - Goodbye {i}!\n" for i in range(40)))
    rows = [json.dumps({"id": str(i), "story": chr(0x4E00 + 7 * i) * 40}) + "\n" for i in range(20)]
    (tmp_path / "odd.jsonl").write_text("".join(rows))
    texts = {
        "dialogue": str(tmp_path / "dialogue"),
        "odd": {"source": str(tmp_path / "odd.jsonl"), "text_column": "story"},
    }
    tiny["evaluation"] |= {"datasets": texts, "prompts": []}
    tiny["checkpoint"]["keep"] = None
    tiny["optimizer"]["lr"] = 3e-2
    return tiny


def evaluations(run) -> list[dict]:
    return [line for line in run.metrics if "eval_train_loss" in line]


def best_of(run_dir) -> str | None:
    pointer = Path(run_dir) / "checkpoints" / "best"
    return pointer.read_text().strip() if pointer.exists() else None


def lowest(run, metric: str) -> str:
    saved = {checkpoint.step_of(path) for path in checkpoint.saved(run.output_dir)}
    line = min((line for line in evaluations(run) if line["step"] in saved), key=lambda line: line[metric])
    return f"step-{line['step']:08}"


# Evaluating ---------------------------------------------------------------------------------------------------------


def test_each_text_is_evaluated_like_the_validation_text(several):
    run = hf_gpt.train(several)
    data, last = prepare_data(run.recipe), evaluations(run)[-1]
    loss = hf_gpt.CausalLMLoss(run.model)
    for text in ("validation", "validation/dialogue", "validation/odd"):
        windows = data.evaluated[text]
        assert last[f"{text}_loss"] == pytest.approx(loss_on_windows(loss, windows, 512), rel=1e-5)
        counted = targets_and_bytes(windows, run.tokenizer, 512)
        bits = last["bits_per_byte" if text == "validation" else f"{text}_bits_per_byte"]
        assert bits == pytest.approx(bits_per_byte(last[f"{text}_loss"], *counted))
    assert data.evaluated["validation/odd"].store.num_documents == 20
    assert last["perplexity"] == pytest.approx(math.exp(last["validation_loss"]))
    assert last["validation/dialogue_loss"] > evaluations(run)[0]["validation/dialogue_loss"] + 0.5
    environment = json.loads((run.output_dir / "environment.json").read_text())
    assert environment["text"] == {name: windows.store.path.name for name, windows in data.evaluated.items()}
    assert environment["sources"]["validation/odd"]["files"][0][0] == "odd.jsonl"


def test_training_and_the_other_losses_are_the_same_bit_for_bit(several, tmp_path):
    run = hf_gpt.train(several)
    plain = hf_gpt.train(
        {
            **several,
            "output_dir": str(tmp_path / "plain"),
            "evaluation": {key: value for key, value in several["evaluation"].items() if key != "datasets"},
        }
    )

    def without(lines):
        return [{k: v for k, v in line.items() if k not in CLOCK and "validation/" not in k} for line in lines]

    assert without(run.metrics) == without(plain.metrics)
    weights, others = (load_file(one.checkpoints[-1] / "model.safetensors") for one in (run, plain))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_written_recipe_reads_the_texts_as_they_were_read(several, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "a line\\n"}\n{"text": ""}\n' * 40)
    several["evaluation"]["datasets"]["lines"] = str(tmp_path / "lines.jsonl")
    several["train"]["max_steps"] = 0
    run = hf_gpt.train(several)
    separators = {name: text.separator for name, text in run.recipe.evaluation.datasets.items()}
    assert separators == {"dialogue": True, "odd": True, "lines": False}  # by its own kind, whatever training's is
    again = hf_gpt.Recipe.from_yaml(run.output_dir / "recipe.yaml", ["--output_dir", str(tmp_path / "again")])
    environments = [json.loads((hf_gpt.train(again).output_dir / "environment.json").read_text())]
    environments.append(json.loads((run.output_dir / "environment.json").read_text()))
    assert environments[0]["text"] == environments[1]["text"]


def test_splits_configurations_and_blank_lines(several, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text(f"{split}\n\n" * 30)
    several["data"]["drop_blank_lines"] = True
    several["evaluation"]["datasets"] = {
        "held": str(folder),
        "test": {"source": str(folder), "split": "test"},
        "both": [str(folder / "test.txt"), str(folder / "train.txt")],
    }
    data = prepare_data(hf_gpt.Recipe.from_dict(several))
    found = {name: data.tokenizer.decode(windows.store.tokens) for name, windows in data.evaluated.items()}
    assert found["validation/held"] == "validation\n" * 30
    assert found["validation/test"] == "test\n" * 30
    assert found["validation/both"] == "test\n" * 30 + "<|endoftext|>" + "train\n" * 30


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("nowhere.txt", "evaluation.datasets.more.source: nowhere.txt: no such file or folder"),
        ({"source": "odd.jsonl"}, r"evaluation.datasets.more.text_column: .* 'id' or 'story'"),
        ({"source": "odd.jsonl", "text_column": "tale"}, "evaluation.datasets.more.text_column: "),
        (
            {"source": "odd.jsonl", "text_column": "story", "split": "test"},
            "evaluation.datasets.more.split: odd.jsonl",
        ),
        (
            {"source": "dialogue", "text_column": "story"},
            "evaluation.datasets.more.text_column: dialogue has no columns",
        ),
        ({"source": "text.txt", "revision": "main"}, "evaluation.datasets.more.revision: text.txt has no revisions"),
        ("builtin:other", "evaluation.datasets.more.source: there is no 'builtin:other'"),
        ("short.txt", "short.txt: 5 tokens, and a window takes 33; lower .* or give more text to validate on"),
        ("empty.txt", "evaluation.datasets.more.source: empty.txt: empty"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_first(several, tmp_path, monkeypatch, text, refusal):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty.txt").write_text("")
    several["evaluation"]["datasets"] = {"more": text}
    with pytest.raises(hf_gpt.UserError, match=refusal):
        hf_gpt.train(several)
    assert not Path(several["output_dir"]).exists()


@pytest.mark.parametrize(
    ("evaluation", "refusal"),
    [
        ({"datasets": {"a/b": "x"}}, "evaluation.datasets.a/b: a text's name has letters"),
        ({"datasets": {"": "x"}}, "a text's name has letters"),
        ({"datasets": {"a b": "x"}}, "a text's name has letters"),
        ({"datasets": {"-a": "x"}}, "a text's name has letters"),
        ({"datasets": {"a": {"sorce": "x"}}}, "evaluation.datasets.a.sorce: unknown key; did you mean 'source'"),
        ({"datasets": {"a": {"split": "x"}}}, "evaluation.datasets.a.source: is missing"),
        ({"datasets": {"a": 5}}, "evaluation.datasets.a.source: must be text, found 5"),
        ({"datasets": ["a"]}, "evaluation.datasets: must be a section with keys"),
        ({"best_on": "a"}, "'best_on' is none of 'datasets', found a"),
        ({"datasets": {"code": "x"}, "best_on": "cod"}, "found cod; did you mean 'code'"),
    ],
)
def test_what_is_no_name_or_no_text_is_refused(evaluation, refusal):
    with pytest.raises(hf_gpt.UserError, match=refusal):
        hf_gpt.Recipe.from_dict({"evaluation": evaluation})


def test_flags_set_and_unset_texts(tmp_path):
    (tmp_path / "r.yaml").write_text("evaluation: {datasets: {no: x, code: {source: y}}}")  # Norwegian

    def read(*flags):
        datasets = hf_gpt.Recipe.from_yaml(tmp_path / "r.yaml", flags).evaluation.datasets
        return {name: (text.source, text.split) for name, text in datasets.items()}

    assert read() == {"no": ("x", None), "code": ("y", None)}
    assert read("--evaluation.datasets.code.split", "test")["code"] == ("y", "test")
    assert read("--evaluation.datasets.code.source", "a #b")["code"] == ("a #b", None)
    assert read("--evaluation.datasets.more", "[a, b]")["more"] == (["a", "b"], None)
    assert read("--evaluation.datasets.code", "null") == {"no": ("x", None)}
    assert read("--evaluation.datasets", "null") == {}


def test_what_a_run_sees_is_said_text_by_text(several, tmp_path):
    several["evaluation"]["datasets"]["same"] = several["data"]["source"]
    data = prepare_data(hf_gpt.Recipe.from_dict(several))
    lines = [line for line in data.describe() if line.startswith("validation ")]
    assert lines[1].startswith("validation dialogue, dialogue: 1,020 characters, 1,020 tokens")
    assert data.facts()["validation/odd"]["documents"] == 20
    assert [note for note in data.notes if note.startswith("evaluation.datasets.same: ")] == list(data.notes)
    assert "is also trained on" in data.notes[0]


def test_a_line_of_metrics_has_numbers_for_texts(tmp_path):
    lines = [{"step": 1, "validation/a_loss": 2.5}, {"step": 2, "validation/a_loss": "low"}]
    lines.append({"step": 3, "validation/a_loss": None, "note": None})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = []
    assert read_metrics(tmp_path, said.append) == [lines[0], {"step": 3, "note": None}]
    assert "line 2 is damaged" in said[0]


# The best checkpoint ------------------------------------------------------------------------------------------------


def test_best_follows_the_first_text_or_the_one_that_is_named(several, tmp_path):
    first = hf_gpt.train(several)
    assert best_of(first.output_dir) == lowest(first, "validation_loss") == "step-00000012"
    several["evaluation"]["best_on"] = "dialogue"
    named = hf_gpt.train({**several, "output_dir": str(tmp_path / "named")})
    assert best_of(named.output_dir) == lowest(named, "validation/dialogue_loss") == "step-00000004"
    assert any(line.endswith("(best on dialogue: step-00000004)") for line in named.summary())
    del several["data"]["validation_fraction"]
    several["evaluation"]["best_on"] = None
    alone = hf_gpt.train({**several, "output_dir": str(tmp_path / "alone")})
    last = evaluations(alone)[-1]
    assert not {"validation_loss", "bits_per_byte"} & last.keys()
    assert last["perplexity"] == pytest.approx(math.exp(last["validation/dialogue_loss"]))
    assert best_of(alone.output_dir) == lowest(alone, "validation/dialogue_loss")


def test_where_another_text_judges_the_best_is_chosen_anew(several, capsys):
    several["checkpoint"] |= {"every": 6, "milestones": {"steps": [4]}}
    several["evaluation"]["every"] = 2
    run = hf_gpt.train(several)
    assert best_of(run.output_dir) == "step-00000012"
    several["train"]["max_steps"] = 16
    several["evaluation"]["best_on"] = "dialogue"
    resumed = hf_gpt.train(several)
    assert "best       is judged by dialogue from here on: now step-00000004" in capsys.readouterr().err
    assert best_of(run.output_dir) == lowest(resumed, "validation/dialogue_loss") == "step-00000004"
    progress = json.loads((resumed.checkpoints[-1] / "training_state/state.json").read_text())["progress"]
    loss = next(line["validation/dialogue_loss"] for line in evaluations(resumed) if line["step"] == 4)
    assert (progress["best_step"], progress["best_on"]) == (4, "validation/dialogue")
    assert progress["best_validation_loss"] == loss
    several["train"]["max_steps"], several["evaluation"]["best_on"] = 20, None  # and back
    back = hf_gpt.train(several)
    assert best_of(run.output_dir) == lowest(back, "validation_loss")


def test_checkpoints_that_are_gone_or_were_not_evaluated_on_it_cannot_be_the_best(several, tmp_path, capsys):
    several["checkpoint"]["keep"] = 2
    texts = several["evaluation"].pop("datasets")
    run = hf_gpt.train(several)
    several["evaluation"] |= {"datasets": texts, "best_on": "dialogue"}
    hf_gpt.train(several)  # is at its end: nothing is trained
    assert "none of the checkpoints was evaluated on it" in capsys.readouterr().err
    assert best_of(run.output_dir) is None
    several["train"]["max_steps"] = 20
    resumed = hf_gpt.train(several)
    assert best_of(run.output_dir) == lowest(resumed, "validation/dialogue_loss") == "step-00000016"
    several["evaluation"] |= {"datasets": {}, "best_on": None}
    several["train"]["max_steps"] = 24
    assert lowest(hf_gpt.train(several), "validation_loss") == best_of(run.output_dir)


# Resuming -----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_what_an_uninterrupted_one_is(several, tmp_path):
    whole = hf_gpt.train(several)
    shutil.copytree(whole.output_dir, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000012")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000008")
    resumed = hf_gpt.train({**several, "output_dir": str(tmp_path / "cut")})
    assert resumed.metrics[-1]["step"] == 12

    def figures(run):
        return [{key: value for key, value in line.items() if key not in CLOCK} for line in run.metrics]

    assert figures(resumed) == figures(whole)
    states = [json.loads((run.checkpoints[-1] / "training_state/state.json").read_text()) for run in (whole, resumed)]
    assert [state["progress"].pop("seconds") > 0 for state in states] == [True, True]
    assert states[0] == states[1]


def test_texts_come_and_go_when_a_run_is_resumed_and_a_name_stays_one_text(several, tmp_path):
    dialogue = several["evaluation"]["datasets"].pop("dialogue")
    run = hf_gpt.train(several)
    odd = several["evaluation"]["datasets"].pop("odd")
    several["evaluation"]["datasets"]["dialogue"] = dialogue
    several["train"]["max_steps"] = 16
    resumed = hf_gpt.train(several)
    assert {"validation/odd_loss", "validation/dialogue_loss"} & evaluations(resumed)[-1].keys() == {
        "validation/dialogue_loss"
    }
    environment = json.loads((run.output_dir / "environment.json").read_text())
    assert list(environment["text"]) == ["eval_train", "validation", "validation/odd", "validation/dialogue"]
    assert {"validation/odd", "validation/dialogue"} < environment["sources"].keys()

    shutil.move(tmp_path / "odd.jsonl", tmp_path / "moved.jsonl")  # the same text elsewhere
    several["evaluation"]["datasets"]["odd"] = {**odd, "source": str(tmp_path / "moved.jsonl")}
    several["train"]["max_steps"] = 20
    assert "validation/odd_loss" in evaluations(hf_gpt.train(several))[-1]

    before = (run.output_dir / "metrics.jsonl").read_bytes()
    several["evaluation"]["datasets"]["odd"] = dialogue
    several["train"]["max_steps"] = 24
    with pytest.raises(hf_gpt.UserError, match=r"evaluation.datasets.odd: is another text than .* another name"):
        hf_gpt.train(several)
    assert (run.output_dir / "metrics.jsonl").read_bytes() == before


# Whoever shows them -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(several):
    several["evaluation"]["best_on"] = "dialogue"
    return hf_gpt.train(several)


def test_evaluate_takes_the_texts_of_a_run(run, several, tmp_path, capsys):
    found = hf_gpt.evaluate_run(str(run.output_dir), device="cpu")
    assert list(found) == ["validation", "validation/dialogue", "validation/odd"]
    dialogue = hf_gpt.evaluate_corpus(str(run.output_dir), several["evaluation"]["datasets"]["dialogue"], device="cpu")
    assert found["validation/dialogue"] == dialogue
    assert found["validation"].tokens == 1135  # the tenth that was held out
    assert main(["evaluate", str(run.output_dir), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {text: one.to_dict() for text, one in found.items()}
    newest = str(run.output_dir / "checkpoints" / "step-00000012")
    assert main(["evaluate", newest, "--tokens", "100", "--device", "cpu"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["text", "loss", "perplexity", "bits", "per", "byte"]
    newer = hf_gpt.evaluate_run(newest, tokens=100, device="cpu")
    assert [row.split()[:2] for row in rows] == [[text, f"{one.loss:.4f}"] for text, one in newer.items()]
    assert newer["validation/dialogue"].loss > found["validation/dialogue"].loss + 1

    (tmp_path / "dialogue" / "b.txt").write_text("more")
    with pytest.raises(hf_gpt.UserError, match="dialogue is no longer the dialogue of this run"):
        hf_gpt.evaluate_run(str(run.output_dir))
    with pytest.raises(hf_gpt.UserError, match="is not a run"):
        hf_gpt.evaluate_run(str(tmp_path / "dialogue"))


def test_a_run_without_a_validation_text_needs_one_to_be_named(tiny):
    del tiny["data"]["validation_fraction"]
    tiny["train"]["max_steps"] = 0
    with pytest.raises(hf_gpt.UserError, match="is validated on no text; name one"):
        hf_gpt.evaluate_run(str(hf_gpt.train(tiny).output_dir))


def test_the_report_shows_each_text_and_judges_by_the_one_that_best_follows(run):
    page = write_report(run.output_dir).read_text()
    last = evaluations(run)[-1]
    columns = {"loss on dialogue": "validation/dialogue_loss", "bits per byte on odd": "validation/odd_bits_per_byte"}
    assert all(f"<th>{name}</th>" in page and f"<td>{last[key]:.3f}</td>" in page for name, key in columns.items())
    assert "<dt>lowest loss on odd</dt>" in page
    assert "<strong>It overfits from step 4.</strong> Loss on dialogue was lowest there" in page
    assert "<code>checkpoints/step-00000004</code> (<code>checkpoints/best</code>)" in page
    assert "<th>dialogue</th><td>dialogue: 1,020 tokens</td>" in page
    record = read_run(run.output_dir)
    assert (record.texts, record.judge) == (
        ["validation", "validation/dialogue", "validation/odd"],
        "validation/dialogue",
    )


def test_runs_are_compared_on_the_texts_that_all_of_them_have(run, several, tmp_path):
    del several["data"]["validation_fraction"]
    other = hf_gpt.train({**several, "output_dir": str(tmp_path / "other")})
    files = hf_gpt.plot([run.output_dir, other.output_dir], tmp_path / "compared")
    page = Path(files[0]).read_text()
    assert "<th>lowest loss on dialogue</th>" in page
    assert "Every evaluation: loss on dialogue" in page
    assert "Loss on odd" in page
    assert "validated on different texts" not in page
    for one in (run, other):
        assert f"<td>{min(line['validation/dialogue_loss'] for line in evaluations(one)):.3f}" in page


def test_the_card_names_each_text_with_its_figures_and_no_private_path(run, tmp_path):
    folder = run.output_dir / "checkpoints" / "step-00000004"
    card, line = ModelCard.load(folder / "README.md"), evaluations(run)[1]
    assert f"| validation, dialogue: `dialogue` | {line['validation/dialogue_loss']:.3f} |" in card.text
    assert f"| Validation, odd | loss {line['validation/odd_loss']:.3f}," in card.text
    assert "| validation, odd | `odd.jsonl`<br>800 characters (2,400 bytes) in 20 documents" in card.text
    hashes = [row.split(" | ")[0] for row in card.text.splitlines() if row.startswith("| `") and len(row) > 70]
    assert hashes == ["| `text.txt`", "| `a.txt`", "| `odd.jsonl`"]
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert results["dialogue: dialogue", "loss"] == round(line["validation/dialogue_loss"], 6)
    assert results["odd: odd.jsonl", "bits_per_byte"] == round(line["validation/odd_bits_per_byte"], 6)
    assert results["odd: odd.jsonl", "perplexity"] == pytest.approx(math.exp(line["validation/odd_loss"]), rel=1e-6)
    assert len(results) == 9
    recipe = yaml.safe_load(card.text.partition("```yaml")[2].partition("```")[0])
    assert recipe["evaluation"]["datasets"]["odd"]["source"] == "odd.jsonl"
    assert str(tmp_path) not in card.content
