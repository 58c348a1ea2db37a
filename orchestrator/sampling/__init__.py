"""Solve a teacher's guided ODE from noise to data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.sampling.guidance import GuidedDenoiser as GuidedDenoiser
    from fewstep.orchestrator.sampling.ode import sample_path as sample_path
    from fewstep.orchestrator.sampling.solvers import SOLVERS as SOLVERS
    from fewstep.orchestrator.sampling.solvers import Solver as Solver

__getattr__ = lazy(__file__)
