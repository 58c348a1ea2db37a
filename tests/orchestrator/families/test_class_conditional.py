from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from fewstep.orchestrator.families.class_conditional import ClassConditional
from fewstep.orchestrator.pipelines import class_conditional
from fewstep.orchestrator.pipelines.class_conditional import ClassConditionalPipeline
from tests.support.source import ROOT
from tests.support.strangers import run_elsewhere

SIZE, CLASSES = 8, 3
LABELS = [0, 1, 2, 1]
# The arguments that fewstep exports students with, and that a user may put in their place.
SCHEDULERS = {
    "DDIMScheduler": {"timestep_spacing": "trailing"},
    "LCMScheduler": {"original_inference_steps": 50},
    "TCDScheduler": {"original_inference_steps": 50},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "trailing", "final_sigmas_type": "zero"},
    "UniPCMultistepScheduler": {"timestep_spacing": "trailing", "final_sigmas_type": "zero"},
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing"},
}


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def unet(num_class_embeds: int | None = CLASSES + 1, time_cond_proj_dim: int | None = None) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            num_class_embeds=num_class_embeds,
            time_cond_proj_dim=time_cond_proj_dim,
        )


def pipeline(time_cond_proj_dim: int | None = None) -> ClassConditionalPipeline:
    made = ClassConditionalPipeline(unet(time_cond_proj_dim=time_cond_proj_dim), scheduler())
    made.set_progress_bar_config(disable=True)
    return made


def sample(made: DiffusionPipeline, guidance_scale: float = 1.0, steps: int = 3, **given: object) -> Tensor:
    seeded = {"generator": torch.Generator().manual_seed(5)} | given
    return made(LABELS, steps, guidance_scale, output_type="pt", **seeded).images


def calls(made: ClassConditionalPipeline) -> list[dict[str, Tensor]]:
    """What the UNet is called with from now on."""
    seen: list[dict[str, Tensor]] = []
    made.unet.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    return seen


def test_a_saved_folder_loads_and_samples_with_diffusers_alone(tmp_path: Path) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "here.npy", sample(made, 2.0).numpy())
    script = f"""
import sys, numpy, torch
from diffusers import DiffusionPipeline
folder = sys.argv[1]
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipeline({LABELS}, 3, 2.0, generator=torch.Generator().manual_seed(5), output_type="pt").images
numpy.save("there.npy", images.numpy())
pipeline.save_pretrained("again")
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    run_elsewhere(script, tmp_path / "model", cwd=tmp_path, **environment)
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"), atol=1e-6)
    assert (tmp_path / "again" / "pipeline.py").read_text() == (tmp_path / "model" / "pipeline.py").read_text()


def test_our_own_class_loads_a_saved_folder_without_running_its_code(tmp_path: Path) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("raise AssertionError")
    assert torch.equal(sample(ClassConditionalPipeline.from_pretrained(tmp_path)), sample(made))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_every_scheduler_samples_the_same_finite_images_twice(name: str, guidance_scale: float) -> None:
    made = pipeline()
    made.scheduler = getattr(diffusers, name).from_config(made.scheduler.config, **SCHEDULERS[name])
    latents = torch.randn(len(LABELS), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    first, second = (sample(made, guidance_scale, latents=latents, eta=0.5) for _ in range(2))
    assert first.shape == (len(LABELS), 3, SIZE, SIZE) and bool(first.isfinite().all())
    assert first.min() >= 0 and first.max() <= 1 and first.std() > 0
    assert torch.equal(first, second)


def test_latents_are_the_noise_that_the_generator_would_have_drawn() -> None:
    noise = torch.randn(len(LABELS), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    assert torch.equal(sample(pipeline(), latents=noise), sample(pipeline()))


def test_eta_adds_noise_of_the_generator() -> None:
    made, latents = pipeline(), torch.zeros(len(LABELS), 1, SIZE, SIZE)
    still, stirred = (sample(made, latents=latents, eta=eta) for eta in (0.0, 1.0))
    assert not torch.equal(still, stirred)
    other = sample(made, latents=latents, eta=1.0, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(stirred, other)


def test_guidance_of_one_asks_once_and_only_for_the_class() -> None:
    made = pipeline()
    seen = calls(made)
    sample(made, 1.0, steps=1)
    assert [given["class_labels"].tolist() for given in seen] == [LABELS]


def test_guidance_leads_away_from_the_last_class() -> None:
    made = pipeline()
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config, prediction_type="sample")
    noise = torch.randn(len(LABELS), 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        # One step from pure noise lands on what the network says of the picture.
        told, null = (
            made.unet(noise, 999, None, class_labels=torch.tensor(labels)).sample
            for labels in (LABELS, [CLASSES] * len(LABELS))
        )
    expected = ((null + 2.5 * (told - null)) / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(sample(made, 2.5, steps=1, latents=noise), expected, atol=1e-5, rtol=0)


def test_a_guidance_input_is_embedded_as_stable_diffusion_does_and_asked_once() -> None:
    made = pipeline(time_cond_proj_dim=256)
    seen = calls(made)
    sample(made, 3.5, steps=1)
    (given,) = seen
    assert given["class_labels"].tolist() == LABELS
    w = torch.full((len(LABELS),), 2.5)
    # It makes no use of the pipeline that it is a method of.
    theirs = StableDiffusionPipeline.get_guidance_scale_embedding(made, w, embedding_dim=256)
    torch.testing.assert_close(given["timestep_cond"], theirs, atol=1e-3, rtol=0)


def test_a_guidance_input_changes_the_picture() -> None:
    made = pipeline(time_cond_proj_dim=256)
    assert not torch.equal(sample(made, 1.0), sample(made, 4.0))


def test_pictures_come_as_pil_numpy_and_torch() -> None:
    made = pipeline()
    torch_images = sample(made)
    pil, array = (
        made(LABELS, 3, generator=torch.Generator().manual_seed(5), output_type=kind, return_dict=False)[0]
        for kind in ("pil", "np")
    )
    assert np.array_equal(array, torch_images.permute(0, 2, 3, 1).numpy())
    assert [(image.size, image.mode) for image in pil] == [((SIZE, SIZE), "RGB")] * len(LABELS)
    assert np.array_equal(np.asarray(pil[2]), (array[2] * 255).round().astype("uint8"))


def test_half_precision_samples_without_a_cast_by_the_user() -> None:
    images = sample(pipeline().to(torch.bfloat16), 2.0)
    assert images.dtype == torch.float32 and bool(images.isfinite().all())


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="class_labels"):
        pipeline()([0, CLASSES + 1])


def test_a_pipeline_without_a_null_class_counts_them_all_and_is_never_guided(tmp_path: Path) -> None:
    ClassConditionalPipeline(unet(), scheduler(), has_null_class=False).save_pretrained(tmp_path)
    made = ClassConditionalPipeline.from_pretrained(tmp_path)
    assert made.null_class == CLASSES + 1 and not made.has_null_class
    assert sample(made).isfinite().all()
    with pytest.raises(ValueError, match="guidance_scale: 2 needs a null class"):
        sample(made, 2.0)
    encoded = ClassConditional(made).encode([str(CLASSES), ""])["class"]
    assert encoded.tolist() == [[0.0] * CLASSES + [1.0], [0.0] * (CLASSES + 1)]


def test_a_unet_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_class_embeds"):
        ClassConditionalPipeline(unet(num_class_embeds=None), scheduler())


def test_the_embedded_teacher_carries_this_very_pipeline() -> None:
    teacher = ROOT / "recipes" / "teachers" / "fashion"
    assert (teacher / "pipeline.py").read_text() == Path(class_conditional.__file__).read_text()
    made = ClassConditionalPipeline.from_pretrained(teacher)
    made.set_progress_bar_config(disable=True)
    images = made(range(10), 4, 1.5, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    # Clothes lie in the middle of black pictures.
    assert images.shape == (10, 3, 28, 28)
    assert images[..., 12:16, 12:16].mean() > 0.3 > 0.1 > images[..., :2].mean()
