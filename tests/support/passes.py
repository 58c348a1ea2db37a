"""How many passes through its networks each method's papers make a training step, at settings that people use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep.methods import METHODS
from fewstep.methods.base import Round
from fewstep.methods.batch import Rows

UNGUIDED = (1.0, 1.0)
NARROW = {"lora_rank": 2}  # the papers' 64 are as many as the small networks' channels that are counted here
FEWER = 1.1  # times a paper's passes are no waste


@dataclass(frozen=True)
class Expected:
    """A round of a method, and its passes: a forward is one, the way back two more.

    Second derivatives cannot be counted, so `add` is without R1, which no denoiser has a part in.
    """

    method: str
    passes: float
    fields: Mapping[str, object] = field(default_factory=dict)
    place: int = 0  # of the round
    steps: int = 1  # of training that the passes are averaged over

    @property
    def round(self) -> Round:
        """The round."""
        return METHODS[self.method](**self.fields).rounds()[self.place]


DMD2 = {"student_steps": 4, "regression_weight": 0.0, "adversarial_weight": 1e-3, "student_every": 5}
EXPECTED: Mapping[str, Expected] = {
    # the student, its target, and the guided teacher
    "lcm": Expected("lcm", 3 + 1 + 2),
    "lcm, unguided": Expected("lcm", 3 + 1 + 1, {"guidance_scale": UNGUIDED}),
    "lcm, stored": Expected("lcm", 3 + 1, {"teacher_step": "stored", "skip": 100}),
    "lcm-lora": Expected("lcm-lora", 3 + 1 + 2, NARROW),
    "lcm-lora, unguided": Expected("lcm-lora", 3 + 1 + 1, {**NARROW, "guidance_scale": UNGUIDED}),
    "tcd": Expected("tcd", 3 + 1 + 2, NARROW),
    "tcd, unguided": Expected("tcd", 3 + 1 + 1, {**NARROW, "guidance_scale": UNGUIDED}),
    # a step of Heun's asks the teacher twice
    "consistency": Expected("consistency", 3 + 1 + 2),
    "consistency, guided": Expected("consistency", 3 + 1 + 2 * 2, {"guidance_scale": 3.0}),
    # the student, and two steps of the teacher
    "progressive": Expected("progressive", 3 + 2),
    "progressive, guided": Expected("progressive", 3 + 2 * 2, {"guidance_scale": 3.0}),
    "guided": Expected("guided", 3 + 2),
    "reflow": Expected("reflow", 3),
    "instaflow": Expected("instaflow", 3, place=-1),
    # the discriminator's sample, the student, and the teacher's view of it
    "add": Expected("add", 1 + 3 + 2, {"r1_weight": 0.0}),
    "add, unguided": Expected("add", 1 + 3 + 1, {"r1_weight": 0.0, "guidance_scale": 1.0}),
    # the student's sample and its pair, the two scores of it, and the fake score's lesson
    "dmd": Expected("dmd", 3 + 3 + 2 + 1 + 3),
    # the authors' own code takes 8 to 9
    "dmd, 4 steps and a critic": Expected("dmd", 8, DMD2, steps=20),
}


def count_passes(train: Callable[[], None], network: nn.Module, rows: Rows) -> float:
    """Operations of all networks of a kind while one trains, in those of one forward pass of the rows."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(rows.x0, torch.full((len(rows),), 500.0), rows.cond)
    with FlopCounterMode(display=False) as counter:
        train()
    return sum(counter.get_flop_counts()[type(network).__name__].values()) / forward.get_total_flops()
