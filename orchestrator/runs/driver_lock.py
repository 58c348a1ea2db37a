"""Tells whether a live driver works in a directory, on this machine or another."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import psutil

BEAT_S = 5.0
SAME_START_S = 2.0  # a process's start is counted from the boot, whose time moves when the clock is set
SILENT_S = 60.0  # after which a driver on another machine counts as dead


def driver_of(folder: Path) -> str:
    """Who works in a directory now, or nothing."""
    try:
        driver = json.loads((folder / "driver.json").read_text())
        if driver["host"] != socket.gethostname():
            alive = time.time() - driver["beat"] < SILENT_S
        else:
            alive = abs(psutil.Process(driver["pid"]).create_time() - driver["born"]) < SAME_START_S
    except (FileNotFoundError, psutil.NoSuchProcess):
        return ""
    return f"process {driver['pid']} on {driver['host']}" if alive else ""
