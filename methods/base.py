"""What a distillation method is: hyperparameters, rounds of training, and a sampler. Torch only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from fewstep.methods.diffusion import Cond, Denoiser, Prediction

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Losses = dict[str, Tensor]  # weighted scalar terms; the runtime minimises their sum
Start = Literal["base", "previous", "previous_average"]  # the teacher, or the previous round's student or result


def to_device_async(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, behind all that it still has to do; a plain copy would wait for that."""
    is_leaving = tensor.device.type == "cpu" and torch.device(device).type == "cuda"
    return (tensor.pin_memory() if is_leaving else tensor).to(device, non_blocking=True)


class Draw:
    """The random numbers of one update.

    A draw is a function of (seed, update, step), of how many draws came before it, and of the sample's
    place in the global batch; never of the rank that asks. So any number of ranks sees the same numbers,
    and a resumed run needs no generator state.
    """

    def __init__(self, seed: int, step: int, update: int, rows: range, device: torch.device | str = "cpu") -> None:
        self.seed, self.step, self.update, self.rows, self.device = seed, step, update, rows, device
        self._calls = 0

    def seed_layers(self) -> None:
        """Seed torch's own generators, which dropout draws from: its masks alone depend on how a batch is cut up."""
        torch.manual_seed(self._key(self.rows.start))

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        self._calls += 1
        generator = torch.Generator()
        drawn = [draw(generator.manual_seed(self._key(row))) for row in self.rows]
        return to_device_async(torch.stack(drawn), self.device)

    def _key(self, row: int) -> int:
        """SplitMix64 over all that a draw depends on."""
        key = 0
        for part in (self.seed, self.step, self.update, self._calls, row):
            key = (key + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            key = (key ^ (key >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
            key ^= key >> 31
        return key

    def normal(self, like: Float[Tensor, "b *latent"]) -> Float[Tensor, "b *latent"]:
        """Unit Gaussian noise of that shape, in float32."""
        return self._each(lambda g: torch.randn(like.shape[1:], generator=g))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "b"]:
        """One number per sample in [low, high)."""
        return low + (high - low) * self._each(lambda g: torch.rand((), generator=g))

    def integers(self, low: int, high: int) -> Int[Tensor, "b"]:
        """One integer per sample in [low, high)."""
        return self._each(lambda g: torch.randint(low, high, (), generator=g))


@dataclass(frozen=True)
class Rows:
    """Rows of one source, on the device. A column that the source does not have is an error, never None."""

    columns: Mapping[str, Tensor]
    cond: Cond = dataclasses.field(default_factory=dict)  # what the rows are conditioned on, each entry [b, ...]
    uncond: Cond = dataclasses.field(default_factory=dict)  # the null condition, same entries

    def _column(self, name: str) -> Tensor:
        if name not in self.columns:
            raise KeyError(f"this source has no column {name!r}, only {', '.join(sorted(self.columns))}")
        return self.columns[name]

    @property
    def x0(self) -> Float[Tensor, "b *latent"]:
        """The clean latent: real data, or the end of a teacher's trajectory."""
        return self._column("x0")

    @property
    def blank(self) -> Float[Tensor, "b *latent"]:
        """Zeros of the latents' shape, for rows that are conditions alone."""
        return self._column("blank")

    @property
    def noise(self) -> Float[Tensor, "b *latent"]:
        """The unit noise that `x0` was generated from."""
        return self._column("noise")

    @property
    def path(self) -> Float[Tensor, "b points *latent"]:
        """The stored points of the ODE, noise first."""
        return self._column("path")

    @property
    def times(self) -> Float[Tensor, "b points"]:
        """The schedule's time of each point of `path`."""
        return self._column("times")

    @property
    def guidance_scale(self) -> Float[Tensor, "b"]:
        """The guidance scale that the row was generated with; 1 is none."""
        return self._column("guidance_scale")

    def __len__(self) -> int:
        return len(next(iter((self.columns or self.cond).values())))

    def take(self, rows: slice) -> Rows:
        """Some of the rows."""
        parts = ({name: value[rows] for name, value in part.items()} for part in (self.columns, self.cond, self.uncond))
        return Rows(*parts)


@dataclass(frozen=True)
class Batch:
    """What a loss sees: rows by source, and where its random numbers come from."""

    sources: Mapping[str, Rows]
    draw: Draw

    def __getitem__(self, source: str) -> Rows:
        return self.sources[source]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv:2106.09685), trained in place of the weights that they are added to."""

    rank: int = 0  # 0 is none: every weight is trained
    alpha: float = 0.0  # what they add is scaled by alpha / rank; 0 is the rank
    targets: tuple[str, ...] = ()  # how names of adapted modules end; () is LCM-LoRA's own choice


@dataclass(frozen=True)
class Trained:
    """A denoiser with its own optimizer, starting where its round starts.

    `prediction` and `schedule` re-purpose it ("" keeps the teacher's): reflow turns an epsilon network
    on a variance-preserving schedule into a velocity on straight paths. `guidance_input` makes the
    guidance scale one of its inputs, through an embedding that starts at zero.
    """

    lora: LoRA = LoRA()
    lr_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    prediction: Prediction | Literal[""] = ""
    schedule: Literal["", "flow", "edm", "zero_snr"] = ""
    guidance_input: bool = False
    init: Literal["student", "teacher"] = "student"  # the round's start, or its teacher (a fake score)


@dataclass(frozen=True)
class Averaged:
    """An exponential moving average of a trained network, in float32.

    Losses see it where it is a target; any other is for sampling when training is over.
    """

    of: str = "student"
    decay: float = 0.999
    is_target: bool = False


@dataclass(frozen=True)
class Critic:
    """A trained network that is no denoiser, built on what another network of the round sees."""

    init: Callable[[nn.Module], nn.Module]
    on: str = "features"  # the frozen feature network, or a denoiser named before it
    lr_scale: float = 1.0
    betas: tuple[float, float] = (0.0, 0.99)


@dataclass(frozen=True)
class Frozen:
    """A network that losses call and nobody trains: latents to pixels, pixels to features, two images to a distance."""

    role: Literal["decoder", "features", "perceptual"]


Net = Trained | Averaged | Critic | Frozen


@dataclass(frozen=True)
class Source:
    """Rows that a round reads, with its own loader and cursor.

    `path` and `pairs` are generated by the round's teacher (the whole ODE, or just its ends), `data` is
    real latents, `prompts` conditions alone. Zeros and empty strings leave the choice to the recipe.
    """

    kind: Literal["path", "pairs", "data", "prompts"]
    num_inference_steps: int = 0
    solver: str = ""
    guidance_scale: tuple[float, float] = (0.0, 0.0)
    skip: int = 0  # timesteps from a point of a path to the one it is compared with


@dataclass(frozen=True)
class Update:
    """One optimizer step of one network; every other network is frozen meanwhile."""

    net: str
    loss: Callable[[Nets, Batch], Losses]
    every: int = 1


@dataclass(frozen=True)
class Round:
    """One training run from one fixed teacher."""

    name: str
    updates: tuple[Update, ...]
    nets: Mapping[str, Net]
    sources: Mapping[str, Source]
    start: Start = "base"  # what initialises the student
    teacher: Start = "base"  # who teaches and generates
    result: str = "student"  # the network that is sampled, exported and passed on
    online: bool = True  # the losses call the teacher; False leaves it out of memory
    is_guided: bool = False  # they ask it about the null condition too
    length: float = 1.0  # of the recipe's training steps
    anneal: bool = False  # the learning rate falls to zero over the round, instead of staying constant


@dataclass(frozen=True)
class Sampler:
    """How a student is sampled.

    `kind` is the family of its scheduler; `guidance` says whether the guidance scale is an input of the
    network, is composed from two evaluations, or is already inside. `gamma` is the stochasticity of
    strategic sampling (arXiv:2402.19159). Overshooting goes two steps by DDIM and one back in fresh noise
    (arXiv:2210.03142, section 3.3).
    """

    kind: Literal["ddim", "overshooting", "renoising", "strategic", "euler"]
    guidance: Literal["none", "input", "composed"] = "none"
    gamma: float = 0.0
    grid: int = 50  # points of the training grid that inference times are chosen from


class NetworksByName(Protocol):
    """The networks of a round by name; denoisers answer with an Estimate."""

    def __getitem__(self, name: str, /) -> Denoiser: ...
    def __contains__(self, name: object, /) -> bool: ...


Nets = NetworksByName


def callable_network(nets: Nets, name: str) -> Callable[..., Any]:
    """A network of the round that is no denoiser: a critic, or a frozen one."""
    return cast(Callable[..., Any], nets[name])


def perceptual(nets: Nets, a: Float[Tensor, "b *latent"], b: Float[Tensor, "b *latent"]) -> Float[Tensor, "b"]:
    """The distance of the images that two latents decode to, by the round's `perceptual` network."""
    return callable_network(nets, "perceptual")(
        callable_network(nets, "decoder")(a), callable_network(nets, "decoder")(b)
    )


# What a search may vary. The orchestrator translates these for its searcher.
@dataclass(frozen=True)
class Uniform:
    """Evenly between two numbers."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """Evenly between two numbers' logarithms."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of several."""

    options: tuple[object, ...]


Range = Uniform | LogUniform | Choice


class Method(Protocol):
    """A distillation method: a frozen dataclass whose fields are its hyperparameters."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]
    paper: ClassVar[str]  # arXiv id
    space: ClassVar[Mapping[str, Range]]  # field -> what a search may try

    @property
    def student_steps(self) -> int:
        """The number of steps the student is made for."""
        ...

    def rounds(self) -> tuple[Round, ...]:
        """What to train, in order."""
        ...

    def sampler(self) -> Sampler:
        """How the last round's result is sampled."""
        ...
