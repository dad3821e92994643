"""The model card: true to its checkpoint, safe to show, with code that works, and a person's words stay in it."""

import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_training import changed

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.data.corpus import load_corpora
from hf_gpt.data.token_store import tokenize
from hf_gpt.errors import UserError
from hf_gpt.evaluation import bits_per_byte, targets_and_bytes
from hf_gpt.hub.card import UNPUBLISHED, addressed, merge, model_card, write_card
from hf_gpt.hub.card_merge import compose
from hf_gpt.recipe import DataRecipe
from hf_gpt.training.data import prepare_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of twelve steps with checkpoints at 4, 8 and 12, and the text it read."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my text.txt").write_text(
        "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(200))
    )
    return hf_gpt.train(
        {
            "output_dir": str(folder / "a run"),
            "model": {"context_length": 32, "emb_dim": 32, "n_layers": 2, "n_heads": 2},
            "tokenizer": {"train": {"vocab_size": 300}},
            "data": {"source": str(folder / "my text.txt"), "validation_fraction": 0.1},
            "optimizer": {"lr": 3e-3},
            "train": {"max_steps": 12, "batch_size": 2, "log_every": 1, "device": "cpu"},
            "evaluation": {
                "every": 2,
                "tokens": 512,
                "prompts": ["Line", "fox"],
                "sample_tokens": 8,
                "temperature": 1,
            },
            "checkpoint": {"every": 4, "keep": None},
            "hub": {"license": "cc-by-sa-4.0"},
        }
    )


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run's files that a test may spoil: its folder and its last checkpoint."""
    run_dir = tmp_path / "a run"
    for path in trained.output_dir.rglob("*"):
        if path.is_file():
            target = run_dir / path.relative_to(trained.output_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return run_dir, run_dir / "checkpoints" / "step-00000012"


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# What is in it


def test_every_checkpoint_has_a_card_and_its_plot_and_stays_whole_when_a_person_writes_into_the_card(trained):
    for saved in trained.checkpoints:
        assert "loss.png" in json.loads((saved / checkpoint.MANIFEST).read_text())["files"]
        card = (saved / "README.md").read_text()
        (saved / "README.md").write_text(card + "A person's words.\n")
        checkpoint.verify(saved)
        (saved / "README.md").write_text(card)
        with Image.open(saved / "loss.png") as image:
            assert image.size == (1200, 750)
    assert (trained.output_dir / "loss.png").read_bytes() == (saved / "loss.png").read_bytes()
    assert (trained.checkpoints[0] / "loss.png").read_bytes() != (saved / "loss.png").read_bytes()


def test_a_card_shows_the_run_as_it_was_at_its_step(trained):
    for saved in trained.checkpoints:
        step = checkpoint.step_of(saved)
        card = (saved / "README.md").read_text()
        evaluated = next(line for line in trained.metrics if line["step"] == step and "perplexity" in line)
        assert f"loss {evaluated['validation_loss']:.3f}, perplexity {evaluated['perplexity']:,.1f}, " in card
        assert f"{evaluated['bits_per_byte']:.3f} bits per byte" in card
        shown = ["Before training", f"After step {step // 2}", f"After step {step}"]
        assert re.findall(r"^\*\*(.*)\*\*$", card, re.M) == shown
        for sample in trained.samples:
            if sample["prompt"] == "Line" and sample["step"] in (0, step // 2, step):
                visible = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in sample["text"])
                assert f"```text\n{visible}\n```" in card
        assert f"{trained.model.num_parameters():,}" in card
        assert ("Its training was not finished: these are the weights after" in card) == (step < 12)
        assert model_card(saved, trained.output_dir) == card  # now that the run has gone on


def test_the_metadata_is_what_the_hub_takes(trained):
    card = ModelCard((trained.checkpoints[-1] / "README.md").read_text())
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "cc-by-sa-4.0"
    assert "datasets" not in data  # a local file is none
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "a run"
    assert eval_results_to_model_index(name, results) == data["model-index"]
    last = trained.metrics[-1]
    assert {result.metric_type: result.metric_value for result in results} == {
        "loss": pytest.approx(last["validation_loss"], abs=1e-6),
        "perplexity": pytest.approx(last["perplexity"], abs=1e-6),
        "bits_per_byte": pytest.approx(last["bits_per_byte"], abs=1e-6),
    }
    for result in results:
        assert type(result.metric_value) is float
        assert result.task_type == "text-generation"
        assert (result.dataset_type, result.dataset_name) == ("text", "my text.txt (validation text)")
        assert (result.dataset_split, result.dataset_config, result.dataset_revision) == ("validation", None, None)


def test_a_dataset_of_the_hub_is_named_with_its_revision(copied):
    run_dir, saved = copied
    where = {"dataset": "owner/books", "config": "en", "split": "train", "revision": "0123abcd" * 5}

    def from_the_hub(environment):
        for kind, split in (("training", "train"), ("validation", "test")):
            text = environment["sources"][kind]
            del text["files"], text["num_files"], text["part"]
            environment["sources"][kind] = {**text, **where, "split": split, "source": f"owner/books (en, {split})"}

    edit_json(run_dir / "environment.json", from_the_hub)
    card = model_card(saved, run_dir)
    data = ModelCard(card).data
    assert data.datasets == ["owner/books"]
    for result in data.eval_results:
        found = (result.dataset_type, result.dataset_config, result.dataset_split, result.dataset_revision)
        assert found == ("owner/books", "en", "test", "0123abcd" * 5)
    assert "https://huggingface.co/datasets/owner/books" in card
    assert f"revision `{'0123abcd' * 5}`" in card
    cut = {"part": "the last 10% of its characters"}
    edit_json(run_dir / "environment.json", lambda values: values["sources"]["validation"].update(cut))
    data = ModelCard(model_card(saved, run_dir)).data
    assert {result.dataset_split for result in data.eval_results} == {None}


def test_figures_of_other_weights_are_no_metadata(tiny):
    run = hf_gpt.train(changed(tiny, train__max_steps=11))
    card = (run.checkpoints[-1] / "README.md").read_text()
    assert "Measured after step 8, 3 steps before these weights" in card
    assert "model-index" not in card
    assert "model_name" not in card


@pytest.mark.parametrize("vocabulary", ["bytes", 300])
def test_bits_per_byte_are_those_of_the_text_that_was_evaluated(tiny, vocabulary):
    if vocabulary != "bytes":
        tiny["tokenizer"] = {"train": {"vocab_size": vocabulary}}
    Path(tiny["data"]["source"]).write_text("Zürich, 東京 und Ωmega. " * 400, encoding="utf-8")
    run = hf_gpt.train(tiny)
    windows = prepare_data(run.recipe).evaluated["validation"]
    ids = windows.store.tokens[1 : min(len(windows), 512 // 32) * 32 + 1].tolist()
    num_bytes = len(run.tokenizer.decode(ids).replace("\ufffd", "").encode())  # characters cut in two at the ends:
    targets, counted = targets_and_bytes(windows, run.tokenizer, 512)
    assert targets == len(ids)
    assert 0 <= counted - num_bytes <= 4
    loss, found = run.metrics[-1]["validation_loss"], run.metrics[-1]["bits_per_byte"]
    assert found == pytest.approx(loss * len(ids) / math.log(2) / counted)
    if vocabulary == "bytes":
        assert found == pytest.approx(loss / math.log(2))
    assert bits_per_byte(loss, targets, counted) == found


def test_bytes_that_cannot_be_counted_are_left_out(trained):
    windows = prepare_data(trained.recipe).evaluated["validation"]
    other = dataclasses.replace(windows.store, num_bytes=windows.store.num_bytes + 1)
    assert targets_and_bytes(dataclasses.replace(windows, store=other), trained.tokenizer) is None


def test_separators_are_no_bytes(tmp_path, trained):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("Some words. " * 40)
    corpus, _ = load_corpora(DataRecipe(source=str(tmp_path)))
    assert [name for name, _ in corpus.origin["files"]] == ["a.txt", "b.txt", "c.txt"]
    store = tokenize(corpus, trained.tokenizer)
    windows = dataclasses.replace(prepare_data(trained.recipe).evaluated["validation"], store=store)
    targets, num_bytes = targets_and_bytes(windows, trained.tokenizer)
    assert targets <= store.num_tokens - 1
    assert num_bytes == len(trained.tokenizer.decode(store.tokens[1 : targets + 1], skip_special_tokens=True))


# Runs of other kinds


def card_of(recipe: dict, **options) -> str:
    run = hf_gpt.train(recipe, **options)
    card = (run.checkpoints[-1] / "README.md").read_text()
    ModelCard(card)
    return card


def test_a_run_without_prompts_or_evaluation(tiny):
    tiny["evaluation"] |= {"prompts": [], "first": 1000}
    card = card_of(changed(tiny, train__log_every=100, train__max_steps=4))
    assert "## Samples" not in card
    assert "The run has not evaluated the model yet." in card
    assert "model-index" not in card
    assert "none was given; ask the publisher before you use the model" in card
    assert "license" not in ModelCard(card).data.to_dict()


def test_a_checkpoint_before_the_first_loss_has_no_plot(tiny):
    tiny["evaluation"]["first"] = 1000
    run = hf_gpt.train(changed(tiny, train__log_every=9))
    with_plot = [(saved / "loss.png").is_file() for saved in run.checkpoints]
    assert "loss.png" in (run.checkpoints[-1] / "README.md").read_text()
    assert with_plot == [False, True]
    assert "loss.png" not in (run.checkpoints[0] / "README.md").read_text()


def test_a_run_without_validation_text(tiny):
    card = card_of(changed(tiny, data__validation_fraction=None))
    assert "No text was held out" in card
    assert "| validation | none |" in card
    assert "model-index" not in card


def test_the_untrained_model(tiny):
    card = card_of(changed(tiny, train__max_steps=0))
    assert "for 0 steps" in card
    assert "Tokens seen" not in card
    assert "loss.png" not in card


def test_a_run_that_counts_epochs(tiny):
    tiny["train"] = {"epochs": 0.05, "batch_size": 4, "device": "cpu"}
    assert "was not finished" not in card_of(tiny)


def test_a_run_that_goes_on_from_a_model_or_branches_off(trained, tmp_path):
    recipe = yaml.safe_load((trained.output_dir / "recipe.yaml").read_text())
    recipe["output_dir"] = str(tmp_path / "more")
    recipe["train"]["max_steps"] = 13
    more = {"from_pretrained": str(trained.checkpoints[0])}
    card = card_of({**recipe, "model": more, "tokenizer": {}, "output_dir": str(tmp_path / "further")})
    digest = hashlib.sha256((trained.checkpoints[0] / "model.safetensors").read_bytes()).hexdigest()
    assert f"trained from the weights of `a run step-00000004` (SHA-256 of its weights `{digest}`)" in card
    assert "from_pretrained: a run step-00000004" in card
    assert str(trained.output_dir.parent) not in card
    card = card_of(recipe, parent=f"{trained.output_dir}@8")
    assert "| branched off | after step 8 of the run `a run` |" in card
    assert str(trained.output_dir.parent) not in card


def test_several_processes_are_counted(copied):
    run_dir, saved = copied
    edit_json(saved / "training_state" / "state.json", lambda state: state.update(processes=4))
    assert "| hardware | 4 x cpu (" in model_card(saved, run_dir)


def test_a_run_of_before_there_were_cards(copied):
    run_dir, saved = copied
    edit_json(run_dir / "environment.json", lambda environment: environment.pop("sources"))
    card = model_card(saved, run_dir)
    assert "on a text that is not recorded" in card
    assert ModelCard(card).data.eval_results


def test_without_a_training_state_there_is_no_card_to_make(copied):
    run_dir, saved = copied
    (saved / "training_state" / "state.json").unlink()
    with pytest.raises(UserError, match=r"has no training_state/state.json, which says how far the run was"):
        write_card(saved, run_dir)


# How to load it


def code(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.M | re.S)


def test_the_code_in_a_card_works(trained, tmp_path, capsys):
    saved = trained.checkpoints[-1]
    card = addressed((saved / "README.md").read_text(), str(saved))
    with_package, remote_code, gpt2 = code(card, "python")
    exec(with_package, {})
    assert capsys.readouterr().out.startswith("Line")
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run([sys.executable, "-c", remote_code], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Line")
    (command,) = code(card, "bash")
    arguments = command.replace(str(saved), "SAVED").split()[1:]
    from hf_gpt.cli import main

    assert (
        main([str(saved) if word == "SAVED" else word.replace("gpt2-form", str(tmp_path / "g")) for word in arguments])
        == 0
    )
    exec(gpt2.replace("gpt2-form", str(tmp_path / "g")), {})


def test_the_models_name_on_the_hub_is_in_the_code(trained):
    saved = trained.checkpoints[-1]
    card = model_card(saved, trained.output_dir, repo_id="me/my-gpt")
    assert UNPUBLISHED not in card
    assert 'from_pretrained("me/my-gpt")' in card
    assert "\n# my-gpt\n" in card
    later = addressed((saved / "README.md").read_text(), "me/my-gpt")
    assert UNPUBLISHED not in later
    assert code(later, "python") == code(card, "python")
    mine = merge(later, later.replace("With the package", "I say: with the package"))
    assert "I say" in merge(later, mine)  # the marks know the text they are around


# What must not be in it


def test_private_things_stay_out(trained, tmp_path, monkeypatch):
    card = (trained.checkpoints[-1] / "README.md").read_text()
    folder = trained.output_dir.parent
    assert str(folder) not in card
    assert folder.name not in card
    assert "source: my text.txt" in card
    assert "output_dir: a run" in card
    assert hashlib.sha256((folder / "my text.txt").read_bytes()).hexdigest() in card
    assert os.uname().nodename not in card
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    home = tmp_path / "alice"
    home.mkdir()
    text = home / "secret folder" / "*.txt"
    text.parent.mkdir()
    (text.parent / "a.txt").write_text("Words of a text. " * 200)
    (text.parent / "b.txt").write_text("Words of another. " * 200)
    trained.tokenizer.save_pretrained(home / "tok")
    recipe = yaml.safe_load((trained.output_dir / "recipe.yaml").read_text())
    recipe |= {"output_dir": str(home), "tokenizer": {"name": str(home / "tok")}}
    recipe["data"] = {"source": str(text), "validation_source": str(text.parent / "b.txt")}
    recipe["model"] |= {"vocab_size": 300}
    card = card_of(recipe)
    for private in (str(tmp_path), "alice", "secret"):
        assert private not in card
    assert "# gpt\n" in card
    assert "name: tok" in card
    assert "source: '*.txt'" in card


HOSTILE = (
    "```\n</details><script>alert(1)</script>\n<!-- hf_gpt: end samples -->\n<!-- hf_gpt: begin about 00000000 -->\n"
    "````\n# Heading\n|a|b|\n---\n\x1b[31m\x00\u202e\u2028\r 東京 👩\u200d💻"
)


def test_samples_and_prompts_are_shown_and_break_nothing(copied):
    markdown_it = pytest.importorskip("markdown_it")
    run_dir, saved = copied
    harmless = model_card(saved, run_dir)
    lines = [{"step": step, "prompt": HOSTILE, "text": HOSTILE + str(step)} for step in (0, 6, 12)]
    (run_dir / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    recipe["evaluation"]["prompts"] = [HOSTILE]
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = model_card(saved, run_dir)

    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    before = markdown_it.MarkdownIt("commonmark").enable("table").parse(ModelCard(harmless).text)
    for kind in ("heading_open", "html_block", "fence", "table_open", "hr"):
        assert [t.type for t in tokens].count(kind) == [t.type for t in before].count(kind)
    assert not [
        t for t in tokens for child in t.children or [] if child.type == "html_inline" and "br" not in child.content
    ]
    shown = [t.content for t in tokens if t.type == "fence" and t.info == "text"]
    assert len(shown) == 3
    for text in shown:
        assert r"\x1b[31m\x00\u202e\u2028\r 東京 👩" + "\u200d💻" in text
    assert not set("\x1b\x00\u202e\u2028\r") & set(card)
    assert merge(card, card) == card
    assert merge(harmless, card) == harmless


def test_names_are_shown_and_break_nothing(copied):
    run_dir, saved = copied

    def rename(environment):
        environment["sources"]["training"]["source"] = "a|b`c` <b>\n# no"
        environment["sources"]["training"]["files"] = [["|`x`|\n<i>", "00" * 32]]
        environment["device_name"] = "|\n---\n<!-- hf_gpt: end training -->"

    edit_json(run_dir / "environment.json", rename)
    card = model_card(saved, run_dir)
    assert "\n# no" not in card
    assert merge(card, card) == card
    assert "| hardware | 1 x cpu (`\\|\\n---\\n<!-- hf_gpt: end training -->`)" in card


# Whose words are whose


OLD = compose(
    "tags:\n- hf_gpt\nlibrary_name: transformers\nold: 1", {"about": "# Name\n\nOld.", "use": "Use it.", "gone": "G"}
)
NEW = compose(
    "tags:\n- hf_gpt\n- new\nlibrary_name: transformers", {"about": "# Name\n\nNew.", "use": "Use it.", "samples": "S"}
)


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def data(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_that_nobody_touched_becomes_the_new_one():
    assert merge(NEW, OLD).replace("\n\n\n\n", "\n\n") == NEW
    assert merge(NEW, NEW) == NEW
    assert merge(NEW, "") == NEW
    assert data(merge(NEW, "---\nlicense: mit\n---\n")) == {"license": "mit", **data(NEW)}


def test_what_a_person_wrote_around_the_sections_stays_in_place():
    mine = OLD.replace("<!-- hf_gpt: begin use", "## My words\n\nbetween\n\n<!-- hf_gpt: begin use")
    mine = mine.replace("---\n\n<!--", "---\n\nbefore\n\n<!--", 1) + "\nafter\n"
    merged = merge(NEW, mine)
    order = ["before", "New.", "## My words\n\nbetween", "Use it.", "\nS\n", "after"]
    assert sorted(order, key=merged.index) == order
    assert "Old." not in merged
    assert merge(NEW, merged) == merged


def test_a_section_that_a_person_changed_is_theirs():
    mine = OLD.replace("Old.", "Old, and mine.")
    merged = merge(NEW, mine)
    assert "Old, and mine." in merged
    assert "New." not in merged
    assert "\nS\n" in merged
    assert merge(NEW, merged) == merged
    blank = OLD.replace("Old.\n", "Old.  \n\n\n").replace("\n", "\r\n")  # what an editor does is no change
    assert "New." in merge(NEW, blank)


@pytest.mark.parametrize("mark", [r"<!-- hf_gpt: begin about \w+ -->\n", r"<!-- hf_gpt: end about -->\n"])
def test_without_one_of_its_marks_a_section_is_a_persons(mark):
    merged = merge(NEW, re.sub(mark, "", OLD))
    assert "Old." in merged
    assert "New." not in merged
    assert "\nS\n" in merged
    assert merge(NEW, merged) == merged


def test_a_section_that_a_person_took_out_stays_out():
    mine = re.sub(r"<!-- hf_gpt: begin about.*?end about -->\n", "", OLD, flags=re.S)
    merged = merge(NEW, mine)
    assert "# Name" not in merged
    assert "\nS\n" in merged
    without_record = re.sub(r"<!-- hf_gpt: made .*\n", "", mine)
    assert "New." in merge(NEW, without_record)


def test_a_card_without_marks_is_all_a_persons():
    merged = merge(NEW, "---\nlicense: mit\n---\n# My model\n\nMy words.\n")
    assert body(merged).startswith("# My model\n\nMy words.\n") or "# My model\n\nMy words.\n" in body(merged)
    assert merged.index("My words.") < merged.index("New.")
    assert merge(NEW, merged) == merged


def test_copies_and_nested_marks_lose_nothing():
    section = re.search(r"<!-- hf_gpt: begin use.*?end use -->\n", OLD, re.S)[0]
    twice = merge(NEW, OLD + "\n" + section.replace("Use it.", "My copy."))
    assert "Use it." in twice
    assert "My copy." in twice
    nested = OLD.replace("Old.", f"Old.\n{section}")
    assert "Old." in merge(NEW, nested)


def test_metadata_that_a_person_changed_added_or_took_out_is_theirs():
    mine = OLD.replace(
        "tags:\n- hf_gpt\n", "# a comment\nlicense: mit   # chosen by me\ntags:\n- hf_gpt\n- mine\nlanguage:\n- en\n"
    )
    mine = mine.replace("library_name: transformers\n", "")
    merged = merge(NEW, mine)
    assert data(merged) == {"license": "mit", "tags": ["hf_gpt", "mine"], "language": ["en"]}
    assert "# a comment\nlicense: mit   # chosen by me\n" in merged
    assert merge(NEW, merged) == merged
    untouched = merge(NEW, OLD)
    assert data(untouched) == data(NEW)


def test_a_comment_in_metadata_that_is_replaced_stays():
    mine = OLD.replace("old: 1", "old: 1 # why").replace("- hf_gpt\n", "- hf_gpt # ours\n")
    merged = merge(NEW, mine)
    assert data(merged) == data(NEW)
    assert "# why" in merged
    assert "# ours" in merged


def test_other_results_in_the_model_index_stay(copied):
    run_dir, saved = copied
    published = model_card(saved, run_dir)
    card = yaml.safe_load(published.split("---\n")[1])
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "lambada", "name": "LAMBADA"},
        "metrics": [{"type": "accuracy", "value": 0.1}],
        "source": {"url": "https://example.com", "name": "me"},
    }
    ours = card["model-index"][0]["results"][0]
    card["model-index"][0]["results"].append(result)
    card["model-index"].append({"name": "another", "results": [result]})
    mine = f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n" + body(published)
    newer = published.replace(str(ours["metrics"][0]["value"]), "0.125")
    newer = compose(newer.split("---\n")[1], {"about": "New."})
    index = data(merge(newer, mine))["model-index"]
    assert [entry["name"] for entry in index] == ["a run", "another"]
    assert index[0]["results"][0]["metrics"][0] == {**ours["metrics"][0], "value": 0.125}
    assert index[0]["results"][1:] == index[1]["results"] == [result]
    assert merge(newer, merge(newer, mine)) == merge(newer, mine)
    without = compose("tags: [a]", {"about": "New."})  # this step was not evaluated
    assert [entry["results"] for entry in data(merge(without, mine))["model-index"]] == [[result], [result]]
    del card["model-index"]
    taken_out = merge(newer, f"---\n{yaml.safe_dump(card)}---\n" + body(published))
    assert "model-index" not in data(taken_out)


@pytest.mark.parametrize("metadata", ["tags: [a\n", "- a\n- b\n", "a: b: c\n", "@\n"])
def test_metadata_that_is_no_yaml_is_kept_in_the_text(metadata):
    merged = merge(NEW, f"---\n{metadata}---\nMy words.\n")
    assert data(merged) == data(NEW)
    assert metadata.strip() in body(merged)
    assert "My words." in merged
    assert merge(NEW, merged) == merged


@pytest.mark.parametrize("record", ["{", '{"metadata": 3, "results": {}, "sections": 1}', "{}"])
def test_a_spoiled_record_loses_nothing(record):
    mine = re.sub(r"made \{.*\}", lambda _: f"made {record}", OLD).replace("old: 1", "mine: 1")
    merged = merge(NEW, mine)
    assert data(merged)["mine"] == 1
    assert "New." in merged


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_line_that_a_person_writes_anywhere_in_the_text_is_lost(draw):
    lines = body(OLD).split("\n")
    words = draw.draw(
        st.lists(st.text("ab #`-<!>\\\t東", min_size=1).map(lambda text: f"mine {text} mine"), max_size=4)
    )
    for word in words:
        lines.insert(draw.draw(st.integers(0, len(lines))), word)
    for _ in range(draw.draw(st.integers(0, 3))):
        del lines[draw.draw(st.integers(0, len(lines) - 1))]
    words = [word for word in words if word in lines]
    mine = OLD.removesuffix(body(OLD)) + "\n".join(lines)
    merged = merge(NEW, mine)
    for word in words:
        assert word in merged.split("\n")
    assert merge(NEW, merged) == merged
    assert data(merged)["tags"]
