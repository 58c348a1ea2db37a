"""Writes and reads what a finished round leaves behind: weights, and what they mean."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.methods.base import LoRA, Round, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.orchestrator.families.network import PipelineNetwork, is_adapter
from fewstep.orchestrator.files import write_whole
from fewstep.orchestrator.students.student import as_denoiser, trained_of
from fewstep.orchestrator.teachers.teacher import Teacher

Weights = Literal["result", "student"]  # what is sampled and exported, or the raw weights that training ended with


@dataclass(frozen=True)
class StudentSpec:
    """What a round's weights mean; "" is the teacher's own."""

    guidance_input: bool
    prediction: str
    schedule: str
    lora: LoRA = LoRA()
    start_time: int = 0

    @classmethod
    def of(cls, spec: Trained) -> StudentSpec:
        """What the method declares of the network."""
        return cls(spec.guidance_input, spec.prediction, spec.schedule, spec.lora, spec.start_time)

    @classmethod
    def read(cls, result: Path) -> StudentSpec:
        """What a finished round wrote of its network."""
        return TypeAdapter(cls).validate_json((result / "student.json").read_bytes())


def write_result(folder: Path, states: Mapping[Weights, dict[str, Tensor]], round: Round, batches: str) -> None:
    """A round's student, whole or not at all, with a digest of the batches that made it."""
    fresh = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    fresh.mkdir(parents=True)
    for name, state in states.items():
        save_file(state, fresh / f"{name}.safetensors")
    facts = StudentSpec.of(trained_of(round, round.result))
    write_whole(fresh / "student.json", json.dumps(dataclasses.asdict(facts), indent=1))
    write_whole(fresh / "lineage.json", json.dumps({"batches": batches}))
    fresh.rename(folder)


def read_network(result: Path, base: Teacher, weights: Weights = "result") -> PipelineNetwork:
    """A finished round's network; `base` is the model that the run started from."""
    return network_of(StudentSpec.read(result), load_file(result / f"{weights}.safetensors"), base)


def network_of(facts: StudentSpec, state: Mapping[str, Tensor], base: Teacher) -> PipelineNetwork:
    """A network of its own with what was trained of it, as `full_state` gathers that."""
    network = base.network
    if facts.guidance_input:
        network = network.with_guidance_input(shares_weights=facts.lora.rank > 0)
    elif not facts.lora.rank:
        network = network.copy()
    if facts.lora.rank:
        network = network.with_lora(facts.lora)
    missing, unknown = network.load_state_dict(state, strict=False)
    own = [name for name, _ in network.named_parameters() if not facts.lora.rank or is_adapter(name)]
    assert not unknown and not set(missing) & set(own)  # buffers, like a table of positions, are the teacher's
    return network


def read_denoiser(result: Path, base: Teacher, round: Round, weights: Weights) -> Denoiser:
    """A finished round's network with what its output means, frozen."""
    network = read_network(result, base, weights).requires_grad_(False).eval()
    return as_denoiser(network, trained_of(round, round.result), base.denoiser())
