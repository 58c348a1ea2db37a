"""DiT, a transformer told a class, as a network that students are made of."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from methods.diffusion import Cond
from orchestrator.network import PipelineNetwork


class DiTNetwork(PipelineNetwork[DiTTransformer2DModel]):
    """DiT as net(x_t, time, cond); `cond` holds "class" [b, classes], one-hot."""

    component = "transformer"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def __init__(self, model: DiTTransformer2DModel) -> None:
        super().__init__(model)
        for module in model.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # in training it would forget classes by chance; a student must not

    @property
    def cond_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """A class, or none."""
        return {"class": (self.model.config["num_embeds_ada_norm"] + 1,)}

    def forward(self, x_t: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The noise, in the model's own dtype; a variance that it learned beside it is left out."""
        output = self.model(x_t.to(self.model.dtype), time, cond["class"].argmax(1)).sample
        return output[:, : x_t.shape[1]]
