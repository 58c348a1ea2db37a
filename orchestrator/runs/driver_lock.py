"""Tells whether a live driver works in a directory, on this machine or another."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import psutil

BEAT_S = 5.0
SILENT_S = 60.0  # after which a driver on another machine counts as dead


def driver_of(folder: Path) -> str:
    """Who works in a directory now, or nothing."""
    try:
        driver = json.loads((folder / "driver.json").read_text())
        if driver["host"] != socket.gethostname():
            alive = time.time() - driver["beat"] < SILENT_S
        else:
            alive = psutil.Process(driver["pid"]).create_time() == driver["born"]
    except (FileNotFoundError, psutil.NoSuchProcess):
        return ""
    return f"process {driver['pid']} on {driver['host']}" if alive else ""
