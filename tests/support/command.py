"""The command line, called in this process."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from fewstep.orchestrator.cli.app import BAD_INPUT, DONE
from fewstep.orchestrator.cli.main import app


def fewstep(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == BAD_INPUT, result.output
    assert result.stderr.startswith("fewstep: ") and result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def facts(*arguments: str | Path) -> dict:
    done = fewstep(*arguments, "--json")
    assert done.exit_code == DONE, done.output
    return json.loads(done.stdout)
