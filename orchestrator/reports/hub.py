"""Pushes an exported student to a model hub, behind the gate that its teacher is behind."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.reports.licence import HUB_ERRORS, Gate


def check_push(id: str) -> None:
    """Raises BadInput for what is no repository's id, and where there is no token to push with."""
    try:
        validate_repo_id(id)
    except HFValidationError as error:
        raise BadInput(f"--push-to-hub: {error}; write it like name/model") from None
    if not get_token():
        raise BadInput("--push-to-hub: there is no token; set HF_TOKEN to one that may write, or run `hf auth login`")


def push(folder: Path, card: str, id: str, gate: Gate, *, private: bool) -> str:
    """Upload a folder, with this card, in one commit; its address. Raises BadInput where the hub says no."""
    api = HfApi()
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / "README.md"]
    named = {file.relative_to(folder).as_posix(): file for file in files}
    operations = [CommitOperationAdd(name, file) for name, file in named.items() if not name.startswith(".")]
    try:
        repo = api.create_repo(id, private=private, exist_ok=True)
        if private or gate:  # before there is anything to read
            api.update_repo_settings(repo.repo_id, private=private or None, gated=gate or None)
        card_file = CommitOperationAdd("README.md", card.encode())
        api.create_commit(repo.repo_id, [*operations, card_file], commit_message="Upload a student made by fewstep")
    except HUB_ERRORS as error:
        raise BadInput(f"--push-to-hub: {api.endpoint} did not take {id}: {' '.join(str(error).split())}") from error
    say(f"pushed: {repo.url}")
    return str(repo.url)
