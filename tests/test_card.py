"""The model card: true to its checkpoint, safe to show, with code that works, and a person's words stay in it."""

import hashlib
import json
import os
import re
import shlex
import shutil
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
from hf_gpt.display import escape_unprintable
from hf_gpt.errors import UserError
from hf_gpt.hub.card import write_card
from hf_gpt.hub.card_merge import UNPUBLISHED, compose, merge, with_repo_id
from hf_gpt.hub.markdown import code, escape


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
    """A copy of the run that a test may spoil: its folder and its last checkpoint."""
    run_dir = shutil.copytree(trained.output_dir, tmp_path / "a run")
    return run_dir, run_dir / "checkpoints" / "step-00000012"


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def written(saved: Path, run_dir: Path) -> str:
    """The card as it is made now."""
    return write_card(saved, run_dir).read_text()


def prose(card: str) -> str:
    """The card on one line."""
    return " ".join(card.split())


# What is in it


def test_every_checkpoint_has_a_card_and_its_plot_and_verifies_when_a_person_writes_into_the_card(trained):
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
                assert f"```text\n{escape_unprintable(sample['text'])}\n```" in card
        assert f"{trained.model.num_parameters():,}" in card
        assert ("Its training was not finished: these are the weights after" in card) == (step < 12)
        assert written(saved, trained.output_dir) == card  # now that the run is at a later step


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
    for result in results:
        assert type(result.metric_value) is float
        assert result.metric_value == pytest.approx(
            last[{"loss": "validation_loss"}.get(result.metric_type, result.metric_type)], abs=1e-6
        )
        assert (result.dataset_type, result.dataset_name) == ("text", "my text.txt (validation text)")
        assert (result.dataset_split, result.dataset_config, result.dataset_revision) == ("validation", None, None)
    assert [result.metric_type for result in results] == ["loss", "perplexity", "bits_per_byte"]


def test_a_dataset_of_the_hub_is_named_with_its_revision(copied):
    run_dir, saved = copied
    where = {"dataset": "owner/books", "config": "en", "split": "train", "revision": "0123abcd" * 5}

    def from_the_hub(environment):
        for kind, split in (("training", "train"), ("validation", "test")):
            text = environment["sources"][kind]
            del text["files"], text["num_files"], text["part"]
            environment["sources"][kind] = {**text, **where, "split": split, "source": f"owner/books (en, {split})"}

    edit_json(run_dir / "environment.json", from_the_hub)
    card = written(saved, run_dir)
    data = ModelCard(card).data
    assert data.datasets == ["owner/books"]
    for result in data.eval_results:
        found = (result.dataset_type, result.dataset_config, result.dataset_split, result.dataset_revision)
        assert found == ("owner/books", "en", "test", "0123abcd" * 5)
    assert "https://huggingface.co/datasets/owner/books" in card
    assert f"revision `{'0123abcd' * 5}`" in card
    cut = {"part": "the last 10% of its characters"}
    edit_json(run_dir / "environment.json", lambda values: values["sources"]["validation"].update(cut))
    data = ModelCard(written(saved, run_dir)).data
    assert {result.dataset_split for result in data.eval_results} == {None}


# Runs of other kinds


def card_of(recipe: dict, **options) -> str:
    run = hf_gpt.train(recipe, **options)
    card = (run.checkpoints[-1] / "README.md").read_text()
    ModelCard(card)
    return card


def test_figures_of_other_weights_are_no_metadata(tiny):
    run = hf_gpt.train(changed(tiny, checkpoint={"every": 7}))
    card = (run.checkpoints[0] / "README.md").read_text()
    assert "Measured after step 4, 3 steps before these weights" in card
    assert "model-index" not in card
    assert "model_name" not in card


def test_a_run_without_prompts_or_evaluation(tiny):
    tiny["evaluation"] |= {"prompts": [], "first": 1000}
    run = hf_gpt.train(changed(tiny, train__log_every=100, train__max_steps=4, checkpoint={"every": 3}))
    card = (run.checkpoints[0] / "README.md").read_text()  # the last step is evaluated
    assert "## Samples" not in card
    assert "The run has not evaluated the model yet." in card
    assert "model-index" not in card
    assert "none was given; ask the publisher before you use the model" in card
    assert "license" not in ModelCard(card).data.to_dict()


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


def test_a_run_that_starts_from_a_model_or_branches_off(trained, tmp_path):
    recipe = yaml.safe_load((trained.output_dir / "recipe.yaml").read_text())
    recipe["output_dir"] = str(tmp_path / "more")
    recipe["train"]["max_steps"] = 13
    more = {"from_pretrained": str(trained.checkpoints[0])}
    card = card_of({**recipe, "model": more, "tokenizer": {}, "output_dir": str(tmp_path / "further")})
    digest = hashlib.sha256((trained.checkpoints[0] / "model.safetensors").read_bytes()).hexdigest()
    origin = f"trained from the weights of `a run step-00000004` (SHA-256 of its weights `{digest}`)"
    assert origin in prose(card)
    assert "from_pretrained: a run step-00000004" in card
    assert str(trained.output_dir.parent) not in card
    card = card_of(recipe, parent=f"{trained.output_dir}@8")
    assert "| branched off | after step 8 of the run `a run` |" in card
    assert str(trained.output_dir.parent) not in card


def test_several_processes_are_counted(copied):
    run_dir, saved = copied
    edit_json(saved / "training_state" / "state.json", lambda state: state.update(processes=4))
    assert "| hardware | 4 x cpu (" in written(saved, run_dir)


def test_what_the_run_did_not_record_is_left_out(copied):
    run_dir, saved = copied
    edit_json(run_dir / "environment.json", lambda environment: environment.pop("sources"))
    card = written(saved, run_dir)
    assert "on a text that is not recorded" in prose(card)
    assert ModelCard(card).data.eval_results


def test_without_a_training_state_there_is_no_card_to_make(copied):
    run_dir, saved = copied
    (saved / "training_state" / "state.json").unlink()
    with pytest.raises(UserError, match=r"has no training_state/state.json, which holds its step"):
        write_card(saved, run_dir)


# How to load it


def code_blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.M | re.S)


def test_the_code_in_a_card_works(trained, tmp_path, capsys):
    saved = tmp_path / "saved"
    shutil.copytree(trained.checkpoints[-1], saved)
    card = with_repo_id((saved / "README.md").read_text(), str(saved))
    with_package, remote_code, gpt2 = code_blocks(card, "python")
    exec(with_package, {})
    assert capsys.readouterr().out.startswith("Line")
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run([sys.executable, "-c", remote_code], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Line")
    (command,) = code_blocks(card, "bash")
    from hf_gpt.cli import main

    assert main([word.replace("gpt2-form", str(tmp_path / "g")) for word in shlex.split(command)[1:]]) == 0
    exec(gpt2.replace("gpt2-form", str(tmp_path / "g")), {})


def test_the_models_name_on_the_hub_is_in_the_code(copied):
    run_dir, saved = copied
    unpublished = (saved / "README.md").read_text()
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    recipe["hub"]["repo_id"] = "me/my-gpt"
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = written(saved, run_dir)
    assert UNPUBLISHED not in card
    assert 'from_pretrained("me/my-gpt")' in card
    assert "\n# my-gpt\n" in card
    later = with_repo_id(unpublished, "me/my-gpt")
    assert UNPUBLISHED not in later
    assert code_blocks(later, "python") == code_blocks(card, "python")
    mine = merge(later, later.replace("With the package", "I say: with the package"))
    assert "I say" in merge(later, mine)  # the marks fit the changed text


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
    card = card_of(
        recipe
        | {
            "output_dir": str(home / "lists"),
            "data": {"source": [str(text.parent / "a.txt"), str(text.parent / "b.txt")]},
        }
    )
    for private in (str(tmp_path), "alice", "secret"):
        assert private not in card
    assert "  - a.txt\n  - b.txt\n" in card


HOSTILE = (
    "```\n</details><script>alert(1)</script>\n<!-- hf_gpt: end samples -->\n<!-- hf_gpt: begin about 00000000 -->\n"
    "````\n# Heading\n|a|b|\n---\n{{ 7 * 7 }}\n\x1b[31m\x00\u202e\u2028\r 東京 👩\u200d💻"
)


def test_samples_and_prompts_are_shown_and_break_nothing(copied):
    markdown_it = pytest.importorskip("markdown_it")
    run_dir, saved = copied
    harmless = written(saved, run_dir)
    lines = [{"step": step, "prompt": HOSTILE, "text": HOSTILE + str(step)} for step in (0, 6, 12)]
    (run_dir / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    recipe["evaluation"]["prompts"] = [HOSTILE.replace("\0", "")]  # which no recipe can hold
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = written(saved, run_dir)

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


@given(st.text(st.sampled_from("ab 1_*`|\\[]<>&!#$^@:{}=~.()-+'\"/\n\t\u202eé東"), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_shows_as_it_is_in_a_line_and_in_a_table(text):
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for shown in (escape(text), code(text)):
        tokens = parser.parse(f"a {shown} b\n\n| a | b |\n| --- | --- |\n| a {shown} b | c |\n")
        assert [t.type for t in tokens].count("td_open") == 2
        for cell in [t for t in tokens if t.type == "inline" and "b" in t.content[1:]]:
            assert {child.type for child in cell.children} <= {"text", "text_special", "code_inline"}
            found = "".join(child.content for child in cell.children)
            assert found.split() == f"a {escape_unprintable(text, one_line=True)} b".split()


def test_names_are_shown_and_break_nothing(copied):
    run_dir, saved = copied

    def rename(environment):
        environment["sources"]["training"]["source"] = "a|b`c` <b>\n# no"
        environment["sources"]["training"]["files"] = [["|`x`|\n<i>", "00" * 32]]
        environment["device_name"] = "|\n---\n<!-- hf_gpt: end training -->"

    edit_json(run_dir / "environment.json", rename)
    card = written(saved, run_dir)
    assert "\n# no" not in card
    assert merge(card, card) == card
    assert r"| hardware | 1 x cpu (\|\\n---\\n\<\!-- hf_gpt\: end training --\>)" in card


# Whose words are whose


OLD = compose(
    {"tags": ["hf_gpt"], "library_name": "transformers", "old": 1},
    {"about": "# Name\n\nOld.", "use": "Use it.", "gone": "G"},
)
NEW = compose(
    {"tags": ["hf_gpt", "new"], "library_name": "transformers"},
    {"about": "# Name\n\nNew.", "use": "Use it.", "samples": "S"},
)


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def data(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_that_nobody_touched_becomes_the_new_one():
    assert re.sub("\n{3,}", "\n\n", merge(NEW, OLD)) == NEW
    assert merge(NEW, NEW) == NEW
    assert merge(NEW, "") == NEW
    assert data(merge(NEW, "---\nlicense: mit\n---\n")) == {"license": "mit", **data(NEW)}


def test_what_a_person_wrote_around_the_sections_stays_in_place():
    mine = OLD.replace("<!-- hf_gpt: begin use", "## My words\n\nbetween\n\n<!-- hf_gpt: begin use")
    mine = mine.replace("---\n\n<!--", "---\n\nbefore\n\n<!--", 1) + "\nafter\n"
    merged = merge(NEW, mine)
    order = ["before", "New.", "## My words\n\nbetween", "Use it.", "after"]
    assert sorted(order, key=merged.index) == order
    assert "\nS\n" in merged
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


def test_a_section_that_a_person_removed_stays_removed():
    mine = re.sub(r"<!-- hf_gpt: begin about.*?end about -->\n", "", OLD, flags=re.S)
    merged = merge(NEW, mine)
    assert "# Name" not in merged
    assert "\nS\n" in merged
    without_record = re.sub(r"<!-- hf_gpt: made .*\n", "", mine)
    assert "New." in merge(NEW, without_record)


def test_a_card_without_marks_is_all_a_persons():
    merged = merge(NEW, "---\nlicense: mit\n---\n# My model\n\nMy words.\n")
    assert "# My model\n\nMy words.\n" in body(merged)
    assert merged.index("My words.") < merged.index("New.")
    assert merge(NEW, merged) == merged


def test_metadata_that_a_person_changed_added_or_removed_is_theirs():
    mine = OLD.replace("tags:\n- hf_gpt\n", "license: mit   # mine\ntags:\n- hf_gpt\n- mine\nlanguage:\n- en\n")
    mine = mine.replace("library_name: transformers\n", "")
    merged = merge(NEW, mine)
    assert data(merged) == {"license": "mit", "tags": ["hf_gpt", "mine"], "language": ["en"]}
    assert merge(NEW, merged) == merged
    assert data(merge(NEW, OLD)) == data(NEW)


def test_other_results_in_the_model_index_stay(copied):
    run_dir, saved = copied
    published = written(saved, run_dir)
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "lambada", "name": "LAMBADA"},
        "metrics": [{"type": "accuracy", "value": 0.1}],
        "source": {"url": "https://example.com", "name": "me"},
    }
    metadata = data(published)
    ours = metadata["model-index"][0]["results"][0]
    newer = json.loads(json.dumps(metadata))
    newer["model-index"][0]["results"][0]["metrics"][0]["value"] = 0.125
    newer = compose(newer, {"about": "New."})
    metadata["model-index"][0]["results"].append(result)
    metadata["model-index"].append({"name": "another", "results": [result]})
    mine = f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n" + body(published)

    def results(card: str) -> list:
        return [found for entry in data(card)["model-index"] for found in entry["results"]]

    merged = merge(newer, mine)
    assert {"name": "another", "results": [result]} in data(merged)["model-index"]
    assert results(merged).count(result) == 2
    assert ours not in results(merged)
    assert results(newer)[0] in results(merged)
    assert merge(newer, merged) == merged
    unevaluated = compose({"tags": ["a"]}, {"about": "New."})
    assert results(merge(unevaluated, mine)) == [result, result]
    del metadata["model-index"]
    removed = merge(newer, f"---\n{yaml.safe_dump(metadata)}---\n" + body(published))
    assert "model-index" not in data(removed)


@pytest.mark.parametrize("metadata", ["tags: [a\n", "- a\n- b\n", "a: b: c\n", "@\n"])
def test_metadata_that_is_no_yaml_is_refused(metadata):
    with pytest.raises(UserError, match=r"README\.md: its metadata on the Hub is not YAML"):
        merge(NEW, f"---\n{metadata}---\nMy words.\n")


@pytest.mark.parametrize("record", ["{", '{"metadata": 3, "results": {}, "sections": 1}', "{}"])
def test_a_damaged_record_loses_nothing(record):
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
    if draw.draw(st.booleans()):  # a copy of a section or of the whole
        lines += draw.draw(st.sampled_from([lines, body(OLD).split("\n")[6:12]]))
    for _ in range(draw.draw(st.integers(0, 3))):
        del lines[draw.draw(st.integers(0, len(lines) - 1))]
    words = [word for word in words if word in lines]
    mine = OLD.removesuffix(body(OLD)) + "\n".join(lines)
    merged = merge(NEW, mine)
    for word in words:
        assert word in merged.split("\n")
    assert merge(NEW, merged) == merged
    assert data(merged)["tags"]
