"""A checkpoint is there whole or not at all, and what is broken is named."""

import pytest

from hf_gpt import checkpoint
from hf_gpt.errors import UserError


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
    checkpoint.set_aside(newer)
    assert checkpoint.checkpoints(tmp_path) == [older]
    assert (tmp_path / "checkpoints" / "damaged-step-00000002").is_dir()


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


def test_the_best_is_found_from_within_the_folder_of_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best").write_text("step-00000004\n")
    monkeypatch.chdir(tmp_path / "checkpoints")
    assert checkpoint.resolve_model("best") == str(tmp_path / "checkpoints" / "step-00000004")
    assert checkpoint.short_name("best") == f"{tmp_path.name}, best"
    monkeypatch.chdir(tmp_path)
    assert checkpoint.short_name(".") == checkpoint.short_name(str(tmp_path)) == tmp_path.name
    assert checkpoint.short_name("someone/my-gpt@main") == "someone/my-gpt@main"
