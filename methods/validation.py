"""Refuse hyperparameters that make no sense, in one sentence that names the field, the value and the mend."""

from __future__ import annotations

import math


def require(holds: bool, message: str) -> None:
    """Refuse with a ValueError."""
    if not holds:
        raise ValueError(message)


def require_at_least(least: float, **fields: float) -> None:
    """Refuse values below a limit."""
    for name, value in fields.items():
        require(value >= least, f"{name} must be at least {least:g}, got {value:g}")


def require_positive(**fields: float) -> None:
    """Refuse zero and less."""
    for name, value in fields.items():
        require(value > 0, f"{name} must be positive, got {value:g}")


def require_decay(**fields: float) -> None:
    """Refuse decays with which a moving average would never move, or run away."""
    for name, value in fields.items():
        require(0 <= value < 1, f"{name} must be in [0, 1), got {value:g}")


def require_guidance_range(scale: tuple[float, float]) -> None:
    """Refuse a range that is reversed, or that starts below no guidance."""
    low, high = scale
    require(low <= high, f"guidance_scale range is reversed: [{low:g}, {high:g}]; write [{high:g}, {low:g}]")
    require(low >= 1, f"guidance_scale must be at least 1, which is no guidance, got {low:g}")


def require_halvings(teacher_steps: int, student_steps: int) -> None:
    """Refuse step counts that repeated halving does not lead from one to the other."""
    require_at_least(1, student_steps=student_steps)
    halvings = math.log2(teacher_steps / student_steps) if teacher_steps > student_steps else 0.0
    require(
        halvings >= 1 and halvings.is_integer(),
        f"teacher_steps must be student_steps={student_steps} doubled once or more, got {teacher_steps}",
    )
