"""Say how people load and call a pipeline, for cards and reports: by its name, without the pipeline itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

RAW = {"clean_caption": False, "use_resolution_binning": False}  # PixArt's captions and sizes as they are


@dataclass(frozen=True)
class Usage:
    """How stock diffusers loads and calls a student of one pipeline."""

    task: str  # as model hubs name it
    conditions: Callable[[str], str] = repr  # one condition, spelled as text, as the pipeline's first argument
    options: Mapping[str, object] = field(default_factory=dict)  # arguments that it always gets
    is_conditional: bool = True
    has_size: bool = False  # it takes height and width
    loads_lora: bool = False  # with `load_lora_weights`
    brings_code: bool = False  # the student's folder holds the code of its pipeline
    save: str = 'image.save("picture.png")'  # what an example does with a sample

    def loading(self, source: str) -> dict[str, object]:
        """What loading a student takes besides its folder or hub id, which is `source`."""
        return {"custom_pipeline": source, "trust_remote_code": True} if self.brings_code else {}

    def arguments(self, condition: str, steps: int) -> str:
        """The pipeline's arguments up to the number of steps."""
        first = [self.conditions(condition)] if self.is_conditional else []
        options = {**self.options, "num_inference_steps": steps}
        return ", ".join([*first, *(f"{name}={value}" for name, value in options.items())])


_TEXT = Usage("text-to-image", has_size=True, loads_lora=True)
_PIXART = Usage("text-to-image", options=RAW, has_size=True)
_PIXELS = "unconditional-image-generation"
USAGES = {
    "StableDiffusionPipeline": _TEXT,
    "StableDiffusionXLPipeline": _TEXT,
    "StableDiffusion3Pipeline": _TEXT,
    "FluxPipeline": _TEXT,
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "ClassConditionalPipeline": Usage(_PIXELS, lambda condition: f"[{condition}]", brings_code=True),
    "DiTPipeline": Usage(_PIXELS, lambda condition: f"[{condition}]"),
    "DDPMPipeline": Usage(_PIXELS, is_conditional=False),
    "DDIMPipeline": Usage(_PIXELS, is_conditional=False),
    "OwnPipeline": Usage("other", lambda condition: f"[{condition!r}]", brings_code=True, save="print(image.shape)"),
}
