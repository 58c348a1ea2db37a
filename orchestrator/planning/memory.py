"""Computes what a training worker holds from shapes: networks of the meta device have no memory for their weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fewstep.methods.base import Averaged, Frozen, Round, Trained
from fewstep.methods.diffusion import with_guidance
from fewstep.orchestrator.engines.deepspeed_config import BUCKET
from fewstep.orchestrator.families.network import TORCH_DTYPES, PipelineNetwork
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.students.student import student_network
from fewstep.orchestrator.teachers.teacher import Teacher

META = torch.device("meta")
MASTER, MOMENTS = 4, 8  # bytes a weight: its float32 copy, and Adam's two moments


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training worker by what they are for; `host` are those of them that are kept off its device."""

    weights: int  # that are trained, in the training's precision
    gradients: int  # and the buffer that ZeRO adds them up over the ranks in
    optimizer: int
    averages: int
    frozen: int  # the teacher, the base of adapters, the decoder
    activations: int  # that one network, and decoding where a loss looks at pictures, keep for the way back
    host: int

    @property
    def device(self) -> int:
        """Bytes on the device, all together."""
        return sum(dataclasses.astuple(self)) - 2 * self.host


def estimate(recipe: Recipe, teacher: Teacher) -> MemoryEstimate:
    """What the round that takes most holds. `teacher` is a skeleton, whose networks are shapes alone."""
    rounds = recipe.method.build().rounds()
    return max((of_round(recipe, round, teacher) for round in rounds), key=lambda memory: memory.device)


def of_round(recipe: Recipe, round: Round, teacher: Teacher) -> MemoryEstimate:
    """What one worker holds in a round, without critics, feature networks and what an allocator loses."""
    training, ranks = recipe.training, recipe.resources.workers
    width = TORCH_DTYPES[training.precision].itemsize
    specs = {name: net for name, net in round.nets.items() if isinstance(net, Trained)}
    # Networks that are made alike are alike.
    kinds = {(net.lora, net.guidance_input): net for net in specs.values()}
    nets = {kind: student_network(teacher.network, net) for kind, net in kinds.items()}
    counts = {kind: _count(weight for weight in net.parameters() if weight.requires_grad) for kind, net in nets.items()}
    trained = {name: counts[net.lora, net.guidance_input] for name, net in specs.items()}
    whole = sum(trained.values())
    weights, gradients, optimizer = (
        _per_rank(whole * size, ranks if training.zero_stage >= stage else 1)
        for size, stage in ((width, 3), (width, 2), (_optimizer_width(training), 1))
    )
    values, targets = _averages(training, ranks, round, trained)
    offloadable = optimizer + values  # averages are where the optimizer's weights are
    buckets = sum(min(each, BUCKET) * width for each in trained.values()) if training.zero_stage else 0
    frozen, elsewhere = _frozen(training, ranks, round, teacher, nets.values())
    return MemoryEstimate(
        weights=weights,
        gradients=gradients + buckets,
        optimizer=optimizer,
        averages=values + targets,
        frozen=frozen,
        activations=max(_activations(recipe, round, teacher, net) for net in nets.values())
        + (_decoding(recipe, teacher) if _is_decoded(round) else 0),
        host=elsewhere + {"none": 0, "optimizer": offloadable, "all": offloadable + weights}[training.offload],
    )


def _optimizer_width(training: Training) -> int:
    """DeepSpeed keeps a float32 copy of the weights at every stage but 0, whatever their precision."""
    return MOMENTS + (MASTER if training.zero_stage else 0)


def _averages(training: Training, ranks: int, round: Round, trained: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of float32 values, which are cut up as the optimizer's are, and of the networks that losses call."""
    follow = [net for net in round.nets.values() if isinstance(net, Averaged)]
    values = sum(trained[net.of] for net in follow) * MASTER
    targets = sum(trained[net.of] for net in follow if net.is_target) * TORCH_DTYPES[training.precision].itemsize
    stage = training.zero_stage
    return _per_rank(values, ranks if stage else 1), _per_rank(targets, ranks if stage == 3 else 1)


def _frozen(
    training: Training, ranks: int, round: Round, teacher: Teacher, nets: Iterable[nn.Module]
) -> tuple[int, int]:
    """Bytes of frozen networks: in all, and on the host. Adapters share their base with the teacher."""
    is_shared = any(isinstance(net, Trained) and net.lora.rank for net in round.nets.values())
    base = {id(weight): weight for net in nets for weight in net.parameters() if not weight.requires_grad}
    if round.online:
        base |= {id(weight): weight for weight in teacher.network.parameters()}
    # DeepSpeed casts what adapters train over, too, but not to float32.
    is_cast = is_shared and training.precision != "float32"
    size = _count(base.values()) * TORCH_DTYPES[training.precision if is_cast else teacher.spec.dtype].itemsize
    placement = training.teacher_placement
    size = _per_rank(size, ranks) if placement == "shard" else size
    decoder = teacher.pipeline.components.get("vae") if _is_decoded(round) else None
    extra = _count(decoder.parameters()) * TORCH_DTYPES[teacher.spec.dtype].itemsize if decoder else 0
    return size + extra, size if placement == "offload" else 0


def _is_decoded(round: Round) -> bool:
    """Does a loss look at pictures?"""
    return any(isinstance(net, Frozen) and net.role == "decoder" for net in round.nets.values())


def _rows(recipe: Recipe) -> int:
    """Rows of a micro-batch."""
    return recipe.training.batch_size // recipe.training.accumulation // recipe.resources.workers


def _activations(recipe: Recipe, round: Round, teacher: Teacher, net: PipelineNetwork) -> int:
    """Bytes that one forward of a micro-batch keeps for the way back."""
    training, rows, seen = recipe.training, _rows(recipe), Kept()
    nn.Module.to(net, TORCH_DTYPES[training.precision]).train()
    seen.weights = {_storage(tensor) for tensor in (*net.parameters(), *net.buffers())}
    if training.gradient_checkpointing:
        net.model.enable_gradient_checkpointing(seen.block)
    cond = {name: torch.empty(rows, *shape, device=META) for name, shape in net.cond_shapes.items()}
    if any(isinstance(spec, Trained) and spec.guidance_input for spec in round.nets.values()):
        cond = with_guidance(cond, torch.empty(rows, device=META))
    with FusedAttention(), saved_tensors_hooks(seen.keep, lambda tensor: tensor):
        net(torch.empty(rows, *_largest(teacher), device=META), torch.empty(rows, device=META), cond)
    return seen.bytes + seen.largest


def _largest(teacher: Teacher) -> tuple[int, ...]:
    """The latents that take most, where there are several sizes."""
    return max(teacher.family.latent_shapes, key=math.prod)


def _decoding(recipe: Recipe, teacher: Teacher) -> int:
    """Bytes that decoding a micro-batch keeps for the way back to the latents."""
    seen, rows = Kept(), _rows(recipe)
    seen.weights = {_storage(weight) for weight in teacher.pipeline.components["vae"].parameters()}
    with FusedAttention(), saved_tensors_hooks(seen.keep, lambda tensor: tensor):
        teacher.family.decode(torch.empty(rows, *_largest(teacher), device=META, requires_grad=True))
    return seen.bytes


class Kept:
    """Tensors that a forward keeps for the way back; of what is computed again there, the largest part."""

    def __init__(self) -> None:
        self.weights: set[int] = set()
        self.largest = 0
        self._tensors: dict[int, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all that was kept, each storage once."""
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


class FusedAttention(TorchFunctionMode):
    """Attention that keeps what fused kernels keep; the meta device would build the whole matrix of it."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict[str, object] | None = None
    ) -> object:
        """Make any call of torch, with attention replaced."""
        options = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value")[len(args) :]
            return _Attention.apply(*args[:3], *(options[name] for name in names))
        return func(*args, **options)


class _Attention(torch.autograd.Function):
    """Computes shapes alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[b, heads, tokens, width]; kept are the arguments and the answer."""
        answer = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, answer)
        return answer


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _per_rank(size: int, ranks: int) -> int:
    """What one rank has of so many bytes that all share."""
    return -(-size // ranks)
