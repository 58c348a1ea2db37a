"""What a run on a machine found, with the commit and the machine, in a file beside what was run."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import psutil


def commit_of(folder: Path) -> str:
    """What is checked out there."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    return told.stdout.strip()


def write_record(folder: Path, found: Mapping[str, object]) -> str:
    """Write `folder`/results.json; the machine, in words."""
    kind = f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPUs"
    machine = f"{kind}, Python {platform.python_version()}"
    facts = {
        "commit": commit_of(folder),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        **found,
    }
    (folder / "results.json").write_text(json.dumps(facts, indent=1) + "\n")
    return machine
