"""Wraps a model of the user's own, whatever its network, as a family of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from fewstep.methods.diffusion import Cond
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.families.family import Family
from fewstep.orchestrator.families.network import PipelineNetwork
from fewstep.orchestrator.pipelines.own import OwnNetwork, OwnPipeline, call_factory

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FAR = 10.0  # times as wide as noise, which no picture's samples are


def nothing(conditions: Sequence[str]) -> dict[str, Tensor]:
    """`nothing` [n, 1], zeros: the condition of an unconditional network. Raises BadInput for any other."""
    for condition in conditions:
        if condition:
            raise BadInput(f"prompts: {condition!r} means nothing to an unconditional teacher; leave `prompts` out")
    return {"nothing": torch.zeros(len(conditions), 1)}


@dataclass(frozen=True)
class OwnModel:
    """Any network that denoises samples of any shape, with what is to be known of it.

    `network(x_t, time, cond)` answers with the shape of x_t [b, *shape]. `time` [b] counts as it does for
    diffusers' networks: 0 to 999, on straight paths 0 to 1000. The scheduler is diffusers', like DDPMScheduler or
    FlowMatchEulerDiscreteScheduler: its configuration says the noise levels and, as `prediction_type`, what the network
    answers with.
    """

    network: nn.Module
    scheduler: SchedulerMixin
    shape: tuple[int, ...]  # of one sample, without the batch
    encode: Callable[[Sequence[str]], dict[str, Tensor]] = nothing  # prompts to `cond`, [n, ...] each; "" is the null
    has_null: bool = False  # was it trained with the null condition, so that it can be guided?
    # Samples to images [n, 3, height, width] in -1..1; None where they are no pictures, and nothing is evaluated.
    decode: Callable[[Tensor], Tensor] | None = None


class CustomNetwork(PipelineNetwork[OwnNetwork]):
    """A network of the user's own as net(x_t, time, cond)."""

    component = "network"

    def __init__(self, model: OwnNetwork) -> None:
        super().__init__(model)
        self.lora_targets = tuple(name for name, module in model.named_modules() if isinstance(module, ADAPTED))

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The raw output of the model; its inputs but times and integers are brought to its own dtype."""
        dtype = self.model.dtype
        cond = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
        return self.model(x_t.to(dtype), time, cond)


class Custom(Family[OwnPipeline]):
    """What a factory makes."""

    pipeline_class = OwnPipeline
    tells_times = True

    def __init__(self, pipeline: OwnPipeline, sizes: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(pipeline, sizes)
        if sizes:
            raise BadInput("teacher.resolution means nothing to a factory's model, which says its shape; leave it out")
        self.is_conditional = pipeline.model.encode is not nothing

    @property
    def network(self) -> CustomNetwork:
        """The network of the factory's model."""
        return CustomNetwork(self.pipeline.network)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample, as the factory declares it."""
        return self.pipeline.model.shape

    @property
    def has_null(self) -> bool:
        """Whether the factory declares a null condition."""
        return self.own.has_null

    @property
    def has_pictures(self) -> bool:
        """Whether the factory says how to decode samples."""
        return self.own.decode is not None

    @property
    def own(self) -> OwnModel:
        """What the factory returned."""
        assert isinstance(self.pipeline.model, OwnModel)
        return self.pipeline.model

    def pixels(self, latent_shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of a picture, found by decoding one sample of zeros."""
        height, width = self.decode(torch.zeros(1, *latent_shape, device=self.pipeline.device)).shape[-2:]
        return height, width

    def encode(self, conditions: Sequence[str]) -> dict[str, Tensor]:
        """Encode by the factory's function. Raises BadInput for an answer that is not one row per condition."""
        cond = self.own.encode(list(conditions))
        for name, value in cond.items():
            if value.ndim < 2 or len(value) != len(conditions):
                raise BadInput(
                    f"teacher.factory: encode gives {name!r} as {list(value.shape)} for {len(conditions)} conditions; "
                    "it has to be [n, ...] of two dimensions or more"
                )
        return {name: value.to(self.pipeline.device) for name, value in cond.items()}

    def decode(self, latents: Tensor) -> Tensor:
        """Decode by the factory's function. Raises BadInput where there is none."""
        if self.own.decode is None:
            raise BadInput("teacher.factory: this model's samples are no pictures; give its OwnModel a `decode`")
        return self.own.decode(latents).float()

    def warnings(self) -> list[str]:
        """That `decode` clamps, as pictures are usually decoded: then nothing pulls back what leaves their range."""
        if self.own.decode is None or self._is_decode_steep():
            return []
        return [
            "teacher.factory: its decode clamps or squashes pictures (or computes without gradients), so that no loss "
            "on pictures pulls back what is out of range, and none is seen to be; let decode answer unclamped"
        ]

    def _is_decode_steep(self) -> bool:
        """Whether a gradient comes back from the brightest and darkest that it makes of far too much."""
        noise = torch.randn(4, *self.latent_shape, generator=torch.Generator().manual_seed(0))
        samples = (FAR * noise).to(self.pipeline.device).requires_grad_()
        with torch.enable_grad():
            pictures = self.decode(samples)
        if not pictures.requires_grad:
            return False
        edge = pictures[pictures.abs() >= pictures.detach().abs().amax()]
        (gradient,) = torch.autograd.grad(edge.sum(), samples)
        return bool(gradient.any())

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Raises BadInput: a factory says nothing of how images become samples."""
        raise BadInput("data.images: a factory's model is trained on its own samples alone; leave images out")

    def call_arguments(
        self, conditions: Sequence[str], negative: str, steps: int, guidance_scale: float
    ) -> Mapping[str, object]:
        """Conditions, and the negative one of guidance."""
        return {
            "conditions": list(conditions),
            "negative": negative,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }


def model_from(factory: str) -> OwnPipeline:
    """The pipeline of a factory's model. Raises BadInput where it cannot be had."""
    try:
        model = call_factory(factory)
    except (ImportError, KeyError) as error:
        raise BadInput(
            f"teacher.factory: {factory} cannot be imported ({error}); install its package where fewstep runs, "
            "or put its folder on PYTHONPATH"
        ) from error
    if not isinstance(model, OwnModel):
        raise BadInput(f"teacher.factory: {factory} returns a {type(model).__name__}; it has to return an OwnModel")
    pipeline = OwnPipeline(OwnNetwork(factory, model.network), model.scheduler)
    pipeline.model = model
    return pipeline
