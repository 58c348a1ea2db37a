from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.mutations import METHODS, MUTATIONS, Mutation, mutate

SOURCE = """
class Sampler:
    def step(self, x, t):
        with torch.no_grad():
            return x * (1 - t)  # towards data


def loss(x, t):
    return (x - t) * (x - t)
"""
STEP = Mutation("", "Sampler.step", "1-t", "t", "")


def test_every_wrong_variant_of_the_mathematics_is_noticed() -> None:
    found = subprocess.run([sys.executable, "-m", "tests.mutations"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("file", sorted({mutation.file for mutation in MUTATIONS}))
def test_formatting_hides_no_place_of_a_mutation(file: str) -> None:
    source = (METHODS / file).read_text()
    formatted = ast.unparse(ast.parse(source))
    assert formatted != source
    for mutation in MUTATIONS:
        if mutation.file == file:
            assert mutate(mutation, formatted) == mutate(mutation, source) != formatted


def test_an_expression_or_a_statement_is_replaced_in_its_definition_alone() -> None:
    assert "return x * t\n" in mutate(STEP, SOURCE)
    grad = replace(STEP, right="torch.no_grad()", wrong="torch.enable_grad()")
    assert "with torch.enable_grad():\n            return x * (1 - t)" in mutate(grad, SOURCE)
    assert mutate(replace(STEP, definition="", right="return x * (1 - t)", wrong="return x"), SOURCE).count(
        "return x\n"
    )


def test_a_place_that_is_gone_is_said_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Sampler.step: '1 - s' -> 't': there 0 times, not once; nearest: 1 - t; "):
        mutate(replace(STEP, right="1 - s"), SOURCE)
    with pytest.raises(ValueError, match=r"'x - t' -> 't': there 2 times"):
        mutate(replace(STEP, definition="loss", right="x - t"), SOURCE)
    with pytest.raises(ValueError, match=r"Sample.step: .*no such definition; nearest: Sampler.step; "):
        mutate(replace(STEP, definition="Sample.step"), SOURCE)
