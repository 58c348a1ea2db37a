"""A driver in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 600


def start(recipe: Path, output: Path, verb: str = "run", *changes: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fewstep", verb, str(recipe), f"output={output}", *changes, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen[str]) -> dict[str, object]:
    out, err = driver.communicate(timeout=DEADLINE_S)
    assert driver.returncode == 0, err[-3000:]
    return json.loads(out)


def kill_when(driver: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """SIGKILL the driver the moment something is there, while there is still more to do."""
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[1][-3000:]
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
