"""Shows the person at the terminal lines and bars, on stderr; stdout belongs to --json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line about what is being done."""
    console.print(text, soft_wrap=True)


def print_facts(facts: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    console.print(table)


class RateColumn(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        """The rate, once there is one."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="dim")


class Bar:
    """A progress bar that is moved by counts."""

    def __init__(self, progress: Progress, total: int, description: str) -> None:
        self._progress, self._task = progress, progress.add_task(description, total=total)

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._progress.update(self._task, advance=count)

    def describe(self, description: str) -> None:
        """Say something else in front of the bar."""
        self._progress.update(self._task, description=description)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar with rate and time left; what was done before counts as done, not towards the rate."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bars:
        bar = Bar(bars, total, description)
        if done:
            bars.update(bars.task_ids[0], completed=done)
        yield bar
