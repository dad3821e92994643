"""What is said to people: one line, in which names of files, columns and keys cannot move the cursor."""

import json

import pytest

import hf_gpt
from hf_gpt.cli import main
from hf_gpt.cli.output import say
from hf_gpt.errors import HubError, RunPreempted, RunStopped, UserError
from hf_gpt.run import TrainingResult
from hf_gpt.training.terminal import Terminal

ORDINARY = [
    "two  blanks and\u3000an ideographic one",
    "caf\u00e9, cafe\u0301",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \u2764\ufe0f \u0915\u094d\u200d\u0937",
]
SPELLED = {
    "a\x1b[31mb": "a\\x1b[31mb",
    "a\nb\tc\rd": "a\\nb\\tc\\rd",
    "a\u202eb\u2066c": "a\\u202eb\\u2066c",
    "a\u200bb\ufeff\x7f\x85": "a\\u200bb\\ufeff\\x7f\\x85",
    "a\u2028b": "a\\u2028b",
    "a\udcffb": "a\\udcffb",
}
SAYS = [UserError, HubError, RunStopped, RunPreempted]


@pytest.mark.parametrize("kind", SAYS)
def test_a_message_spells_out_what_does_not_show(kind):
    for name, shown in {**SPELLED, **dict(zip(ORDINARY, ORDINARY))}.items():
        assert str(kind(f"{name}: no such file")) == f"{shown}: no such file"
        assert str(kind(str(kind(f"{name}: no such file")))) == f"{shown}: no such file"


def test_fields_and_values_are_spelled_out_too():
    error = UserError("is no file", field="da\nta", value="a\x1bb")
    assert str(error) == "da\\nta a\\x1bb: is no file"
    assert str(error.renamed({"da\nta": "--\u202edata"})) == "--\\u202edata a\\x1bb: is no file"


def of_library_error(said, message):
    """The text of the `UserError` that is raised where a library said something."""
    try:
        raise RuntimeError(said)
    except RuntimeError as error:
        return str(UserError(message(str(error))))


def test_what_a_library_said_over_several_lines_is_joined_and_a_name_with_a_line_break_is_not():
    said = "mapping values\n  in line 1,\n\n    column 2\nexpected <block end>\n"
    found = of_library_error(said, lambda text: f"a\nb.yaml: not valid: {text}")
    assert found == r"a\nb.yaml: not valid: mapping values in line 1, column 2 expected <block end>"
    assert of_library_error(said, lambda text: f"cannot be read ({text[:19]})") == "cannot be read (mapping values in)"
    assert of_library_error(f"\n{said}", lambda text: f"no: {text[:20]}") == "no: mapping values in"
    assert of_library_error("1 error\na\nb", lambda text: "a\nb: unknown key") == r"a\nb: unknown key"


@pytest.mark.parametrize("name", [*SPELLED, *ORDINARY])
def test_names_of_files_columns_and_keys_on_the_command_line(name, tmp_path, capsys):
    """A recipe, a text without the column, and a key."""
    shown = SPELLED.get(name, name)
    recipe = tmp_path / f"{name}.yaml"
    assert main(["train", str(recipe)]) == 2
    assert capsys.readouterr().err.startswith(f"hf-gpt: {tmp_path}/{shown}.yaml: no such recipe")
    text = tmp_path / f"{name}.jsonl"
    if "\udcff" in name:  # which no json can hold
        return
    text.write_text("".join(json.dumps({name: "a", "other": "b"}) + "\n" for _ in range(3)))
    assert main(["evaluate", str(tmp_path), "--text", str(text), "--text-column", "story"]) == 2
    assert f"name the column to read: '{shown}' or 'other'" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--text", str(text), "--text-column", f"{name}, the"]) == 2
    assert f": no '{shown}, the' in " in capsys.readouterr().err
    with pytest.raises(UserError) as stop:
        hf_gpt.Recipe.from_dict({"data": {name: 1}})
    assert f"data.{shown}: unknown key" in str(stop.value)


def test_notes_and_events_are_spelled_out(capsys):
    say("into a\x1b[2Jb\nc\u202e")
    assert capsys.readouterr().err == "into a\\x1b[2Jb\\nc\\u202e\n"
    Terminal().noted(None, None, "warning: a\x1b[2Jb\u202e: אב 👩\u200d👧\u3000", {})
    assert capsys.readouterr().err == "warning: a\\x1b[2Jb\\u202e: אב 👩\u200d👧\u3000\n"


def test_a_sample_of_blank_lines_leaves_the_summary_in_sight(tmp_path):
    text = "Every\n\n \n\n  effort\n\tmoves\x1b" + "\n" * 50
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 5, "prompt": "Every", "text": text}) + "\n")
    (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
    lines = list(TrainingResult(tmp_path, recipe=None, model=None, tokenizer=None).summary())
    shown = ["", "sample     after step 5:", "", "Every", "", "  effort", "    moves\\x1b", ""]
    assert lines == [*shown, f"model      {tmp_path}/checkpoints/step-00000005"]
