"""Say what a search may try for a hyperparameter; the orchestrator translates these for its searcher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Uniform:
    """Evenly between two numbers."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """Evenly between two numbers' logarithms."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of several."""

    options: tuple[object, ...]


Range = Uniform | LogUniform | Choice
