"""A text-to-image pipeline small enough for tests: real diffusers parts, a few thousand random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from fewstep.orchestrator.pipelines.class_conditional import ClassConditionalPipeline

WORDS = 12  # tokens of a prompt, start and end included
WIDTH = 16  # of a token's embedding
LATENT = (4, 8, 8)
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
PROMPTS = ("a cat", "a dog", "a red cat", "")


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer that spells: every letter is a token."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *letters, *(f"{x}</w>" for x in letters)])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WORDS, pad_token=SPECIAL[1]
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels with zero terminal SNR, as the embedded teacher has them."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def autoencoder() -> AutoencoderKL:
    """32x32x3 pixels to 4x8x8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=LATENT[0],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """One layer."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def denoiser(**others: object) -> UNet2DConditionModel:
    """A UNet of two levels with cross attention on the inner one; `others` are laid over its configuration."""
    config: dict[str, object] = {
        "sample_size": LATENT[1],
        "in_channels": LATENT[0],
        "out_channels": LATENT[0],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **others})


def teacher(folder: Path) -> Path:
    """Write the pipeline to `folder / "teacher"` and return that; the same files every time."""
    words = tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=autoencoder(),
            text_encoder=text_encoder(len(words)),
            tokenizer=words,
            unet=denoiser(),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    place = folder / "teacher"
    pipeline.save_pretrained(place)
    return place


def add_safety_checker(place: Path, *, finds_fault: bool = False) -> None:
    """Give a saved Stable Diffusion pipeline a checker that finds fault with nothing, or with everything."""
    tower = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**tower, image_size=32, patch_size=16, projection_dim=WIDTH)
    config = CLIPConfig(
        text_config=CLIPTextConfig(**tower).to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH
    )
    size = {"height": 32, "width": 32}
    checker = StableDiffusionSafetyChecker(config)
    nn.init.constant_(checker.concept_embeds_weights, -2.0 if finds_fault else 2.0)  # a cosine's threshold
    nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    pipeline = StableDiffusionPipeline.from_pretrained(
        place,
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
    )
    pipeline.save_pretrained(place)


def xl_scheduler() -> EulerDiscreteScheduler:
    """Stable Diffusion XL's own."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )


def xl_teacher(folder: Path) -> Path:
    """Write a Stable Diffusion XL pipeline to `folder / "xl"` and return that, with XL's own scheduler."""
    words = tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = denoiser(
            cross_attention_dim=2 * WIDTH,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        )
        pipeline = StableDiffusionXLPipeline(
            vae=autoencoder(),
            text_encoder=text_encoder(len(words)),
            text_encoder_2=CLIPTextModelWithProjection(text_encoder(len(words)).config),
            tokenizer=words,
            tokenizer_2=words,
            unet=unet,
            scheduler=xl_scheduler(),
        )
    place = folder / "xl"
    pipeline.save_pretrained(place)
    return place


def t5_tokenizer() -> T5TokenizerFast:
    """T5's that spells."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -1.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"),
    ]
    words = Tokenizer(Unigram(pieces, unk_id=2))
    words.pre_tokenizer = Metaspace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=words, extra_ids=0, model_max_length=WORDS)


def t5_encoder() -> T5EncoderModel:
    """One layer, as wide as two of CLIP's together."""
    return T5EncoderModel(T5Config(vocab_size=32, d_model=2 * WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def sd3_teacher(folder: Path) -> Path:
    """Write a Stable Diffusion 3 pipeline to `folder / "sd3"` and return that."""
    words = tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=LATENT[1],
            patch_size=2,
            in_channels=LATENT[0],
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            out_channels=LATENT[0],
            pos_embed_max_size=8,
        )
        nn.init.normal_(transformer.proj_out.weight, std=0.1)
        encoder = text_encoder(len(words)).config
        vae = autoencoder()
        vae.register_to_config(shift_factor=0.1)
        pipeline = StableDiffusion3Pipeline(
            vae=vae,
            text_encoder=CLIPTextModelWithProjection(encoder),
            text_encoder_2=CLIPTextModelWithProjection(encoder),
            text_encoder_3=t5_encoder(),
            tokenizer=words,
            tokenizer_2=words,
            tokenizer_3=t5_tokenizer(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    place = folder / "sd3"
    pipeline.save_pretrained(place)
    return place


def flux_teacher(folder: Path) -> Path:
    """Write a FLUX pipeline that is told its guidance to `folder / "flux"` and return that."""
    words = tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT[0],
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )
        nn.init.normal_(transformer.proj_out.weight, std=0.1)
        vae = autoencoder()
        vae.register_to_config(shift_factor=0.1)
        pipeline = FluxPipeline(
            vae=vae,
            text_encoder=text_encoder(len(words)),
            text_encoder_2=t5_encoder(),
            tokenizer=words,
            tokenizer_2=t5_tokenizer(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        )
    place = folder / "flux"
    pipeline.save_pretrained(place)
    return place


def pixart_transformer(sample_size: int, **others: object) -> PixArtTransformer2DModel:
    """One block that answers with noise and variance; `others` are laid over its configuration."""
    config: dict[str, object] = {
        "sample_size": sample_size,
        "num_layers": 1,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 3,
        "in_channels": LATENT[0],
        "out_channels": 2 * LATENT[0],
        "cross_attention_dim": 24,
        "caption_channels": 2 * WIDTH,
    }
    return PixArtTransformer2DModel(**{**config, **others})


def pixart_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt's own."""
    return DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)


def alpha_teacher(folder: Path) -> Path:
    """Write a PixArt-alpha pipeline that is told the picture's size to `folder / "alpha"` and return that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = PixArtAlphaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_encoder(),
            vae=autoencoder(),
            transformer=pixart_transformer(128, use_additional_conditions=True),
            scheduler=pixart_scheduler(),
        )
    place = folder / "alpha"
    pipeline.save_pretrained(place)
    return place


def sigma_teacher(folder: Path) -> Path:
    """Write a PixArt-sigma pipeline to `folder / "sigma"` and return that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = PixArtSigmaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_encoder(),
            vae=autoencoder(),
            transformer=pixart_transformer(LATENT[1]),
            scheduler=pixart_scheduler(),
        )
    place = folder / "sigma"
    pipeline.save_pretrained(place)
    return place


def dit_teacher(folder: Path) -> Path:
    """Write a DiT pipeline to `folder / "dit"` and return that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            sample_size=LATENT[1],
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=LATENT[0],
            out_channels=2 * LATENT[0],
        )
        pipeline = DiTPipeline(transformer, autoencoder(), DDIMScheduler(clip_sample=False))
    place = folder / "dit"
    pipeline.save_pretrained(place)
    return place


def plain_unet(**others: object) -> UNet2DModel:
    """A UNet of two levels that reads no text; `others` are laid over its configuration."""
    config: dict[str, object] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return UNet2DModel(**{**config, **others})


def unconditional_teacher(folder: Path) -> Path:
    """Write a DDPM pipeline of pixels to `folder / "unconditional"` and return that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = DDPMPipeline(plain_unet(), DDPMScheduler())
    place = folder / "unconditional"
    pipeline.save_pretrained(place)
    return place


def labelled_teacher(folder: Path) -> Path:
    """Write a UNet2DModel of three classes and none to `folder / "labelled"` and return that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = ClassConditionalPipeline(plain_unet(num_class_embeds=4), scheduler())
    place = folder / "labelled"
    pipeline.save_pretrained(place)
    return place


def class_teacher(folder: Path) -> Path:
    """Write a class-conditional pipeline of three classes to `folder / "classes"` and return that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            num_class_embeds=4,
        )
    place = folder / "classes"
    ClassConditionalPipeline(unet, scheduler()).save_pretrained(place)
    return place


def prompts(folder: Path) -> Path:
    """Write the prompts to a text file, one a line."""
    file = folder / "prompts.txt"
    file.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return file


def class_recipe_data(folder: Path) -> dict[str, dict[str, object] | str]:
    """The same recipe on the class-conditional teacher."""
    told = recipe_data(folder)
    classes = folder / "classes.txt"
    classes.write_text("0\n1\n2\n")
    for section in ("trajectories", "evaluation"):
        part = told[section]
        assert isinstance(part, dict)
        part["prompts"] = str(classes)
    return {**told, "teacher": {"folder": str(class_teacher(folder))}}


def epsilon_teacher(folder: Path) -> Path:
    """The pipeline with epsilon and PixArt's noise levels, which are diffusers' default: 1 / alpha ends at 157."""
    place = teacher(folder)
    config = place / "scheduler" / "scheduler_config.json"
    table = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "rescale_betas_zero_snr": False}
    config.write_text(json.dumps(json.loads(config.read_text()) | table | {"prediction_type": "epsilon"}))
    return place


def recipe_data(folder: Path) -> dict[str, dict[str, object] | str]:
    """A whole recipe as plain data on the tiny teacher: seconds from end to end. Tests override what they need."""
    return {
        "teacher": {"folder": str(teacher(folder))},
        "trajectories": {
            "prompts": str(prompts(folder)),
            "samples": 20,
            "num_inference_steps": 4,
            "guidance_scale": [1.0, 4.0],
            "batch_size": 4,
            "shard_size": 8,
            "seed": 7,
        },
        "method": {"name": "lcm"},
        "training": {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "log_every": 1},
        "evaluation": {
            "prompts": str(prompts(folder)),
            "samples": 8,
            "steps": [1, 2],
            "reference_steps": 4,
            "solvers": ["ddim"],
            "guidance_scales": [1.0],
            "selection_samples": 8,
            "batch_size": 4,
            "bootstraps": 20,
        },
        "output": str(folder / "run"),
    }


def search_data(folder: Path) -> dict[str, object]:
    """A search of that recipe over what a method declares, and the prompts that it chooses by."""
    chosen_by = folder / "chosen_by.txt"
    chosen_by.write_text("a blue cat\na blue dog\n")
    return {
        "searcher": "random",
        "trials": 2,
        "prompts": str(chosen_by),
        "space": {"method.skip": [250, 500], "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        "seeds": 2,
    }
