"""lm-eval's tasks on a run's checkpoints: minimal pairs in BLiMP's form, written here, and a text to be continued.

Of lm-eval's own tasks one is tried, whose text a Hub on loopback has.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forking import ForkServer
from hub_server import HubServer

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.benchmarks import benchmark
from hf_gpt.checkpoint import load_model
from hf_gpt.cli import main
from hf_gpt.errors import UserError
from hf_gpt.hub.card import add_benchmarks
from hf_gpt.hub.card_merge import compose, merge
from hf_gpt.report.plots import benchmark_plots
from hf_gpt.report.records import read_benchmarks, read_run

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'hf_gpt[eval]'")

# The good one first. What decides is agreement, order, case or a missing word.
PAIRS = [
    ("The cats on the mat are grey.", "The cats on the mat is grey."),
    ("The king of the hills was old.", "The king of the hills were old."),
    ("These apples taste sweet.", "This apples taste sweet."),
    ("Nobody has ever seen it.", "Somebody has ever seen it."),
    ("She hurt herself today.", "She hurt himself today."),
    ("The door that he painted fell.", "The door that him painted fell."),
    ("What did you give to her?", "What did you give it to her?"),
    ("He put the cup on the shelf.", "He put the cup."),
    ("There is a mouse in the barn.", "There is every mouse in the barn."),
    ("They have eaten all the bread.", "They have ate all the bread."),
    ("Line 7: the quick brown fox.", "Line 7: fox brown quick the."),
    ("A lazy dog sleeps.", "A lazy dog sleep."),
]
WORDS = [("Line 3: the quick brown", " fox"), ("over 9 lazy", " dogs"), ("the quick", " brown")]
MILESTONES = [4, 8]


def write_task(folder: Path, name: str, rows: list[dict], **config) -> None:
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(data)}},
        "validation_split": "train",
    }
    task = {"task": name, **source, "metadata": {"version": 1.0}, **config}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


ACCURACY = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
AS_BLIMP = {
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "doc_to_target": 0,
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "num_fewshot": 0,
    "metric_list": ACCURACY,
}
AS_LAMBADA = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{start}}",
    "doc_to_target": "{{end}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
}


def write_tasks(folder: Path, pairs=PAIRS) -> str:
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
    write_task(folder, "pairs", rows, **AS_BLIMP)
    write_task(folder, "agreement", rows[:5], **AS_BLIMP)
    write_task(folder, "words", [{"start": start, "end": end} for start, end in WORDS], **AS_LAMBADA)
    group = {"group": "both", "task": ["pairs", "agreement"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    return str(folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> str:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "of mine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(
        "".join(f"Line {i}: the quick brown fox jumps over {i} lazy dogs.\n" for i in range(200))
    )
    hf_gpt.train(
        {
            "output_dir": str(folder / "run"),
            "model": {"context_length": 48, "emb_dim": 32, "n_layers": 1, "n_heads": 2},
            "tokenizer": {"name": "bytes"},
            "data": {"source": str(folder / "text.txt"), "validation_fraction": 0.1},
            "optimizer": {"lr": 1e-2},
            "train": {"max_steps": 12, "batch_size": 4, "device": "cpu"},
            "evaluation": {"every": 12, "tokens": 320, "prompts": []},
            "checkpoint": {"every": 4, "keep": 1, "milestones": {"steps": MILESTONES}},
        }
    )
    return folder / "run"


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A run of one's own to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@torch.no_grad()
def log_probability(model, tokenizer, start: str, end: str) -> float:
    """Of `end` after `start`, or after the end of another text; added up by hand."""
    before = tokenizer(start)["input_ids"] or [tokenizer.eos_token_id]
    ids = [*before, *tokenizer(end)["input_ids"]]
    found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(found[at - 1, ids[at]].item() for at in range(len(before), len(ids)))


def accuracy(folder: Path, pairs) -> float:
    model, tokenizer = load_model(str(folder), "cpu")
    better = [
        log_probability(model, tokenizer, "", f" {good}") > log_probability(model, tokenizer, "", f" {bad}")
        for good, bad in pairs
    ]
    return sum(better) / len(better)


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]


def test_accuracies_of_all_checkpoints_are_those_of_sentence_log_probabilities(run_dir, tasks):
    found = benchmark(str(run_dir), ["pairs", "words"], include_path=tasks, checkpoints="all", device="cpu")
    folders = checkpoint.saved(run_dir)
    assert folders[:2] == checkpoint.milestones(run_dir)
    assert folders[2:] == checkpoint.checkpoints(run_dir)  # the milestones have no training state any more
    assert [line["step"] for line in found] == [4, 8, 12]
    assert [line["tokens"] for line in found] == [4 * 4 * 48, 8 * 4 * 48, 12 * 4 * 48]
    for line, folder in zip(found, folders, strict=True):
        assert line["model"] == folder.name
        assert line["weights"] == checkpoint.listed(folder)["model.safetensors"][1]
        assert line["results"]["pairs"]["metrics"]["acc"] == pytest.approx(accuracy(folder, PAIRS))
        model, tokenizer = load_model(str(folder), "cpu")
        mean = sum(log_probability(model, tokenizer, *word) for word in WORDS) / len(WORDS)
        assert line["results"]["words"]["metrics"]["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-4)
        assert line["results"]["words"]["documents"] == len(WORDS)
    perplexities = [line["results"]["words"]["metrics"]["perplexity"] for line in found]
    assert perplexities[0] > perplexities[1] > perplexities[2]
    assert lines_of(run_dir) == found


def test_nothing_is_computed_twice_and_what_differs_is(run_dir, tasks, tmp_path, monkeypatch):
    def evaluate(*names, place=tasks, **how):
        said = []
        benchmark(str(run_dir), names, include_path=place, device="cpu", say=said.append, **how)
        return said

    evaluate("pairs")
    assert evaluate("pairs", "words")[:2] == ["step-00000012: pairs: known already", "step-00000012: words ..."]
    before = lines_of(run_dir)
    assert [[*line["results"]] for line in before] == [["pairs"], ["words"]]
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "load_model", None)  # no model is loaded
        assert evaluate("words", "pairs") == ["step-00000012: words, pairs: known already"]
        elsewhere = write_tasks(tmp_path / "elsewhere")
        assert evaluate("pairs", place=elsewhere) == ["step-00000012: pairs: known already"]
    assert lines_of(run_dir) == before
    assert evaluate("pairs", limit=5) == ["step-00000012: pairs ..."]
    assert lines_of(run_dir)[-1]["results"]["pairs"]["documents"] == 5
    assert lines_of(run_dir)[-1]["results"]["pairs"]["metrics"]["acc"] == accuracy(run_dir, PAIRS[:5])
    assert evaluate("words", num_fewshot=1) == ["step-00000012: words ..."]
    assert lines_of(run_dir)[-1]["results"]["words"]["num_fewshot"] == 1
    assert evaluate("pairs", num_fewshot=1) == ["step-00000012: pairs: known already"]  # the task says 0
    other = write_tasks(tmp_path / "other", PAIRS[1:])
    assert evaluate("pairs", place=other) == ["step-00000012: pairs ..."]
    assert len(lines_of(run_dir)) == 5
    assert evaluate("words") == ["step-00000012: words: known already"]  # the newest line has it with an example
    assert evaluate("pairs") == ["step-00000012: pairs: known already"]


def test_a_group_has_its_own_figure_and_those_of_its_parts(run_dir, tasks):
    (line,) = benchmark(str(run_dir), ["both"], include_path=tasks, device="cpu")
    both = line["results"]["both"]
    of_all, of_five = accuracy(run_dir, PAIRS), accuracy(run_dir, PAIRS[:5])
    assert both["metrics"]["acc"] == pytest.approx((12 * of_all + 5 * of_five) / 17)
    assert {name: part["acc"] for name, part in both["parts"].items()} == {"pairs": of_all, "agreement": of_five}


def test_results_are_curves_in_the_report_and_metadata_of_the_card(run_dir, tasks):
    card = run_dir / "checkpoints" / "step-00000008" / "README.md"
    card.write_text(card.read_text() + "\nI wrote this.\n")
    found = benchmark(str(run_dir), ["pairs"], include_path=tasks, checkpoints="all", device="cpu")
    page = (run_dir / "report.html").read_text()
    assert "Benchmarks: acc" in page
    for line in found:
        value, folder = line["results"]["pairs"]["metrics"]["acc"], run_dir / "checkpoints" / line["model"]
        assert f"{value:.4f}" in page
        (entry,) = yaml.safe_load((folder / "README.md").read_text().split("---")[1])["model-index"]
        (result,) = [result for result in entry["results"] if result["dataset"]["type"] == "pairs"]
        assert result["dataset"]["args"] == {"num_few_shot": 0}
        assert result["metrics"] == [{"type": "acc", "value": round(value, 6), "name": "acc"}]
        checkpoint.verify(folder)
    assert "I wrote this." in card.read_text()
    once = card.read_text()
    add_benchmarks(card.parent, run_dir)
    assert card.read_text() == once
    benchmark(str(card.parent), ["words"], include_path=tasks, device="cpu")
    (entry,) = yaml.safe_load(card.read_text().split("---")[1])["model-index"]
    assert [result["dataset"]["type"] for result in entry["results"]] == ["pairs", "words"]
    unmade = compose({"library_name": "transformers", "license": "mit"}, {"about": "New."})
    assert "model-index" not in merge(unmade, card.read_text())  # the next push makes them anew
    plot, of_words = benchmark_plots(read_run(run_dir))
    assert (plot.y_label, of_words.y_label) == ("acc", "perplexity")
    (curve,) = plot.curves
    assert plot.x_label == "tokens seen"
    assert curve.x.tolist() == [line["tokens"] for line in found]
    assert curve.y.tolist() == [line["results"]["pairs"]["metrics"]["acc"] for line in found]


def test_lines_of_strangers_are_left_out_of_report_and_card(run_dir, tasks):
    odd = [
        {"step": 8, "results": 3},
        {"step": 8, "results": {"a": 1, "b": {"metrics": {"acc": "x"}}}},
        [],
        {"step": -1},
    ]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd) + '{"torn')
    (line,) = benchmark(str(run_dir), ["pairs"], include_path=tasks, device="cpu")
    assert lines_of_last(run_dir) == line
    assert "evaluations.jsonl: line 3 is damaged (and 2 more)" in (run_dir / "report.html").read_text()


def test_results_of_weights_that_a_step_had_before_are_not_shown(run_dir, tasks):
    benchmark(str(run_dir), ["pairs"], include_path=tasks, checkpoints="all", device="cpu")
    last = checkpoint.saved(run_dir)[-1]
    changed = {**lines_of_last(run_dir), "weights": "0" * 64}
    changed["results"] = {"pairs": {"metrics": {"acc": 0.123456}}}
    with (run_dir / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(changed) + "\n")
    found = read_benchmarks(run_dir)
    assert [one.step for one in found] == [4, 8, 12]
    assert found[-1].value == accuracy(last, PAIRS)
    shutil.rmtree(last)  # then it is the newest that is known of this step
    assert read_benchmarks(run_dir)[-1].value == 0.123456


def lines_of_last(run_dir: Path) -> dict:
    return json.loads((run_dir / "evaluations.jsonl").read_text().splitlines()[-1])


def test_milestones_alone(run_dir, tasks):
    found = benchmark(str(run_dir), ["pairs"], include_path=tasks, checkpoints="milestones", device="cpu")
    assert [(line["step"], line["tokens"]) for line in found] == [(step, step * 4 * 48) for step in MILESTONES]
    for line in found:
        folder = run_dir / "checkpoints" / line["model"]
        assert line["results"]["pairs"]["metrics"]["acc"] == accuracy(folder, PAIRS)


def test_a_model_that_is_no_checkpoint_leaves_no_file(run_dir, tasks, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(run_dir / "checkpoints" / "step-00000012", model, ignore=shutil.ignore_patterns("training_state"))
    (line,) = benchmark(str(model), ["pairs"], include_path=tasks, device="cpu")
    assert line["weights"] == checkpoint.listed(run_dir / "checkpoints" / "step-00000012")["model.safetensors"][1]
    assert line["results"]["pairs"]["metrics"]["acc"] == accuracy(model, PAIRS)
    assert "step" not in line
    assert not list(tmp_path.rglob("evaluations.jsonl"))


def test_revisions_of_a_hub_id(run_dir, tasks, tmp_path):
    with HubServer() as hub:
        folders = {"main": 4, "chck_2": 8}
        for branch, step in folders.items():
            folder = run_dir / "checkpoints" / f"step-{step:08d}"
            hub.add_repo(f"someone/{branch}", {path.name: path for path in folder.iterdir() if path.is_file()})
        tree = hub.repos["model", "someone/chck_2"].branches["main"].tree
        hub.repos["model", "someone/main"].commit("chck_2", None, tree, "two million words")
        commands = ForkServer(hub.environment(tmp_path / "home"))
        try:
            how = ("--tasks", "pairs", "--include-path", tasks, "--json", "--device", "cpu")
            code, printed = commands.run("evaluate", "someone/main", "--revisions", "main,chck_2", *how)
        finally:
            commands.close()
    assert code == 0, printed
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["evaluations"]
    assert [line["model"] for line in found] == ["someone/main@main", "someone/main@chck_2"]
    for line, step in zip(found, folders.values(), strict=True):
        folder = run_dir / "checkpoints" / f"step-{step:08d}"
        assert line["weights"] == checkpoint.weights_hash(folder)
        assert line["results"]["pairs"]["metrics"]["acc"] == accuracy(folder, PAIRS)


def test_a_task_of_lm_evals_own_takes_its_text_from_the_hub(run_dir, tmp_path):
    """BLiMP's, with pairs of ours in place of the published ones."""
    card = "configs:\n- config_name: adjunct_island\n  data_files:\n  - {split: train, path: pairs.jsonl}"
    rows = "".join(json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in PAIRS)
    flags = ("evaluate", str(run_dir), "--tasks", "blimp_adjunct_island", "--json", "--device", "cpu")
    with HubServer() as hub:
        files = {"README.md": f"---\n{card}\n---\n".encode(), "pairs.jsonl": rows.encode()}
        hub.add_repo("nyu-mll/blimp", files, kind="dataset")
        commands = ForkServer(hub.environment(tmp_path / "home"))
        try:
            code, printed = commands.run(*flags)
            assert code == 0, printed
        finally:
            commands.close()
    (found,) = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["evaluations"]
    assert found["results"]["blimp_adjunct_island"]["metrics"]["acc"] == accuracy(run_dir, PAIRS)


def test_the_command_prints_a_line_for_each_result(run_dir, tasks, capsys):
    flags = ["--tasks", "pairs, words", "--include-path", tasks, "--device", "cpu"]
    assert main(["evaluate", str(run_dir), *flags]) == 0
    pairs, words = capsys.readouterr().out.splitlines()
    assert pairs == f"step-00000012   pairs   acc {accuracy(run_dir, PAIRS):.4f}"
    assert words.startswith("step-00000012   words   perplexity ")
    assert main(["evaluate", str(run_dir), *flags, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert found["results"].keys() == {"pairs", "words"}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--tasks", "pears"], "--tasks pears: no such task in lm-eval and DIR; did you mean pairs?"),
        (["--tasks", ","], "--tasks: names no task"),
        (["--tasks", "pairs", "--limit", "0"], "--limit 0: must be 1 or more"),
        (["--tasks", "pairs", "--num-fewshot", "-1"], "--num-fewshot -1: must be 0 or more"),
        (["--tasks", "pairs", "--revisions", "a"], "--revisions: are of a Hub id; of a run, name its checkpoints"),
        (["--tasks", "pairs", "--stride", "4"], "--stride: goes with --text or --dataset, not with --tasks"),
        (["--text", "x", "--limit", "4"], "--limit: goes with --tasks"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(run_dir, tasks, capsys, flags, line):
    place = ["--include-path", tasks] if "--tasks" in flags else []
    assert main(["evaluate", str(run_dir), *flags, *place]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line.replace("DIR", tasks) in err
    assert not (run_dir / "evaluations.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("task: a\nprocess_docs: !function code.run\n", "names Python code"),
        ("task: a\nprocess_docs: !<!function> code.run\n", "names Python code"),
        ("task: a\nmetadata: !!python/name:os.system\n", "names Python code"),
        ("task: a\nclass: code.Task\n", "is a task in Python"),
        ("group: a\ntask:\n- {task: b, include: hidden/inner.txt}\n", "inner.txt: names Python code"),
        ("task: [\n", "cannot be read as YAML"),
    ],
)
def test_a_folder_of_tasks_is_data(run_dir, tmp_path, text, problem):
    folder = Path(write_tasks(tmp_path / "tasks"))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    (folder / "hidden").mkdir()
    (folder / "hidden" / "inner.txt").write_text("process_docs: !function code.run\n")
    (folder / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        benchmark(str(run_dir), ["pairs"], include_path=str(folder), device="cpu")
    assert not (tmp_path / "was run").exists()


def test_templates_and_metrics_of_a_task_run_nothing(run_dir, tmp_path):
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    write_task(tmp_path / "tasks", "escapes", rows, **{**AS_BLIMP, "doc_to_text": escape})
    fetched = [{"metric": "someone/metric", "aggregation": "mean", "higher_is_better": True}]
    write_task(tmp_path / "tasks", "fetches", rows, **{**AS_BLIMP, "metric_list": fetched})
    before = sys.modules.get("evaluate")
    for name, problem in (
        ("escapes", "escapes: SecurityError: "),
        ("fetches", "lm-eval has no metric someone/metric"),
    ):
        with pytest.raises(UserError, match=problem):
            benchmark(str(run_dir), [name], include_path=str(tmp_path / "tasks"), device="cpu")
    assert sys.modules.get("evaluate") is before
    assert not (run_dir / "evaluations.jsonl").exists()


def test_a_task_that_fails_is_named_and_leaves_nothing(run_dir, tmp_path):
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    write_task(tmp_path / "tasks", "gone", rows, **AS_BLIMP)
    (tmp_path / "tasks" / "gone.jsonl").unlink()
    write_task(tmp_path / "tasks", "field", rows, **{**AS_BLIMP, "doc_to_text": "{{sentence_god}}"})
    write_task(tmp_path / "tasks", "kind", rows, **{**AS_BLIMP, "output_type": "essay"})
    write_task(tmp_path / "tasks", "long", [{"sentence_good": "a" * 49, "sentence_bad": "b"}], **AS_BLIMP)
    problems = {
        "gone": "gone.jsonl",
        "field": "'sentence_god' is undefined",
        "kind": "invalid output_type 'essay'",
        "long": "longer than the 48 tokens that the model takes",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=f"^tasks {name}: .*{problem}"):
            benchmark(str(run_dir), [name], include_path=str(tmp_path / "tasks"), device="cpu")
    assert not (run_dir / "evaluations.jsonl").exists()


def test_a_task_of_lm_evals_own_says_that_it_needs_the_hub(run_dir):
    problem = "its text is on the Hub: HF_HUB_OFFLINE is set, and it is not in the cache$"
    with pytest.raises(UserError, match=f"^tasks blimp_adjunct_island: it is lm-eval's own, and {problem}"):
        benchmark(str(run_dir), ["blimp_adjunct_island"], device="cpu")


def test_without_lm_eval_a_line_names_the_extra(run_dir, tasks, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"tasks: needs lm-eval; pip install 'hf_gpt\[eval\]'"):
        benchmark(str(run_dir), ["pairs"], include_path=tasks)
