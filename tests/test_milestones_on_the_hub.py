"""Each milestone of a run becomes a revision on the Hub: the right one, whatever happens on the way."""

import json
import shutil
from pathlib import Path

import pytest
from forking import ForkServer, recipe_file
from hub_server import Fault, HubServer

from hf_gpt import Recipe, checkpoint
from hf_gpt.display import exact_number, whole_number
from hf_gpt.errors import UserError
from hf_gpt.hub.milestones import revisions
from hf_gpt.recipe import HubRecipe
from hf_gpt.storage import write_json

STEPS = (1, 2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def shared_hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def commands(shared_hub, folder):
    """`hf-gpt` commands whose Hub is ours."""
    environment = {**shared_hub.environment(folder / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    server = ForkServer(environment, "import hf_gpt.hub.background; hf_gpt.hub.background.LAST_PAUSES = (0.1,) * 8")
    yield server
    server.close()


@pytest.fixture(scope="module")
def recipe(folder) -> dict:
    text = folder / "text.txt"
    text.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(200)))
    return {
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(text), "validation_fraction": 0.1},
        "train": {"max_steps": 5, "batch_size": 2, "log_every": 1, "device": "cpu"},
        "evaluation": {"every": 5, "tokens": 64, "prompts": []},
        "checkpoint": {"every": 1, "keep": None, "milestones": {"steps": [*STEPS]}},
    }


def milestone(run: Path, step: int, tokens=(), words=()) -> None:
    """Make a milestone of a checkpoint, or list what was changed in one."""
    folder = run / "checkpoints" / checkpoint.name_of(step)
    asked = {"tokens": list(tokens), "words": list(words)}
    write_json(folder / "milestone.json", {"step": step, "tokens": 1, "words": 1, "asked": asked})
    (folder / checkpoint.MANIFEST).unlink()
    write_json(folder / checkpoint.MANIFEST, checkpoint._describe(folder))


@pytest.fixture(scope="module")
def finished(commands, recipe, folder) -> Path:
    """A finished run with three milestones, which knows of no Hub."""
    path = folder / "run"
    code, printed = commands.run("train", recipe_file({**recipe, "output_dir": str(path)}, folder / "recipe.json"))
    assert code == 0, printed
    return path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def weights(hub, repo: str, revision: str) -> bytes:
    return hub.files(repo, revision)["model.safetensors"]


def here(run: Path, step: int) -> bytes:
    return (run / "checkpoints" / checkpoint.name_of(step) / "model.safetensors").read_bytes()


def change(run: Path, **hub) -> None:
    recipe = Recipe.from_yaml(run / "recipe.yaml")
    (run / "recipe.yaml").write_text(Recipe.from_dict({**recipe.to_dict(), "hub": hub}).to_yaml())


@pytest.mark.parametrize("kind", ["tags", "branches"])
def test_a_milestone_is_a_revision_with_exactly_its_files(hub, commands, run, kind):
    repo = f"someone/exact-{kind}"
    change(run, milestones=kind)
    assert commands.run("push", run / "checkpoints" / checkpoint.name_of(5), repo, "--with-training-state")[0] == 0
    before = hub.commits(repo)
    code, printed = commands.run("push", run, repo, "--milestones", "--json")
    assert code == 0, printed
    assert [one["name"] for one in json.loads(printed)["sent"]] == ["step1", "step2", "step4"]
    refs = hub.refs(repo)
    assert set(refs[kind]) - {"main"} == {"step1", "step2", "step4"}
    assert set(refs["branches"] | refs["tags"]) == {"main", "step1", "step2", "step4"}
    for step in STEPS:
        path = run / "checkpoints" / checkpoint.name_of(step)
        there = hub.files(repo, f"step{step}")
        local = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
        assert there.keys() - {".gitattributes"} == local.keys()
        assert {name for name in local if there[name] != local[name]} == {"README.md"}  # which names the repository
        assert hub.commits(repo, f"step{step}")[0]["title"] == f"Step {step}"
        assert f'from_pretrained("{repo}", revision="step{step}")' in there["README.md"].decode()
    assert hub.commits(repo) == before
    hub.requests.clear()
    code, printed = commands.run("push", run, repo, "--milestones")
    assert (code, printed) == (0, f"{repo}: all milestones are there\n")
    assert len([asked for asked in hub.requests if asked.method != "HEAD"]) == 1  # no record, no commit, no comparison


def checked(commands, run: Path, repo: str) -> tuple[int, dict]:
    code, printed = commands.run("push", run, repo, "--milestones", "--check", "--json")
    return code, json.loads(printed.splitlines()[0])["revisions"]


@pytest.mark.parametrize("form", ["hf_gpt", "gpt2"])
def test_a_check_names_what_is_swapped_missing_or_of_another_step_and_believes_no_record(hub, commands, run, form):
    repo = f"someone/checked-{form}"
    change(run, milestones="branches", format=form)
    code, printed = commands.run("push", run, repo, "--milestones")
    assert code == 0, printed
    hub.requests.clear()
    assert checked(commands, run, repo) == (0, {"step1": None, "step2": None, "step4": None})
    assert not [asked for asked in hub.requests if "/resolve/" in asked.path or "/cdn/" in asked.path]

    branches = hub.repos["model", repo].branches
    right = dict(branches)
    branches["step1"], branches["step4"] = right["step4"], right["step1"]
    code, wrong = checked(commands, run, repo)
    assert code == 1
    assert wrong == {
        "step1": "has other weights than the run: those of step4",
        "step2": None,
        "step4": "has other weights than the run: those of step1",
    }
    branches |= {**right, "step2": right["step1"]}
    del branches["step4"]
    code, printed = commands.run("push", run, repo, "--milestones", "--check")
    assert code == 1
    assert printed.splitlines() == [
        "step2: has other weights than the run: those of step1",
        f"step4: is not among the branches of {repo}",
        f"{repo}: 1 of 3 revisions have the weights of the run",
    ]
    code, printed = commands.run("push", run, repo, "--milestones", "--json")
    assert code == 0, printed
    assert [(one["name"], one["is_replaced"]) for one in json.loads(printed)["sent"]] == [
        ("step2", True),
        ("step4", False),
    ]
    assert checked(commands, run, repo)[0] == 0


@pytest.mark.parametrize("kind", ["tags", "branches"])
def test_other_weights_replace_a_revision_and_equal_ones_are_not_sent_again(hub, commands, run, kind):
    repo = f"someone/replaced-{kind}"
    change(run, milestones=kind)
    assert commands.run("push", run, repo, "--milestones")[0] == 0
    before = hub.refs(repo)[kind]
    (run / "published.json").write_text("[damaged")
    hub.requests.clear()
    code, printed = commands.run("push", run, repo, "--milestones", "--json")
    assert (code, json.loads(printed)["sent"]) == (0, [])
    assert not [asked for asked in hub.requests if "/commit/" in asked.path or "/cdn/" in asked.path]

    shutil.copy(run / "checkpoints" / "step-00000005" / "model.safetensors", run / "checkpoints" / "step-00000002")
    code, printed = commands.run("push", run, repo, "--milestones", "--check")
    assert code == 1
    assert "step2: cannot be compared: " in printed
    milestone(run, 2)
    code, printed = commands.run("push", run, repo, "--milestones")
    assert code == 0, printed
    page = f"{hub.url}/{repo}/tree/step2"
    assert printed == f"{page}: step 2, in place of other weights\n"
    after = hub.refs(repo)[kind]
    assert {name for name in after if after[name] != before.get(name)} == {"step2"}
    assert weights(hub, repo, "step2") == here(run, 5)


def test_a_name_that_is_a_tag_there_becomes_no_branch(hub, commands, run):
    repo = "someone/both"
    assert commands.run("push", run, repo, "--milestones")[0] == 0
    before = hub.refs(repo)
    change(run, milestones="branches")
    code, printed = commands.run("push", run, repo, "--milestones")
    assert code == 2
    assert f"hub.milestones branches: 'step1' is one of the tags of {repo}; remove it there" in printed
    assert hub.refs(repo) == before


def test_a_milestone_that_is_damaged_is_named_and_the_others_are_sent(hub, commands, run):
    (run / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"")
    code, printed = commands.run("push", run, "someone/damaged", "--milestones")
    assert code == 2
    assert "step-00000001/model.safetensors: truncated or altered" in printed.splitlines()[-1]
    assert set(hub.refs("someone/damaged")["tags"]) == {"step2", "step4"}


FAULTS = {
    "commit": Fault("/commit/", status=503, times=1),
    "the answer to a commit": Fault("/commit/", cut_response_after=3, times=1),
    "storage": Fault("/cdn/", method="PUT", cut_request_after=9, times=3),
    "the answer to a tag": Fault("/tag/", cut_response_after=1, times=1),
    "branch": Fault("/branch/", method="POST", status=500, times=1),
    "deleting": Fault("/branch/", method="DELETE", status=503, times=1),
    "the answer to deleting": Fault("/branch/", method="DELETE", cut_response_after=1, times=1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_was_interrupted_is_taken_up_and_leaves_no_trace(hub, commands, run, name):
    repo, fault = f"someone/after-{name.replace(chr(32), chr(45))}", FAULTS[name]
    (run / "checkpoints" / "step-00000002" / "new.png").write_bytes(name.encode())  # which the storage does not have
    milestone(run, 2)
    hub.fail(fault)
    codes = [commands.run("push", run, repo, "--milestones")[0] for _ in range(2)]
    assert codes == [1, 0]
    assert set(hub.refs(repo)["tags"]) == {"step1", "step2", "step4"}
    assert set(hub.refs(repo)["branches"]) == {"main"}
    for step in STEPS:
        assert weights(hub, repo, f"step{step}") == here(run, step)


def test_as_a_stock_gpt2_each_loads_by_its_name(hub, commands, run, tmp_path):
    repo = "someone/stock-ladder"
    for step, words in ((1, [7_000_000]), (2, [10_000_000, 12_345_678])):
        milestone(run, step, words=words)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    change(run, milestones="branches", milestone_name="chck_{words_short}", format="gpt2")
    code, printed = commands.run("push", run, repo, "--milestones")
    assert code == 0, printed
    assert set(hub.refs(repo)["branches"]) == {"main", "chck_7M", "chck_10M", "chck_12345678"}
    for name in ("chck_7M", "chck_10M", "chck_12345678"):
        there = hub.files(repo, name)
        config = json.loads(there["config.json"])
        assert (config["model_type"], config["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
        assert "milestone.json" in there
        assert not [file for file in there if file.endswith(".py")]
        assert f'from_pretrained("{repo}", revision="{name}")' in there["README.md"].decode()
    assert weights(hub, repo, "chck_10M") == weights(hub, repo, "chck_12345678") != weights(hub, repo, "chck_7M")


# During training ----------------------------------------------------------------------------------------------------


def resumed(commands, recipe: dict, run: Path, **hub):
    """A process that resumes the finished run, which publishes what is missing."""
    file = recipe_file({**recipe, "output_dir": str(run), "hub": hub}, run / "again.json")
    return commands.start("train", file)


@pytest.mark.parametrize(
    ("main", "title", "form"),
    [("best", "Step 3", "hf_gpt"), pytest.param("last", "Step 5", "gpt2", marks=pytest.mark.slow)],
)
def test_a_run_publishes_its_milestones_and_main_as_its_recipe_says(hub, commands, recipe, run, main, title, form):
    repo = f"someone/main-{main}"
    state = run / "checkpoints" / "step-00000005" / "training_state" / "state.json"
    content = json.loads(state.read_text())
    content["progress"]["best_step"] = 3
    state.write_text(json.dumps(content))
    milestone(run, 5)
    command = resumed(commands, recipe, run, repo_id=repo, main=main, milestones="branches", format=form)
    assert command.wait() == 0, command.printed
    assert f"hub: sending step1 and 3 more to {repo} (milestones)" in command.printed
    assert "not everything" not in command.printed
    refs = hub.refs(repo)
    assert set(refs["branches"]) == {"main", "training", "step1", "step2", "step4", "step5"}
    assert set(refs["tags"]) == {"step-00000005"}
    assert hub.commits(repo)[0]["title"] == title
    for name in refs["branches"]:
        assert json.loads(hub.files(repo, name)["config.json"])["model_type"] == form
    assert checked(commands, run, repo)[0] == 0


def test_a_hub_that_stumbles_gets_every_milestone(hub, commands, recipe, run):
    hub.fail(Fault("/commit/sending", status=503, times=1))
    for number in range(3):
        hub.fail(Fault(f"/tag/.*|/branch/.*{number}", status=503, times=1))
    repo = "someone/stumbles"
    command = resumed(commands, recipe, run, repo_id=repo)
    assert command.wait() == 0, command.printed
    assert "not everything" not in command.printed
    assert set(hub.refs(repo)["tags"]) == {"step-00000005", "step1", "step2", "step4"}
    assert set(hub.refs(repo)["branches"]) == {"main", "training"}


def test_what_could_not_be_sent_has_a_command_that_sends_it(hub, commands, recipe, run):
    hub.fail(Fault("/commit/sending", status=403))
    repo = "someone/forbidden"
    command = resumed(commands, recipe, run, repo_id=repo, private=True)
    assert command.wait() == 0, command.printed
    last = command.printed.partition("this sends the rest: ")[2].splitlines()[0]
    assert last == f"hf-gpt push {run} {repo} --milestones --private"
    hub.mend()
    code, printed = commands.run(*last.split()[1:])
    assert code == 0, printed
    assert checked(commands, run, repo)[0] == 0
    assert hub.repos["model", repo].private


def test_a_milestone_with_other_weights_is_replaced_with_a_line(hub, commands, recipe, run):
    repo = "someone/dropped"
    assert resumed(commands, recipe, run, repo_id=repo).wait() == 0
    assert weights(hub, repo, "step2") == here(run, 2)
    shutil.copy(run / "checkpoints" / "step-00000005" / "model.safetensors", run / "checkpoints" / "step-00000002")
    milestone(run, 2)
    command = resumed(commands, recipe, run, repo_id=repo)
    assert command.wait() == 0
    assert "hub: step2 held other weights, and was replaced" in command.printed.splitlines()
    assert weights(hub, repo, "step2") == here(run, 5)
    command = resumed(commands, recipe, run, repo_id=repo)
    assert command.wait() == 0
    assert "milestones" not in command.printed


def test_a_trajectory_that_was_left_is_replaced_there_and_step_0_is_a_milestone(hub, commands, recipe, tmp_path):
    """At step 4 of 8 the learning rate is another than at step 4 of 4."""
    repo, run = "someone/left", tmp_path / "run"
    recipe = {
        **recipe,
        "output_dir": str(run),
        "checkpoint": {"every": 3, "milestones": {"steps": [0, 2, 4]}},
        "hub": {"repo_id": repo, "milestones": "branches"},
    }
    file = recipe_file(recipe, tmp_path / "recipe.json")
    code, printed = commands.run("train", file, "--train.max_steps", "4")
    assert code == 0, printed
    before = {name: weights(hub, repo, name) for name in ("step0", "step2", "step4")}
    assert before == {f"step{step}": here(run, step) for step in (0, 2, 4)}
    (run / "checkpoints" / "step-00000004" / "training_state" / "state.json").unlink()  # it can go on from 3 alone
    milestone(run, 4)
    code, printed = commands.run("train", file, "--train.max_steps", "8")
    assert code == 0, printed
    assert "resuming after step 3" in printed
    assert "hub: step4 held other weights, and was replaced" in printed
    after = {name: weights(hub, repo, name) for name in before}
    assert after == {f"step{step}": here(run, step) for step in (0, 2, 4)}
    assert {name for name in after if after[name] != before[name]} == {"step4"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"hub": {"milestone_name": "at-{words_short}"}},
            "hub.milestone_name 'at-{words_short}': the milestone of step",
        ),
        ({"hub": {"milestone_name": "last"}}, "'last', and so would that of step 1"),
        ({"hub": {"milestone_name": "training/{step}"}}, "cannot stand beside, a name of other checkpoints there"),
        (
            {"hub": {"format": "gpt2"}, "model": {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2}},
            "hub.format gpt2: the model: its type is llama, and only this package's GPT becomes a GPT-2",
        ),
    ],
)
def test_what_cannot_be_published_is_refused_before_the_first_step(commands, recipe, tmp_path, changes, says):
    if "model" in changes:
        changes["model"] |= {"num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 16}
    run = tmp_path / "run"
    file = {**recipe, "output_dir": str(run), **changes, "hub": {"repo_id": "someone/never", **changes["hub"]}}
    code, printed = commands.run("train", recipe_file(file, tmp_path / "recipe.json"))
    assert code == 2, printed
    assert says in printed.splitlines()[-1]
    assert not run.exists()


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "short"),
    [
        (7_000_000, "7M"),
        (1_500_000, "1.5M"),
        (10_000, "10k"),
        (512, "512"),
        (1_234_567, "1234567"),
        (999_999, "999999"),
    ],
)
def test_a_short_number_is_exact(number, short):
    assert exact_number(number) == short
    assert whole_number(short) == number


@pytest.mark.parametrize(
    ("template", "milestones", "names"),
    [
        ("step{step}", [(0, (), ()), (512, (), ())], {"step0": 0, "step512": 512}),
        ("chck_{words_short}", [(9, (), (1_000_000, 1_500_000))], {"chck_1M": 9, "chck_1.5M": 9}),
        ("{tokens}-{words}", [(9, (5, 6), (7,))], {"5-7": 9, "6-7": 9}),
        ("s{step}-{tokens_short}", [(1, (1000,), ()), (2, (1000,), ())], {"s1-1k": 1, "s2-1k": 2}),
    ],
)
def test_a_revision_is_named_by_its_step_and_by_what_was_asked_for(template, milestones, names):
    assert revisions(HubRecipe(milestone_name=template), milestones) == names


@pytest.mark.parametrize(
    ("hub", "milestones", "says"),
    [
        ({"milestone_name": "{words}"}, [(4, (7,), ())], "the milestone of step 4 has none: it is not one of"),
        (
            {"milestone_name": "last"},
            [(4, (), ()), (8, (), ())],
            "step 8 would be 'last', and so would that of step 4",
        ),
        ({"milestone_name": "training/{step}"}, [(4, (), ())], "cannot stand beside, a name of other checkpoints"),
        ({"milestone_name": "v{step}", "branch": "v4"}, [(4, (), ())], "'v4', which is, or cannot stand beside"),
        ({"branch": "sending-step4"}, [(4, (), ())], "'step4', which is, or cannot stand beside"),
        ({"milestone_name": "main/{step}"}, [(4, (), ())], "'main/4', which is, or cannot stand beside"),
        ({"milestone_name": "step-0000{step}"}, [(1000, (), ())], "'step-00001000', which is, or cannot"),
        ({"milestone_name": "n" * 90 + "{step}"}, [(1000, (), ())], "which no branch or tag can be called"),
    ],
)
def test_names_that_cannot_be_are_refused(hub, milestones, says):
    with pytest.raises(UserError, match=r"^hub\.milestone_name ") as refusal:
        revisions(HubRecipe(**hub), milestones)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("hub", "says"),
    [
        ({"milestone_name": "{setp}"}, "hub.milestone_name: {setp} is no placeholder; there are {step}, {tokens}, "),
        ({"milestone_name": "{step:08d}"}, "hub.milestone_name: must be a name such as step{step}"),
        ({"milestone_name": "{step"}, "hub.milestone_name: must be a name such as step{step}"),
        ({"milestone_name": "a b{step}"}, "hub.milestone_name: must make the name of a branch"),
        ({"milestone_name": "a.lock/{step}"}, "hub.milestone_name: must make the name of a branch"),
        ({"branch": "HEAD"}, "hub.branch: must be a name such as training, found HEAD"),
        ({"milestone_name": "{step}.lock"}, "hub.milestone_name: must make the name of a branch"),
        ({"milestones": "branch"}, "hub.milestones: must be 'tags', 'branches' or 'none'"),
        ({"format": "gpt2", "with_training_state": True}, "hub: 'with_training_state' goes with format: hf_gpt"),
    ],
)
def test_a_recipe_that_names_nothing_is_one_line(hub, says):
    with pytest.raises(UserError) as refusal:
        Recipe(hub=hub)
    assert str(refusal.value).startswith(says)


def test_a_stock_gpt2_is_nothing_to_resume_from():
    with pytest.raises(UserError, match=r"'checkpoint\.resume: hub' goes with 'hub\.format: hf_gpt'"):
        Recipe(hub={"repo_id": "someone/x", "format": "gpt2"}, checkpoint={"resume": "hub"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--check"], "--check: goes with --milestones"),
        (["--milestones", "--tag", "x"], "--tag: is for one checkpoint; milestones are named by the run's recipe"),
    ],
)
def test_a_command_that_cannot_be_is_one_line(commands, run, arguments, says):
    code, printed = commands.run("push", run, "someone/x", *arguments)
    assert (code, printed) == (2, f"hf-gpt: {says}\n")


def test_what_has_no_milestones_says_so(commands, finished, run, tmp_path):
    code, printed = commands.run("push", run / "checkpoints" / "step-00000005", "someone/x", "--milestones")
    assert code == 2
    assert "is no run: it has no recipe.yaml" in printed
    for step in STEPS:
        shutil.rmtree(run / "checkpoints" / checkpoint.name_of(step))
    for more in ([], ["--check"]):
        code, printed = commands.run("push", run, "someone/x", "--milestones", *more)
        assert code == 2
        assert "has no milestones; checkpoint.milestones in its recipe asks for them" in printed
