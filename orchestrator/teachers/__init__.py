"""A pipeline loaded, frozen and seen as a denoiser; or its skeleton without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.doors import lazy

if TYPE_CHECKING:
    from fewstep.orchestrator.teachers.card import TeacherCard as TeacherCard
    from fewstep.orchestrator.teachers.load import load_student as load_student
    from fewstep.orchestrator.teachers.teacher import Teacher as Teacher

__getattr__ = lazy(__file__)
