"""Say how a student is trained, and refuse precisions and placements that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from fewstep.orchestrator.recipe.section import Json, Section
from fewstep.orchestrator.recipe.teacher import Precision


class Training(Section):
    """How the student is trained. Sizes are global: over all workers and accumulation steps."""

    steps: int = Field(gt=0, description="Optimizer steps of a round; a method may make some rounds longer or shorter.")
    init_from: str = Field(
        default="",
        description='The folder of an exported student or of a LoRA that the first round starts from; "" '
        "starts from the teacher.",
    )
    batch_size: int = Field(default=64, gt=0, description="Samples per optimizer step, over all workers.")
    accumulation: int = Field(
        default=1, gt=0, description="Parts of a batch that each worker takes one after the other."
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="AdamW's learning rate, after warmup.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    warmup_steps: int = Field(
        default=0, ge=0, description="First steps of a round, in which the learning rate rises linearly."
    )
    decay_steps: int = Field(
        default=0, ge=0, description="Last steps of a round, in which the learning rate falls linearly to zero."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="The norm that longer gradients are clipped to.")
    precision: Precision = Field(
        default="float32",
        description="The precision of the networks that are trained; less than float32 needs `zero_stage` 1, "
        "2 or 3, which keep float32 weights besides.",
    )
    seed: int = Field(
        default=0, description="The seed of all that is random in training: the order of samples, noise and times."
    )
    checkpoint_every: int = Field(default=500, gt=0, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(
        default=2, gt=1, description="How many of the newest checkpoints are kept, besides the best."
    )
    log_every: int = Field(default=20, gt=0, description="Steps between reports of losses and rates.")
    evaluate_every: int = Field(
        default=0,
        ge=0,
        description="Steps between evaluations in the last round, whose best student becomes the result; 0 makes none.",
    )
    evaluate_at: int = Field(
        default=0,
        ge=0,
        description="Steps that the student is sampled with in these evaluations; 0 is what the method is made for.",
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="Evaluations in a row without a better one after which training stops; 0 never stops.",
    )
    features: str = Field(
        default="mobilenetv2",
        description="The network of perceptual and adversarial losses, which see pictures at their own size: "
        "mobilenetv2, clip:PATH_OR_ID or dinov2:PATH_OR_ID; for perceptual losses also lpips, which many papers mean "
        "and `pip install fewstep[lpips]` brings, or lpips:FILE with torchvision's weights of VGG16.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass instead of keeping them in memory."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="DeepSpeed's ZeRO stage: workers share out nothing (0), optimizer states (1), gradients "
        "too (2), weights too (3).",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        default="none",
        description="What moves to the host's memory: the `optimizer` state, or at `zero_stage` 3 `all`, "
        "weights included.",
    )
    placement: Literal["auto", "replicate", "shard", "offload"] = Field(
        default="auto",
        description="Where the teacher is: whole on each worker, sharded over them, or on the host; `auto` "
        "shards it at `zero_stage` 3 unless `evaluate_every` needs it whole.",
    )
    deepspeed: Json = Field(
        default={}, description="Entries of DeepSpeed's own configuration, merged over the one that fewstep writes."
    )

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
        """Where the teacher is; `auto` shards it where the student is sharded, unless evaluations need it whole."""
        if self.placement == "auto":
            return "shard" if self.zero_stage == 3 and not self.evaluate_every else "replicate"
        return self.placement
