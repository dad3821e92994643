"""Download a run from the Hub, to resume it on another machine.

A run that was pushed with its training state (push.py) has its recipe, its records and the newest checkpoint on one
branch, and a tag for each checkpoint. `fetch_run` makes a run's folder of them, from which training resumes as usual.
It downloads a checkpoint only if it is newer than those in the folder, and verifies it before anything there changes.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checkpoint
from ..errors import HubError, UserError
from ..network import hub_requests
from ..recipe import Recipe
from ..storage import is_there, write_bytes
from ..training.resume import read_environment
from ..training.state import Progress
from .push import ENVIRONMENT, RECORDS, RECORDS_FOLDER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_RETRY_AFTER = (5.0, 15.0, 45.0, 120.0)  # seconds


def fetch_run(repo_id: str, branch: str, run_dir: Path) -> Path | None:
    """Download a run from the Hub into `run_dir`: its newest checkpoint, the best one, and its records.

    If the Hub does not answer, it is asked again for some minutes. Locks make sure that only one of several processes
    downloads, and none while another process trains in `run_dir`.

    Returns:
        The newest checkpoint; None if the one in `run_dir` is as new, or the Hub has none.

    Raises:
        UserError: the branch holds no training state, a damaged one, or that of another run than the one in `run_dir`.
        HubError: the Hub was not reached, or refused.
    """
    from filelock import FileLock

    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for pause in (*_RETRY_AFTER, None):
        try:
            with FileLock(folder / ".hub.lock"), checkpoint.run_lock(run_dir), hub_requests(repo_id):
                return _fetch(repo_id, branch, run_dir)
        except HubError as error:
            if not error.is_transient or pause is None:
                raise
            print(f"hub: {error}; asking again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def _fetch(repo_id: str, branch: str, run_dir: Path) -> Path | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(library_name="hf_gpt")
    try:
        commit = api.repo_info(repo_id, revision=branch).sha
    except RevisionNotFoundError:
        return None
    except RepositoryNotFoundError:
        api.whoami()  # a private repository looks missing without a good token, and the run would start over
        return None
    published = set(api.list_repo_files(repo_id, revision=commit))
    if not {checkpoint.MANIFEST, f"{RECORDS_FOLDER}/recipe.yaml"} <= published:
        raise UserError(
            f"checkpoint.resume: hub, but {repo_id} at '{branch}' holds no training state; a run pushes it with"
            " hub.with_training_state: true"
        )

    def download(name: str, revision: str = commit) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=revision))

    run_id = read_environment(download(ENVIRONMENT)).get("run_id")
    if read_environment(run_dir / "environment.json").get("run_id") not in (None, run_id):
        raise UserError(
            f"output_dir: {run_dir} holds another run than {repo_id} at '{branch}'; give another output_dir or"
            " hub.repo_id"
        )
    progress = Progress.read(download(f"{checkpoint.TRAINING_STATE}/state.json"))
    step, best_step = progress.step, progress.best_step
    newest, _ = checkpoint.newest_whole(run_dir)
    if newest is not None and checkpoint.step_of(newest) >= step:
        return None
    Recipe.from_yaml(download(f"{RECORDS_FOLDER}/recipe.yaml"))
    # The process may die between two of the following. The newest checkpoint comes last: until it is here, the next
    # attempt does everything again.
    final = run_dir / "checkpoints" / checkpoint.name_of(step)
    with checkpoint.placing(final) as directory:
        _download_checkpoint(api, repo_id, commit, directory)
        records = {name: f"{RECORDS_FOLDER}/{name}" for name in RECORDS}
        contents = {name: download(path).read_bytes() for name, path in records.items() if path in published}
        if best_step not in (None, step):
            _fetch_best(api, repo_id, run_id, final.with_name(checkpoint.name_of(best_step)))
        for name, content in contents.items():
            write_bytes(run_dir / name, content)
    return final


def _fetch_best(api: "HfApi", repo_id: str, run_id: str | None, final: Path) -> None:
    """Download the best checkpoint, unless it is here.

    It is left out if it was never pushed, or without its training state, or if its tag is another run's.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    with contextlib.suppress(checkpoint.DamagedCheckpoint):
        if is_there(final):
            return checkpoint.verify(final)
    with contextlib.suppress(RevisionNotFoundError, RemoteEntryNotFoundError):
        tagged = api.repo_info(repo_id, revision=final.name).sha
        environment = Path(api.hf_hub_download(repo_id, ENVIRONMENT, revision=tagged))
        if read_environment(environment).get("run_id") == run_id:
            try:
                with checkpoint.placing(final) as directory:
                    _download_checkpoint(api, repo_id, tagged, directory)
            except checkpoint.DamagedCheckpoint as error:
                print(f"hub: warning: the best checkpoint is left out: {error}", file=sys.stderr)


def _download_checkpoint(api: "HfApi", repo_id: str, commit: str, directory: Path) -> None:
    """Download a checkpoint, without the records of its run and what is not its own, and verify it."""
    snapshot = Path(api.snapshot_download(repo_id, revision=commit, ignore_patterns=f"{RECORDS_FOLDER}/*"))
    try:
        checkpoint.verify(snapshot)
    except checkpoint.DamagedCheckpoint as error:
        raise checkpoint.DamagedCheckpoint(f"{repo_id}: {error}") from None
    checkpoint.copy_listed(snapshot, directory, with_training_state=True)
    checkpoint.verify(directory)
