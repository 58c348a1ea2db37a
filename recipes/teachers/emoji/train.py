"""Train the embedded text-to-image teacher from nothing: autoencoder, then text encoder and denoiser.

    python recipes/teachers/emoji/train.py --work outputs/emoji-teacher

About two hours on two cores. Interrupt it at will: the same command continues from the last
checkpoint in --work, and every step's randomness is a function of its number alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from data import SIZE, load, samples
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.recipes.teachers.training import fit

HERE = Path(__file__).parent
WORDS = 20  # tokens of a prompt, start and end included
WIDTH = 96  # of a token's embedding
BATCH = 64
POOL = 102_600  # augmented pictures encoded once for the denoiser

# diffusers annotates tuples of any length as tuples of one, and optional components and schedulers as others.
make_autoencoder: Callable[..., AutoencoderKL] = AutoencoderKL
make_pipeline: Callable[..., StableDiffusionPipeline] = StableDiffusionPipeline


def autoencoder() -> AutoencoderKL:
    """32x32x3 pixels to 8x8x8 latents; convolutions only."""
    torch.manual_seed(0)
    return make_autoencoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def text_encoder(vocabulary: int) -> CLIPTextModel:
    """One layer, trained with the denoiser."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def denoiser() -> UNet2DConditionModel:
    """A UNet of three levels, 8x8 to 2x2; most of its weights are where a pixel costs least."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 80, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, rescaled so that the last one is pure noise (arXiv:2305.08891)."""
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


def tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """Byte pairs learned from the captions, in CLIP's file format."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    learned.train_from_iterator(captions, trainer)
    model = json.loads(learned.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WORDS, pad_token="<|endoftext|>"
    )


def main(work: Path, autoencoder_steps: int, denoiser_steps: Sequence[int], export_only: bool) -> None:
    """Train both networks and write the pipeline beside this file."""
    work.mkdir(parents=True, exist_ok=True)
    pictures, emoji = load()
    steps = ((), ()) if export_only else ((autoencoder_steps,), denoiser_steps)

    def reconstruct(step: int, generator: torch.Generator) -> Tensor:
        x = samples(pictures, emoji, BATCH, seed=10_000_000 + step)[0]
        posterior = vae.encode(x, return_dict=False)[0]
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latents = posterior.mean + posterior.std * noise
        assert isinstance(latents, torch.FloatTensor)  # all that decode() is annotated for
        decoded = vae.decode(latents, return_dict=False)[0]
        return F.mse_loss(decoded, x) + 0.5 * F.l1_loss(decoded, x) + 3e-4 * posterior.kl().mean() / noise[0].numel()

    vae = autoencoder()
    trained_vae = fit("autoencoder", vae, reconstruct, cycles=steps[0], lr=2e-3, work=work)

    pool = work / "pool.pt"
    if not pool.exists():
        latents, captions = [], []
        for seed in range(POOL // 2052):
            x, texts, _ = samples(pictures, emoji, 2052, seed=seed)
            with torch.no_grad():
                latents += [trained_vae.encode(some, return_dict=False)[0].mean.half() for some in x.split(228)]
            captions += texts
        torch.save({"latents": torch.cat(latents), "captions": captions}, pool)
    state = torch.load(pool, weights_only=True)
    latents, captions = state["latents"].float(), state["captions"]
    trained_vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    latents *= trained_vae.config["scaling_factor"]

    words = tokenizer(captions, work / "tokenizer")
    tokens = words(captions, padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt").input_ids
    torch.manual_seed(1)
    net = nn.ModuleDict({"text_encoder": text_encoder(len(words)), "unet": denoiser()})
    noises = scheduler()
    alpha, sigma = noises.alphas_cumprod.sqrt(), (1 - noises.alphas_cumprod).sqrt()

    def denoise(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        a, s = alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
        x_t, v = a * latents[rows] + s * noise, a * noise - s * latents[rows]
        hidden = net["text_encoder"](tokens[rows]).last_hidden_state
        return F.mse_loss(net["unet"](x_t, t, hidden).sample, v)

    best = fit("denoiser", net, denoise, cycles=steps[1], lr=1.5e-3, work=work)
    make_pipeline(
        vae=trained_vae,
        text_encoder=best["text_encoder"],
        tokenizer=words,
        unet=best["unet"],
        scheduler=noises,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(HERE)
    # transformers computes in the dtype it finds here, diffusers in float32 unless told otherwise.
    config = HERE / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("outputs/emoji-teacher"), help="checkpoints")
    parser.add_argument("--autoencoder-steps", type=int, default=1200)
    parser.add_argument("--denoiser-steps", type=int, nargs="+", default=[22000, 12000], help="of each cycle")
    parser.add_argument("--export-only", action="store_true", help="write the pipeline as trained so far")
    args = parser.parse_args()
    main(args.work, args.autoencoder_steps, args.denoiser_steps, args.export_only)
