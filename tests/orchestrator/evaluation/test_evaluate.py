from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.baselines import present_teacher, teacher_gate, teacher_systems
from fewstep.orchestrator.evaluation.comparison import evaluate
from fewstep.orchestrator.evaluation.distances import FeatureMoments, Features, Resampling, clip_score, frechet_distance
from fewstep.orchestrator.evaluation.evaluator import Evaluator
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts, open_pool
from fewstep.orchestrator.evaluation.feature_cache import FeatureFiles, Key
from fewstep.orchestrator.evaluation.results import Row
from fewstep.orchestrator.evaluation.system import EvaluationSetting, System
from fewstep.orchestrator.features.feature_networks import CLIP, feature_network, features_label
from fewstep.orchestrator.inputs.images import cut, open_images
from fewstep.orchestrator.observability.image_grid import GAP_PX, contact_sheet
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.students.inference import InferenceArguments
from fewstep.orchestrator.students.pipeline import write
from tests.support import tiny
from tests.support.results import sampled
from tests.support.students import untrained
from tests.support.vision import clip_of, dino_of


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight real images with captions, one of them neither square nor small."""
    generator = np.random.default_rng(0)
    cells = []
    for number in range(8):
        size = (48, 40) if number == 0 else (32, 32)
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(stream, format="PNG")
        cells.append({"bytes": stream.getvalue(), "path": f"{number}.png"})
    file = tmp_path_factory.mktemp("images") / "images.parquet"
    captions = [tiny.PROMPTS[number % len(tiny.PROMPTS)] for number in range(8)]
    pq.write_table(pa.table({"image": cells, "prompt": captions}), file, row_group_size=3)
    return file


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Recipe:
    data = tiny.recipe_data(tmp_path_factory.mktemp("tiny"))
    told = data["evaluation"]
    assert isinstance(told, dict)
    return parse(
        data
        | {"evaluation": told | {"images": str(images), "steps": [1, 4], "reference_steps": 6, "guidance_scale": 2.0}}
    )


@pytest.fixture(scope="module")
def student(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write(recipe, untrained(recipe, folder), folder / "student")
    return folder / "student"


@pytest.fixture(scope="module")
def evaluation(recipe: Recipe, student: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    evaluate(recipe, student, out)
    return out


def setting(recipe: Recipe, student: Path) -> EvaluationSetting:
    return EvaluationSetting(
        teacher=recipe.teacher,
        student=str(student),
        call=InferenceArguments(),
        negative_prompt="",
        prompts=tiny.PROMPTS,
        features="mobilenetv2",
        check="random",
        seed=3,
        batch_size=4,
        device="cpu",
        threads=1,
    )


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_sample_depends_on_its_number_alone(recipe: Recipe, student: Path, name: str) -> None:
    evaluator = Evaluator(setting(recipe, student))
    system = System(name, "ddim", 3, 2.0)  # pyright: ignore[reportArgumentType]
    together = evaluator.sample(system, range(4))
    alone = torch.cat([evaluator.sample(system, range(i, i + 1)) for i in range(4)])
    # Another batch size may round differently; another seed would be off by far more.
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[3], atol=1e-2)


def test_a_stochastic_sample_depends_on_its_number_alone_too(recipe: Recipe, student: Path) -> None:
    evaluator, system = Evaluator(setting(recipe, student)), System("teacher", "analytic-dpm", 3, 2.0)
    variances = evaluator.calibrate(2.0)
    assert variances == Evaluator(setting(recipe, student)).calibrate(2.0)
    together = evaluator.sample(system, range(4), variances)
    assert torch.allclose(together[2:3], evaluator.sample(system, range(2, 3), variances), atol=1e-4)
    assert not torch.allclose(together, evaluator.sample(system, range(4), [0.0] * len(variances)), atol=1e-2)


def test_the_references_noise_is_no_judged_systems_noise(recipe: Recipe, student: Path) -> None:
    told = setting(recipe, student)
    roles = ("judged", "reference", "selection", "selection reference", "judged steps")
    drawn = {float(torch.randn((), generator=told.generator(role, i))) for role in roles for i in range(20)}
    assert len(drawn) == 100


def test_teacher_and_untrained_student_share_their_one_step_picture(recipe: Recipe, student: Path) -> None:
    evaluator = Evaluator(setting(recipe, student))
    teacher = evaluator.sample(System("teacher", "ddim", 1, 1.0), range(4))
    mine = evaluator.sample(System("student", "LCMScheduler", 1, 3.0), range(4))
    assert torch.allclose(teacher, mine, atol=1e-5)  # c_out at the last time is 1 within 1e-8


def test_metrics_are_as_the_design_lists_them(evaluation: Path, recipe: Recipe) -> None:
    rows = json.loads((evaluation / "metrics.json").read_text())
    fields = "system sampler steps guidance_scale metric features reference value low high samples seconds_per_image"
    assert all(set(row) == set(fields.split()) for row in rows)
    assert {(row["system"], row["steps"]) for row in rows} == {
        *(("student", steps) for steps in (1, 4)),
        *(("teacher", steps) for steps in (1, 4, 6)),
    }
    kids = [row for row in rows if row["metric"] == "KID (MobileNetV2)"]
    assert {row["reference"] for row in kids} == {"teacher", "images"}
    assert len(kids) == 2 * 5  # the null, two teachers, two students
    assert {row["metric"] for row in rows} == {
        *(f"{name} (MobileNetV2)" for name in ("KID", "precision", "recall", "variety", "same-noise distance")),
        *("check KID (random convolutions)", "clipped", "saturation", "contrast", "brightness"),
    }
    for row in rows:
        assert row["low"] <= row["high"]
        assert row["samples"] == 8
        assert row["seconds_per_image"] > 0


def test_claims_need_two_thousand_samples(evaluation: Path) -> None:
    claims = json.loads((evaluation / "claims.json").read_text())
    assert {(claim["kind"], claim["steps"]) for claim in claims} == {
        (kind, steps) for kind in ("beats", "half", "level") for steps in (1, 4)
    }
    assert not any(claim["is_claim"] for claim in claims)
    for claim in claims:
        if claim["kind"] != "level":
            assert claim["holds"] == (claim["high"] < 0 and not claim["withheld"])


def test_the_picture_has_a_row_for_every_system(evaluation: Path) -> None:
    with Image.open(evaluation / "grid.png") as sheet:
        assert sheet.height > 5 * 96
        assert sheet.width > 8 * 96


def test_a_repeated_evaluation_measures_nothing_and_says_the_same(
    evaluation: Path, recipe: Recipe, student: Path, cluster: None
) -> None:
    files = {file: file.stat().st_mtime_ns for file in (evaluation / "features").iterdir()}
    before = (evaluation / "metrics.json").read_text()
    evaluate(recipe, student, evaluation)
    assert {file: file.stat().st_mtime_ns for file in (evaluation / "features").iterdir()} == files
    assert (evaluation / "metrics.json").read_text() == before


def test_two_actors_find_what_one_finds_and_a_killed_run_continues(
    evaluation: Path, recipe: Recipe, student: Path, cluster: None, tmp_path: Path
) -> None:
    """As left by a kill: one system is measured, one file is cut short, the rest is not there."""
    done = sorted((evaluation / "features").glob("*-1-steps-*.npz"))
    (tmp_path / "features").mkdir()
    for file in done[:1]:
        (tmp_path / "features" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "features" / done[1].name).write_bytes(done[1].read_bytes()[:1000])
    two = recipe.model_copy(update={"resources": recipe.resources.model_copy(update={"generators": 2})})
    evaluate(two, student, tmp_path)
    for file in (evaluation / "features").glob("*.npz"):
        with np.load(file) as one, np.load(tmp_path / "features" / file.name) as other:
            assert np.array_equal(one["features"], other["features"])
            assert np.array_equal(one["pictures"], other["pictures"])
    assert _without_time(evaluation) == _without_time(tmp_path)


def _without_time(out: Path) -> list[dict[str, object]]:
    rows = json.loads((out / "metrics.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds_per_image"} for row in rows]


def test_shipped_baselines_are_used_and_a_gate_is_judged(recipe: Recipe, cluster: None, tmp_path: Path) -> None:
    gate = present_teacher(recipe, tmp_path / "work", tmp_path / "shipped", "a cat")
    assert json.loads((tmp_path / "shipped" / "gate.json").read_text()) == gate
    assert {"contact-sheet.png", "variety.png"} <= {file.name for file in (tmp_path / "shipped").iterdir()}
    told = recipe.evaluation.model_copy(update={"baselines": str(tmp_path / "shipped"), "samples": 6})
    shipped = recipe.model_copy(update={"evaluation": told})
    with open_pool(shipped, evaluation_prompts(told), tmp_path / "new") as pool:
        systems = teacher_systems(pool, told)
        parts = pool.measure([systems.reference, systems.null, *systems.best], 6, "nothing to do")
        pool.measure_images(told.images)
    assert [len(part.features) for part in parts] == [6, 6, 6, 6]
    assert list((tmp_path / "new" / "features").iterdir()) == []


def precision(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """By real images."""
    found = [row for row in rows if row.metric.startswith("precision") and row.reference == "images"]
    return {(row.system, row.steps): row.value for row in found}


def test_stored_statistics_stand_for_real_images(
    recipe: Recipe, student: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (evaluation / "features").glob("images-*.npz")
    with np.load(file) as arrays:
        moments = FeatureMoments.of(arrays["features"])
    np.savez(tmp_path / "mu.npz", mu=moments.mean, sigma=moments.covariance)
    monkeypatch.setattr("fewstep.orchestrator.evaluation.reference_statistics.SAMPLES_FOR_FRECHET", 2)
    by_moments = recipe.evaluation.model_copy(update={"statistics": str(tmp_path / "mu.npz")})
    by_features = recipe.evaluation.model_copy(update={"statistics": str(file), "images": ""})
    out = shutil.copytree(evaluation, tmp_path / "evaluation")

    def judged(told: Evaluation) -> list[Row]:
        return list(evaluate(recipe.model_copy(update={"evaluation": told}), student, out).rows)

    stored = {(row.system, row.steps): row for row in judged(by_moments) if row.reference == "statistics"}
    assert len(stored) == 5 and {row.metric for row in stored.values()} == {"Frechet distance (MobileNetV2)"}
    with np.load(next((out / "features").glob("judged-student-*-1-steps-*.npz"))) as arrays:
        by_hand = frechet_distance(FeatureMoments.of(arrays["features"]), moments)
    assert stored["student", 1].value == pytest.approx(by_hand, rel=1e-6)
    given = [Row(**row) for row in json.loads((evaluation / "metrics.json").read_text())]
    assert precision(judged(by_features)) == precision(given)
    np.savez(tmp_path / "mu.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(BadInput, match="is of 7 features, and mobilenetv2 has 1280"):
        judged(by_moments)


def test_the_gate_fails_a_teacher_that_needs_few_steps(recipe: Recipe) -> None:
    with_null = [sampled(np.random.default_rng(i).normal(size=(8, 5)).astype(np.float16)) for i in range(2)]
    best = (System("teacher", "ddim", 1, 1.0), System("teacher", "ddim", 4, 1.0))
    far, near = (sampled(with_null[1].features + shift) for shift in (np.float16(9), np.float16(0.001)))
    from fewstep.orchestrator.evaluation.baselines import TeacherSystems, many_steps

    systems = TeacherSystems(*many_steps(recipe.evaluation), best)
    assert teacher_gate(recipe, systems, [*with_null, far, far])["passes"]
    assert not teacher_gate(recipe, systems, [*with_null, far, near])["passes"]


def test_keys_leave_out_the_size_of_small_pictures_as_those_of_shipped_baselines_do(evaluation: Path) -> None:
    for file in (evaluation / "features").glob("*.npz"):
        with np.load(file) as arrays:
            assert "image_size" not in json.loads(str(arrays["facts"]))


def test_features_depend_on_all_that_made_them(tmp_path: Path) -> None:
    files = FeatureFiles(tmp_path, "", "")
    measured = sampled(np.ones((4, 2), np.float16))
    files.keep(Key("x", {"steps": 4, "revision": "a"}), measured)
    assert files.find(Key("x", {"steps": 4, "revision": "a"}), 3) is not None
    assert files.find(Key("x", {"steps": 4, "revision": "a"}), 5) is None
    assert files.find(Key("x", {"steps": 4, "revision": "b"}), 3) is None
    assert FeatureFiles(tmp_path, "", "random").find(Key("x", {"steps": 4, "revision": "a"}), 3) is None


def test_images_are_cut_square_and_brought_to_size(images: Path) -> None:
    read = open_images(str(images), "evaluation.images").pixels(range(0, 5), (32, 32))
    assert read.shape == (5, 3, 32, 32)
    assert 0 <= float(read.min()) < float(read.max()) <= 1


def test_images_are_cut_to_an_aspect_and_not_stretched() -> None:
    whole = np.zeros((20, 40, 3), np.uint8)
    whole[:, 10:30] = 255
    square, wide, tall = (cut(Image.fromarray(whole), size) for size in ((20, 20), (10, 20), (40, 20)))
    assert square.min() == 1 and wide.shape == (3, 10, 20) and tall.shape == (3, 40, 20)
    assert wide.mean() == pytest.approx(0.5, abs=0.02) and tall.min() > 0.99


def test_pictures_are_drawn_in_their_aspect(tmp_path: Path) -> None:
    contact_sheet(np.zeros((2, 48, 96, 3), np.uint8), 2, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (2 * (96 + GAP_PX) + GAP_PX, 48 + 2 * GAP_PX)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mobilnetv2", "did you mean 'mobilenetv2'"),
        ("clip", "should read like one of"),
        ("clip:/nowhere", "cannot be loaded"),
        ("inception:/nowhere.pt", "cannot be loaded"),
    ],
)
def test_a_feature_network_that_is_not_there_is_named(name: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        feature_network(name)


def test_figures_name_the_network() -> None:
    assert features_label("mobilenetv2") == "MobileNetV2"
    assert features_label("clip:openai/clip-vit-base-patch32") == "CLIP clip-vit-base-patch32"


def test_mobilenet_tells_pictures_apart() -> None:
    network = feature_network("mobilenetv2")
    generator = torch.Generator().manual_seed(0)
    flat, noisy = torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32, generator=generator)
    features = network(torch.cat([flat, noisy, noisy]))
    assert features.shape == (3, 1280)
    assert torch.allclose(features[1], features[2])
    assert (features[0] - features[1]).norm() > 1


class Scripted(torch.nn.Module):
    """What NVIDIA's Inception file looks like from outside."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features and x.dtype == torch.uint8
        return x.float().mean((2, 3))


def test_inception_is_a_torchscript_file_of_bytes(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Scripted()), str(tmp_path / "inception.pt"))
    features = feature_network(f"inception:{tmp_path / 'inception.pt'}")(torch.ones(2, 3, 8, 8))
    assert features.tolist() == [[255.0] * 3] * 2


def test_clip_and_dinov2_load_from_folders(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "clip")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert feature_network(f"clip:{clip}")(images).shape == (2, 12)
    assert feature_network(f"dinov2:{dino_of(tmp_path / 'dino')}")(images).shape == (2, 16)


def test_the_clip_score_is_that_of_the_whole_clip(tmp_path: Path) -> None:
    place = clip_of(tmp_path / "clip")
    network, texts = feature_network(f"clip:{place}"), ["a cat", "a red dog"]
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    units = np.arange(2)
    judged = Features(network(images).numpy(), units)
    score = clip_score(judged, network.read(texts).numpy(), Resampling(2, 0, 10, seed=0))
    whole, words = CLIPModel.from_pretrained(place).eval(), CLIPTokenizer.from_pretrained(place)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in CLIP)
    with torch.no_grad():
        tokens = words(texts, padding=True, return_tensors="pt")
        logits = whole(pixel_values=(images - mean) / deviation, **tokens).logits_per_image
    cosine = logits.diagonal() / whole.logit_scale.exp()
    assert score.value == pytest.approx(100 * cosine.clamp(min=0).mean().item(), rel=1e-4)
