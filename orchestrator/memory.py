"""What a training worker holds, computed from shapes: the networks are built without memory for their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from methods.base import Averaged, Frozen, Round, Trained
from methods.diffusion import with_guidance
from orchestrator.families import DTYPES
from orchestrator.network import PipelineNetwork
from orchestrator.networks import student_network
from orchestrator.recipe import Recipe, Training
from orchestrator.teacher import Teacher

MASTER, MOMENTS = 4, 8  # bytes a weight: its float32 copy, and Adam's two moments
BUCKET = 500_000_000  # gradients that DeepSpeed reduces together


@dataclass(frozen=True)
class Memory:
    """Bytes of one training worker by what they are for; `host` are those of them that are kept off its device."""

    weights: int  # that are trained, in the training's precision
    gradients: int
    optimizer: int
    averages: int
    frozen: int  # the teacher, the base of adapters, the decoder
    activations: int  # that one network keeps for the way back; a rough figure
    host: int

    @property
    def device(self) -> int:
        """Of the device, all together."""
        return sum(dataclasses.astuple(self)) - 2 * self.host


def estimate(recipe: Recipe, teacher: Teacher) -> Memory:
    """Of the round that takes most. `teacher` may be a skeleton."""
    rounds = recipe.method.build().rounds()
    return max((of_round(recipe, round, teacher) for round in rounds), key=lambda memory: memory.device)


def of_round(recipe: Recipe, round: Round, teacher: Teacher) -> Memory:
    """What one worker holds in a round, without what an allocator loses."""
    training, ranks = recipe.training, recipe.resources.workers
    width = DTYPES[training.precision].itemsize
    nets = {
        name: cast(PipelineNetwork, student_network(teacher.network, net))
        for name, net in round.nets.items()
        if isinstance(net, Trained)
    }
    trained = {name: _count(w for w in net.parameters() if w.requires_grad) for name, net in nets.items()}
    weights, gradients, optimizer = (
        _shared(sum(trained.values()) * size, ranks if training.zero_stage >= stage else 1)
        for size, stage in ((width, 3), (width, 2), (_optimizer_width(training), 1))
    )
    averaged = sum(trained[net.of] for net in round.nets.values() if isinstance(net, Averaged))
    averages = _shared(averaged * (MASTER + (width if width < MASTER else 0)), ranks if training.zero_stage == 3 else 1)
    frozen, elsewhere = _frozen(training, ranks, round, teacher, nets.values())
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        averages=averages,
        frozen=frozen,
        activations=max(_activations(recipe, round, teacher, net) for net in nets.values()),
        host=elsewhere + {"none": 0, "optimizer": optimizer, "all": optimizer + weights}[training.offload],
    )


def _optimizer_width(training: Training) -> int:
    """DeepSpeed keeps a float32 copy of the weights at every stage but 0, whatever their precision."""
    return MOMENTS + (MASTER if training.zero_stage else 0)


def _frozen(
    training: Training, ranks: int, round: Round, teacher: Teacher, nets: Iterable[nn.Module]
) -> tuple[int, int]:
    """Of frozen networks: bytes in all, and those of the host. Adapters share their base with the teacher."""
    is_shared = any(isinstance(net, Trained) and net.lora.rank for net in round.nets.values())
    base = {id(weight): weight for net in nets for weight in net.parameters() if not weight.requires_grad}
    if round.online:
        base |= {id(weight): weight for weight in teacher.network.parameters()}
    width = DTYPES[training.precision if is_shared else teacher.spec.dtype].itemsize
    held, placement = _count(base.values()) * width, training.teacher_placement
    held = _shared(held, ranks) if placement == "shard" else held
    is_decoded = any(isinstance(net, Frozen) and net.role == "decoder" for net in round.nets.values())
    decoder = teacher.pipeline.components.get("vae") if is_decoded else None
    extra = _count(decoder.parameters()) * DTYPES[teacher.spec.dtype].itemsize if decoder else 0
    return held + extra, held if placement == "offload" else 0


def _activations(recipe: Recipe, round: Round, teacher: Teacher, net: PipelineNetwork) -> int:
    """Bytes that one forward of a micro-batch keeps for the way back."""
    training = recipe.training
    rows = training.batch_size // training.accumulation // recipe.resources.workers
    dtype = DTYPES[training.precision]
    seen = Kept()
    if training.gradient_checkpointing:
        net.model.enable_gradient_checkpointing(seen.block)
    with FakeTensorMode(), saved_tensors_hooks(seen.keep, lambda tensor: tensor):
        weights = {name: _like(tensor, dtype) for name, tensor in (*net.named_parameters(), *net.named_buffers())}
        seen.weights = {_storage(weight) for weight in weights.values()}
        cond = {name: torch.empty(rows, *shape) for name, shape in net.cond_shapes.items()}
        if any(isinstance(spec, Trained) and spec.guidance_input for spec in round.nets.values()):
            cond = with_guidance(cond, torch.empty(rows))
        functional_call(net, weights, (torch.empty(rows, *teacher.family.latent_shape), torch.empty(rows), cond))
    return seen.bytes + seen.largest


class Kept:
    """Tensors that a forward keeps for the way back; of what is computed again there, the largest part."""

    def __init__(self) -> None:
        self.weights: set[int] = set()
        self.largest = 0
        self._tensors: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Of all that was kept, each storage once."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor."""
        if _storage(tensor) not in self.weights:
            self._tensors[_storage(tensor)] = tensor
        return tensor

    def block(self, module: Callable[..., object], *inputs: object) -> object:
        """Run a part that keeps its inputs alone, as diffusers asks for gradient checkpointing."""
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self.keep(tensor)
        inside = Kept()
        inside.weights = self.weights
        with saved_tensors_hooks(inside.keep, lambda tensor: tensor):
            output = module(*inputs)
        self.largest = max(self.largest, inside.bytes)
        return output


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A fake of a weight, or of a table, as training holds it."""
    is_cast = tensor.is_floating_point() and dtype != torch.float32
    return torch.empty(tensor.shape, dtype=dtype if is_cast else tensor.dtype, requires_grad=tensor.requires_grad)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _shared(held: int, ranks: int) -> int:
    """A rank's part."""
    return -(-held // ranks)
