from __future__ import annotations

import subprocess
import sys


def test_every_wrong_variant_of_the_mathematics_is_noticed() -> None:
    found = subprocess.run([sys.executable, "-m", "tests.mutations"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
