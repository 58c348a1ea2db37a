"""Distillation methods by name. To add one: write a file, add a line here."""

from __future__ import annotations

from methods.adversarial import Adversarial
from methods.base import Method
from methods.consistency import Consistency
from methods.distribution_matching import DistributionMatching
from methods.guided import Guided
from methods.instaflow import InstaFlow
from methods.lcm import LCM, LCMLoRA
from methods.progressive import Progressive
from methods.reflow import Reflow
from methods.trajectory_consistency import TrajectoryConsistency

METHODS: dict[str, type[Method]] = {
    "add": Adversarial,
    "consistency": Consistency,
    "dmd": DistributionMatching,
    "guided": Guided,
    "instaflow": InstaFlow,
    "lcm": LCM,
    "lcm-lora": LCMLoRA,
    "progressive": Progressive,
    "reflow": Reflow,
    "tcd": TrajectoryConsistency,
}
