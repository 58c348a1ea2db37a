"""Starts a job on a cluster: puts its inputs where every node finds them, then runs its command."""

from __future__ import annotations

import shutil
import sys
import uuid
from pathlib import Path

from fewstep.orchestrator.cli import main as cli
from fewstep.orchestrator.submission.layout import INPUTS, inputs_folder


def unpack(inputs: Path, folder: Path) -> None:
    """Copy each input whole or not at all; one that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(inputs.glob("*")):
        target = folder / source.name
        fresh = folder / f".{uuid.uuid4().hex}"
        if target.exists():
            continue
        if source.is_dir():
            shutil.copytree(source, fresh)
        else:
            shutil.copyfile(source, fresh)
        try:
            fresh.rename(target)
        except OSError:  # another job was faster with the same folder
            if not target.exists():
                raise
            shutil.rmtree(fresh)


def main() -> None:
    """`python -m fewstep.orchestrator.cli.cluster_job OUTPUTS VERB RECIPE`, in the folder of a bundle."""
    outputs = sys.argv.pop(1)
    unpack(Path(INPUTS), inputs_folder(outputs))
    cli.main()


if __name__ == "__main__":
    main()
