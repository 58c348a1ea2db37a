"""Say what a search may try for a hyperparameter; the orchestrator translates these for its searcher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Uniform:
    """Try numbers spread evenly between two."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """Try numbers whose logarithms are spread evenly between those of two."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """Try each of several."""

    options: tuple[object, ...]


Range = Uniform | LogUniform | Choice
