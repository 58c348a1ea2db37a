"""Sample systems, measure features, compare them with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.evaluation.comparison import evaluate as evaluate
    from fewstep.orchestrator.evaluation.evaluator import Evaluator as Evaluator
    from fewstep.orchestrator.evaluation.evaluator_pool import EvaluatorPool as EvaluatorPool
    from fewstep.orchestrator.evaluation.results import EvaluationResults as EvaluationResults

__getattr__ = lazy(__file__)
