"""The loop, one rank of a round, and rounds on Ray Train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.training.driver import train_rounds as train_rounds
    from fewstep.orchestrator.training.round_trainer import RoundTrainer as RoundTrainer
    from fewstep.orchestrator.training.validator import Validator as Validator

__getattr__ = lazy(__file__)
