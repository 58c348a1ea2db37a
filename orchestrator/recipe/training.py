"""recipe/training.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from fewstep.orchestrator.recipe.section import Json, Section
from fewstep.orchestrator.recipe.teacher import Precision


class Training(Section):
    """How the student is trained. Sizes are global: over all workers and accumulation steps."""

    steps: int = Field(gt=0)
    init_from: str = ""  # a student's folder, or a LoRA's, that the first round goes on from; the teacher by default
    batch_size: int = Field(default=64, gt=0)
    accumulation: int = Field(default=1, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)  # the last ones of a round, in which the rate falls linearly to zero
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "float32"
    seed: int = 0
    checkpoint_every: int = Field(default=500, gt=0)  # steps
    keep_checkpoints: int = Field(default=2, gt=1)
    log_every: int = Field(default=20, gt=0)  # steps
    evaluate_every: int = Field(default=0, ge=0)  # steps of the last round, whose best becomes its result; 0 is never
    evaluate_at: int = Field(default=0, ge=0)  # steps of the student; 0 is as many as the method is made for
    patience: int = Field(default=0, ge=0)  # evaluations without a better one, then training stops; 0 goes on
    features: str = "mobilenetv2"  # the feature network of perceptual and adversarial losses
    gradient_checkpointing: bool = False  # compute activations again on the way back instead of keeping them
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = "none"  # to the host's memory; all is the weights too, at ZeRO-3
    placement: Literal["auto", "replicate", "shard", "offload"] = "auto"  # of the teacher; auto is below
    deepspeed: Json = {}  # merged over the configuration that fewstep writes

    @model_validator(mode="after")
    def _evaluated(self) -> Training:
        if self.patience and not self.evaluate_every:
            raise ValueError(f"patience={self.patience} counts evaluations, and there are none; set evaluate_every")
        return self

    @model_validator(mode="after")
    def _staged(self) -> Training:
        if self.precision != "float32" and not self.zero_stage:
            raise ValueError(
                f"precision {self.precision} needs zero_stage 1, 2 or 3, which keep the float32 weights that averages "
                "and optimizer steps are made of; set zero_stage to 1"
            )
        if self.offload != "none" and not self.zero_stage:
            raise ValueError("offload needs zero_stage 1, 2 or 3; set zero_stage to 1")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError("offload of all, the weights too, needs zero_stage 3; set that, or offload the optimizer")
        zero = self.deepspeed.get("zero_optimization")
        if isinstance(zero, Mapping) and zero.get("round_robin_gradients"):
            raise ValueError(
                "deepspeed.zero_optimization.round_robin_gradients deals weights out by the number of ranks, so that "
                "averages could not go on with another; leave it out"
            )
        if self.evaluate_every and self.placement in ("shard", "offload"):
            raise ValueError(
                f"placement {self.placement} leaves no rank the whole teacher, of which evaluate_every makes the "
                "student that it judges; leave one of the two out"
            )
        return self

    @property
    def teacher_placement(self) -> Literal["replicate", "shard", "offload"]:
        """Where the teacher is kept. By itself it is cut up where the student is, unless exams need it whole."""
        if self.placement == "auto":
            return "shard" if self.zero_stage == 3 and not self.evaluate_every else "replicate"
        return self.placement
