"""Distillation methods by name. How to add one: `methods/README.md`."""

from __future__ import annotations

from fewstep.methods.adversarial import Adversarial
from fewstep.methods.base import Method
from fewstep.methods.consistency import Consistency
from fewstep.methods.distribution_matching import DistributionMatching
from fewstep.methods.guided import Guided
from fewstep.methods.instaflow import InstaFlow
from fewstep.methods.lcm import LCM, LCMLoRA
from fewstep.methods.progressive import Progressive
from fewstep.methods.reflow import Reflow
from fewstep.methods.trajectory_consistency import TrajectoryConsistency

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
