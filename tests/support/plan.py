"""A data set's plan, without a teacher behind it."""

from __future__ import annotations

from fewstep.orchestrator.datasets.plan import Plan

PLAN = Plan(
    teacher={"revision": "abc", "scheduler": {"beta_start": 0.00085}},
    solver="ddim",
    scheduler="DDIMScheduler",
    scheduler_options={"timestep_spacing": "trailing"},
    num_inference_steps=4,
    guidance_scale=(1.5, 4.0),
    guidance_scales=(),
    negative_prompt="",
    prompts_sha256="0" * 64,
    num_prompts=7,
    prompt_repeats=1,
    prompt_order="rounds",
    samples=50,
    saved_points=(0, 1, 2, 3, 4),
    dtype="float16",
    compute_dtype="float32",
    latent_shape=(4, 8, 8),
    seed=3,
    batch_size=4,
    shard_size=8,
)
