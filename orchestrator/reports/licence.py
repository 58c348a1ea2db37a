"""Reads what a teacher's authors ask of whoever passes its student on: their licence, its files, their gate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, hf_hub_download, metadata_load
from huggingface_hub.errors import HTTPError

from fewstep.orchestrator.observability.console import say
from fewstep.orchestrator.recipe.teacher import TeacherSpec

KEYS = re.compile(r"license|license_name|license_link|extra_gated_\w+")  # of a model card's front matter
FILES = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY)([._-].*)?", re.IGNORECASE)
HUB_ERRORS = (HTTPError, OSError)  # of the hub, and of the way to it
Gate = Literal["", "auto", "manual"]  # as model hubs call it


@dataclass(frozen=True)
class Terms:
    """They hold for the student as they do for its teacher."""

    front: Mapping[str, object] = field(default_factory=dict)  # of the card: licence, and what its gate asks
    gate: Gate = ""
    files: tuple[Path, ...] = ()  # that spell the licence out

    @property
    def licence(self) -> str:
        """The licence as the card names it; "other" where it names none that can be read here."""
        return str(self.front.get("license_name") or self.front.get("license") or "other")


def terms_of(teacher: TeacherSpec) -> Terms:
    """Read the terms from the teacher's own card and files, on disk or on the model hub.

    Nothing for a factory's model, and where the hub does not answer.
    """
    if teacher.factory:
        return Terms()
    return _of_folder(Path(teacher.folder)) if teacher.folder else _of_hub(teacher.hub, teacher.revision)


def _of_folder(folder: Path) -> Terms:
    """A folder cannot say whether its hub asks by hand; a gate that a card describes opens by itself."""
    card = folder / "README.md"
    front = _chosen(metadata_load(card) or {}) if card.exists() else {}
    is_gated = any(key.startswith("extra_gated") for key in front)
    files = sorted(file for file in folder.iterdir() if file.is_file() and FILES.fullmatch(file.name))
    return Terms(front, "auto" if is_gated else "", tuple(files))


def _of_hub(id: str, revision: str) -> Terms:
    pinned = revision or None
    try:
        info = HfApi().model_info(id, revision=pinned)
        names = [file.rfilename for file in info.siblings or [] if FILES.fullmatch(file.rfilename)]
        files = [Path(hf_hub_download(id, name, revision=pinned)) for name in names]
    except HUB_ERRORS:
        say(f"the licence of {id} could not be read from the hub; the student's card says where it is")
        return Terms()
    front = _chosen(info.card_data.to_dict() if info.card_data else {})
    return Terms(front, info.gated or "", tuple(files))


def _chosen(front: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in front.items() if KEYS.fullmatch(key)}
