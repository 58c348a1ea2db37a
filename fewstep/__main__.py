"""`python -m fewstep`, where the command is not on the path."""

from __future__ import annotations

from fewstep.orchestrator.cli.main import main

if __name__ == "__main__":
    main()
