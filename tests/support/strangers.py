"""What somebody has who has diffusers, an exported folder and no fewstep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

AFTERWARDS = """
import sys
ours = {"fewstep", "ray"} & set(sys.modules)
assert not ours, f"{ours} came to be loaded"
"""


def run_elsewhere(script: str, *arguments: str | Path, cwd: Path, **environment: str) -> None:
    """Run a script in a process of its own. Raises AssertionError where it fails, or where it loaded our code."""
    command = [sys.executable, "-I", "-c", script + AFTERWARDS, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
