"""A student network: made, warm-started, read back, exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.students.export import export_student as export_student
    from fewstep.orchestrator.students.round_result import StudentSpec as StudentSpec
    from fewstep.orchestrator.students.student import student_network as student_network

__getattr__ = lazy(__file__)
