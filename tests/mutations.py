"""One wrong variant of the mathematics per trap, and the test that has to notice it.

python -m tests.mutations     # says which wrong variants went unnoticed, and fails if there is one
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    """Replace `right` by `wrong` in a file of methods/; `test` must fail then, and passes now."""

    file: str
    right: str
    wrong: str
    test: str  # pytest's id, below tests/methods


MUTATIONS: tuple[Mutation, ...] = ()


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from changed source."""

    def __init__(self, mutation: Mutation) -> None:
        self.file, self.name = ROOT / "methods" / mutation.file, f"methods.{Path(mutation.file).stem}"
        source = self.file.read_text()
        if source.count(mutation.right) != 1:
            raise ValueError(f"{mutation.file} holds {mutation.right!r} {source.count(mutation.right)} times, not once")
        self.source = source.replace(mutation.right, mutation.wrong)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """This module, and no other."""
        return importlib.util.spec_from_loader(fullname, self, origin=str(self.file)) if fullname == self.name else None

    def get_filename(self, fullname: str) -> str:
        """Where it would be."""
        return str(self.file)

    def get_data(self, path: str | bytes) -> bytes:
        """The changed source; there is no bytecode of it."""
        if not str(path).endswith(".py"):
            raise OSError("no bytecode")
        return self.source.encode()


def is_noticed(mutation: Mutation) -> bool:
    """Run the mutation's test in a process of its own, forked so that torch is imported once for all."""
    child = os.fork()
    if child == 0:
        import pytest

        sys.meta_path.insert(0, Mutated(mutation))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(pytest.main(["-x", "-p", "no:cacheprovider", str(ROOT / "tests/methods" / mutation.test)]))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 1  # pytest's code for failed tests; a wrong id is 4


def main() -> None:
    """Try all."""
    import diffusers  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    unnoticed = [mutation for mutation in MUTATIONS if not is_noticed(mutation)]
    for mutation in unnoticed:
        print(f"{mutation.file}: {mutation.wrong!r} goes unnoticed by {mutation.test}")
    print(f"{len(MUTATIONS) - len(unnoticed)} of {len(MUTATIONS)} wrong variants were noticed")
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
