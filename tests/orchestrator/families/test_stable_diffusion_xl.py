"""Stable Diffusion XL: two text encoders, the picture's size, and an empty prompt of zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import check_sources
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.results import UNJUDGED
from fewstep.orchestrator.evaluation.system import System
from fewstep.orchestrator.families.usage import USAGES
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.planning.preflight import preflight
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.reports.licence import Terms
from fewstep.orchestrator.reports.model_card import CardFacts, snippet
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.pipeline import write
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.data_sets import fill, new_commit_log
from tests.support.students import evaluator, stock_with_adapters, teacher_path, untrained

PROMPTS = ["a cat", "a red dog"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("xl")
    return parse({**tiny.recipe_data(folder), "teacher": {"folder": str(tiny.xl_teacher(folder))}})


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_pipeline_itself_makes_the_same_pictures(recipe: Recipe, guidance_scale: float) -> None:
    teacher = Teacher(recipe.teacher)
    noise = torch.randn(2, *tiny.LATENT, generator=torch.Generator().manual_seed(0))
    states, _, _ = teacher_path(teacher, "dpm++", PROMPTS, guidance_scale, noise)
    dataset_kind = StableDiffusionXLPipeline.from_pretrained(recipe.teacher.folder)
    dataset_kind.scheduler = SOLVERS["dpm++"].build(teacher.scheduler, 4)
    dataset_kind.set_progress_bar_config(disable=True)
    made = dataset_kind(
        PROMPTS, num_inference_steps=4, guidance_scale=guidance_scale, latents=noise.clone(), output_type="pt"
    ).images
    torch.testing.assert_close(teacher.decode(states[:, -1]), made, atol=1e-4, rtol=0)


def test_the_empty_prompt_is_zeros_where_the_pipeline_says_so(recipe: Recipe) -> None:
    empty = Teacher(recipe.teacher).encode(["", "a cat"])
    assert not empty["prompt"][0].any() and not empty["pooled"][0].any()
    assert empty["prompt"][1].any() and empty["pooled"][1].any()
    assert empty["size"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2


@pytest.fixture(scope="module")
def sized(recipe: Recipe) -> Recipe:
    """In two sizes."""
    told, sampled = dict(recipe.teacher) | {"resolution": ((48, 32), (32, 32))}, dict(recipe.trajectories)
    return parse({**recipe.resolved(), "teacher": told, "trajectories": {**sampled, "guidance_scale": 5.0}})


def test_shards_are_sampled_in_sizes_that_the_network_is_told(sized: Recipe, tmp_path: Path) -> None:
    commit_log, prompts = new_commit_log(sized, tmp_path), read_prompts(sized.trajectories.prompts)
    fill(commit_log)
    dataset = Dataset.open(commit_log.url, 1)
    groups = dataset.row_groups()
    assert groups.shapes == [(4, 12, 8), (4, 8, 8), (4, 12, 8)]
    rows = groups.read(0)
    asked = [prompts[commit_log.plan.condition_prompt(c)] for c in rows["condition_id"].tolist()]
    spoken = [row for row, prompt in enumerate(asked) if prompt]  # the pipeline has zeros for negative prompts alone
    dataset_kind = StableDiffusionXLPipeline.from_pretrained(sized.teacher.folder)
    dataset_kind.set_progress_bar_config(disable=True)
    dataset_kind.scheduler = SOLVERS["ddim"].build(Teacher(sized.teacher).scheduler, 4)
    made = dataset_kind(
        [asked[row] for row in spoken],
        height=48,
        width=32,
        num_inference_steps=4,
        guidance_scale=5.0,
        latents=rows["path"][spoken, 0].float(),
        output_type="latent",
    ).images
    # Only the batches differ, so only the last bits of float32 do, and of the float16 that they are rounded to.
    torch.testing.assert_close(rows["path"][spoken, -1].float(), made, atol=2e-3, rtol=2e-3)


def test_a_students_card_says_the_size_that_is_judged(sized: Recipe) -> None:
    told = CardFacts(sized, USAGES["StableDiffusionXLPipeline"], UNJUDGED, "a cat", Terms(), {})
    assert "height=48, width=32" in snippet(told, Path(sized.teacher.folder), "here")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"teacher": {"compile": True}}, "teacher.compile: each size would be compiled"),
        ({"data": {"imported": "somewhere"}}, "teacher.resolution has 2 sizes, and what is imported one; give one"),
        ({"teacher": {"resolution": [[32, 36]]}}, "teacher.resolution: 36 is not a multiple of 8; try 32"),
        ({"teacher": {"resolution": [[32, 0]]}}, "teacher.resolution"),
        ({"trajectories": {"samples": 8}}, "there are 2 sizes and 1 shards; lower trajectories.shard_size=8"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(sized: Recipe, section: dict[str, dict[str, object]], says: str) -> None:
    whole = sized.model_dump(mode="json") | {"method": sized.method.resolved()}
    with pytest.raises(BadInput, match=says):
        told = parse({**whole, **{name: {**whole[name], **part} for name, part in section.items()}})
        check_sources(told)
        preflight(told, Teacher(told.teacher))


@pytest.mark.parametrize(
    ("size", "method"),
    [
        ((32, 32), {"name": "lcm-lora", "lora_rank": 2}),
        ((32, 32), {"name": "dmd"}),
        ((48, 32), {"name": "dmd"}),
        ((32, 32), {"name": "lcm"}),
    ],
)
def test_an_untrained_students_pipeline_makes_the_teachers_pictures(
    recipe: Recipe, sized: Recipe, size: tuple[int, int], method: dict[str, object], tmp_path: Path
) -> None:
    recipe = sized if size == (48, 32) else recipe
    recipe = recipe.model_copy(update={"method": parse({**recipe.resolved(), "method": method}).method})
    has_input = method["name"] == "lcm"
    write(recipe, untrained(recipe, tmp_path, guidance_input=has_input), tmp_path / "student")
    made = evaluator(recipe, tmp_path / "student", PROMPTS)
    student, teacher = (
        made.sample(System(name, sampler, 1, 1.0), range(2))
        for name, sampler in (("student", "LCMScheduler"), ("teacher", "ddim"))
    )
    assert student.shape == (2, 3, *size)
    torch.testing.assert_close(student, teacher, atol=1e-4, rtol=0)


def test_adapters_load_into_the_stock_pipeline(recipe: Recipe, tmp_path: Path) -> None:
    assert stock_with_adapters(recipe, tmp_path).get_active_adapters()
