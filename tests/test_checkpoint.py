"""A checkpoint is there whole or not at all, and what is broken is named."""

import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_gpt import checkpoint
from hf_gpt.errors import UserError
from hf_gpt.storage import replacing_directory, set_aside


def write(run_dir, step, text="weights"):
    with checkpoint.writing(run_dir, step) as directory:
        (directory / "model.safetensors").write_text(text)
        (directory / "training_state" / "state.json").write_text("{}")
    return run_dir / "checkpoints" / checkpoint.name_of(step)


def test_a_checkpoint_appears_when_it_is_whole(tmp_path):
    with checkpoint.writing(tmp_path, 5) as directory:
        (directory / "model.safetensors").write_text("w")
        assert checkpoint.checkpoints(tmp_path) == []
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-00000005"]
    checkpoint.verify(checkpoint.checkpoints(tmp_path)[0])


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with checkpoint.writing(tmp_path, 5) as directory:
            (directory / "model.safetensors").write_text("w")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"files": []}', '{"files": {}}', '{"files": {"a": 1}}'])
def test_a_manifest_that_is_none_is_no_whole_checkpoint(tmp_path, manifest):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    (newer / checkpoint.MANIFEST).write_text(manifest)
    found, problems = checkpoint.newest_whole(tmp_path)
    assert found == older
    assert "not a complete training checkpoint" in problems[newer]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_text("weigh"), "truncated or altered"),
        (lambda path: path.write_text("weightz"), "SHA-256"),
    ],
)
def test_a_damaged_file_is_named_and_the_older_checkpoint_is_found(tmp_path, damage, message):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    damage(newer / "model.safetensors")
    with pytest.raises(UserError, match=message) as error:
        checkpoint.verify(newer)
    assert str(newer / "model.safetensors") in str(error.value)
    found, problems = checkpoint.newest_whole(tmp_path)
    assert found == older
    assert list(problems) == [newer]
    set_aside(newer)
    assert checkpoint.checkpoints(tmp_path) == [older]
    assert (tmp_path / "checkpoints" / "damaged-step-00000002").is_dir()


def test_a_model_is_whole_whatever_happened_to_its_training_state(tmp_path):
    saved = write(tmp_path, 2)
    (saved / "training_state" / "state.json").write_text("[]")
    assert checkpoint.opened(saved) == saved
    (saved / "model.safetensors").write_text("other")
    with pytest.raises(checkpoint.DamagedCheckpoint, match=r"model\.safetensors: truncated or altered"):
        checkpoint.opened(saved)


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        saved = write(tmp_path, step)
        if step == 2:
            checkpoint.point(tmp_path, "best", saved)
    checkpoint.prune(tmp_path, keep=1)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [2, 4]
    checkpoint.prune(tmp_path, keep=None)
    assert len(checkpoint.checkpoints(tmp_path)) == 2


def test_what_a_dead_process_left_is_cleared(tmp_path):
    write(tmp_path, 1)
    left = tmp_path / "checkpoints" / ".writing-1-step-00000002"
    left.mkdir()
    checkpoint.prune(tmp_path, keep=3)
    assert not left.exists()


def test_a_person_may_name_a_run_a_checkpoint_or_best(tmp_path):
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    (first / "config.json").write_text("{}")
    assert checkpoint.resolve_model(str(tmp_path)) == str(second)
    checkpoint.point(tmp_path, "best", first)
    assert checkpoint.resolve_model(str(tmp_path)) == str(first)
    assert checkpoint.resolve_model(f"{tmp_path}/checkpoints/best") == str(first)
    assert checkpoint.resolve_model(str(first)) == str(first)
    assert checkpoint.resolve_model("someone/model") == "someone/model"
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "missing", tmp_path / "file", second):
        with pytest.raises(UserError):
            checkpoint.resolve_model(str(wrong))


@pytest.mark.parametrize("name", ["model.safetensors", "training_state/manifest.json"])
@pytest.mark.parametrize(
    "kind", ["a directory", "a link in a circle", "a link to nowhere", "a pipe", "a failing disk"]
)
def test_what_cannot_be_read_is_not_damaged(tmp_path, name, kind):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    path.unlink()
    if kind == "a directory":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"a link in a circle": path, "a link to nowhere": "/not/mounted"}.get(kind, "/proc/self/mem"))
    with pytest.raises(UserError, match=f"{name}: cannot be read: ") as refused:
        checkpoint.newest_whole(tmp_path)
    assert not isinstance(refused.value, checkpoint.DamagedCheckpoint)


@pytest.mark.parametrize(
    "closed", ["checkpoints", "checkpoints/step-00000002", "checkpoints/step-00000002/model.safetensors"]
)
def test_without_permission_no_checkpoint_is_called_damaged_or_missing(closed, request):
    """As an ordinary user, since the superuser may read anything."""
    run_dir = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(run_dir))
    write(run_dir, 1)
    write(run_dir, 2)
    run_dir.chmod(0o755)
    (run_dir / closed).chmod(0)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            checkpoint.newest_whole(run_dir)
        except checkpoint.DamagedCheckpoint:
            code = 1
        except UserError as error:
            code = 0 if str(run_dir / closed) in str(error) and "Permission denied" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (run_dir / closed).chmod(0o755)


def test_threads_do_not_write_into_each_others_files(tmp_path):
    with replacing_directory(tmp_path / "it") as one:
        (one / "file").write_text("one")
        with ThreadPoolExecutor(1) as other:
            other.submit(lambda: replacing_directory(tmp_path / "it").__enter__()).result()
        assert (one / "file").read_text() == "one"


def test_nothing_that_was_set_aside_is_replaced(tmp_path):
    for text in ("first", "second", "third"):
        set_aside(write(tmp_path, 2, text))
    found = {path.name: (path / "model.safetensors").read_text() for path in (tmp_path / "checkpoints").iterdir()}
    names = ("damaged-step-00000002", "damaged-step-00000002-2", "damaged-step-00000002-3")
    assert found == dict(zip(names, ("first", "second", "third")))
    write(tmp_path, 3, "fourth")
    write(tmp_path, 3, "fifth")  # somebody put one there while the run trained
    assert (tmp_path / "checkpoints" / "damaged-step-00000003" / "model.safetensors").read_text() == "fourth"
    checkpoint.prune(tmp_path, keep=1)
    assert len(list((tmp_path / "checkpoints").glob("damaged-*"))) == 4


OUTSIDE = [
    "../../elsewhere/step-00000002",
    "/elsewhere/step-00000002",
    "step-00000001/../step-00000002",
    "step-2",
    "",
    ".",
]


@pytest.mark.parametrize("text", OUTSIDE)
def test_a_pointer_names_a_step_beside_it_or_is_refused(tmp_path, text):
    write(tmp_path, 1)
    saved = write(tmp_path, 2)
    shutil.copytree(saved, tmp_path / "elsewhere" / saved.name)
    (tmp_path / "checkpoints" / "best").write_text(
        text.replace("/elsewhere", f"{tmp_path}/elsewhere", text[:1] == "/")
    )
    for asked in (lambda: checkpoint.pointed(tmp_path, "best"), lambda: checkpoint.resolve_model(str(tmp_path))):
        with pytest.raises(UserError, match=r"checkpoints/best: names .*; remove it or mend it"):
            asked()
    checkpoint.prune(tmp_path, keep=1)  # does not know which is the best
    assert len(checkpoint.checkpoints(tmp_path)) == 2


def test_a_pointer_that_is_a_link_is_refused(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "mine").write_text("step-00000001\n")
    (tmp_path / "checkpoints" / "latest").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="latest: is a link"):
        checkpoint.pointed(tmp_path, "latest")


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path, capsys):
    saved = write(tmp_path, 1)
    checkpoint.point(tmp_path, "best", saved.with_name("step-00000007"))
    assert checkpoint.resolve_model(str(tmp_path)) == str(saved)
    assert "its best checkpoint is not there; taking its newest" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../b"])
def test_a_manifest_does_not_list_files_of_other_folders(tmp_path, name):
    saved = write(tmp_path, 1)
    (saved / checkpoint.MANIFEST).write_text(json.dumps({"files": {name: {"size": 1, "sha256": "0"}}}))
    with pytest.raises(checkpoint.DamagedCheckpoint, match=r"manifest\.json is missing or damaged"):
        checkpoint.verify(saved)


def test_weights_are_those_that_transformers_would_read(tmp_path):
    saved = write(tmp_path, 1)
    for added in ("model-old.safetensors", "model-00001-of-00001.safetensors", "adapter_model.safetensors"):
        (saved / added).write_text("other")
    assert checkpoint.weight_files(saved) == [saved / "model.safetensors"]
    assert checkpoint.unlisted(saved) == sorted(
        ["model-old.safetensors", "model-00001-of-00001.safetensors", "adapter_model.safetensors"]
    )
    (saved / checkpoint.MANIFEST).unlink()  # another's model
    (saved / "model.safetensors").unlink()
    index = saved / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-old.safetensors", "b": "model-00001-of-00001.safetensors"}})
    )
    assert [path.name for path in checkpoint.weight_files(saved)] == [
        "model-old.safetensors",
        "model-00001-of-00001.safetensors",
    ]
    for shard in ("../step-00000002/model.safetensors", str(saved / "model-old.safetensors"), "", 1, None, ["x"]):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        for read in (checkpoint.weight_files, checkpoint.opened):
            with pytest.raises(UserError, match=r"index\.json: names .*; the weights were not read"):
                read(saved)


def test_a_link_in_place_of_a_checkpoint_is_pruned_as_a_link(tmp_path):
    kept = write(tmp_path, 1).rename(tmp_path / "large disk")
    (tmp_path / "checkpoints" / "step-00000001").symlink_to(kept)
    write(tmp_path, 2)
    checkpoint.prune(tmp_path, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert (kept / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("lock", ["directory", "circle"])
def test_a_lock_that_cannot_be_held_is_one_line(tmp_path, lock):
    path = tmp_path / "checkpoints" / ".lock"
    path.parent.mkdir()
    path.mkdir() if lock == "directory" else path.symlink_to(path)
    with pytest.raises(UserError, match=r"\.lock: cannot be locked: "), checkpoint.run_lock(tmp_path):
        pass


def test_the_best_is_found_from_within_the_folder_of_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best").write_text("step-00000004\n")
    monkeypatch.chdir(tmp_path / "checkpoints")
    assert checkpoint.resolve_model("best") == str(tmp_path / "checkpoints" / "step-00000004")
    assert checkpoint.short_name("best") == f"{tmp_path.name}, best"
    monkeypatch.chdir(tmp_path)
    assert checkpoint.short_name(".") == checkpoint.short_name(str(tmp_path)) == tmp_path.name
    assert checkpoint.short_name("someone/my-gpt@main") == "someone/my-gpt@main"
