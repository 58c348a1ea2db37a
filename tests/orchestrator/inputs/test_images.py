"""Real images as a source: read from what people keep them in, encoded once, and trained on."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fewstep.orchestrator.datasets.captioned_plans import ImagePlan, make_image_plan
from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import check_sources, dataset_kinds
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.data_sets import encode_images
from fewstep.orchestrator.generation.repair import check_images, repair
from fewstep.orchestrator.generation.shard_makers import commit_conditions, maker_of, noise_of
from fewstep.orchestrator.inputs.images import captions_of, open_images
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.recipe.resources import Resources
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.workflow import stages
from fewstep.orchestrator.workflow.inspection import describe_dataset, draw_dataset
from tests.support import tiny

SIZES = [(32, 32), (40, 64), (64, 40), (32, 32), (33, 31)]
CAPTIONS = ["a cat", "a dog", "a cat", "a red cat", "a dog"]


def picture(number: int) -> bytes:
    """Of a colour and a size of its own."""
    out = io.BytesIO()
    Image.new("RGB", SIZES[number], (50 * number, 255 - 50 * number, 90)).save(out, "PNG")
    return out.getvalue()


def write(file: Path, **columns: list) -> str:
    cells = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(len(SIZES))]
    pq.write_table(pa.table({"image": cells, **columns}), file, row_group_size=2)
    return str(file)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("images") / "images.parquet", prompt=CAPTIONS, label=[0, 1, 0, 2, 1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same pictures as files, with the same captions."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(len(SIZES)):
        (place / f"{i}.png").write_bytes(picture(i))
    lines = [json.dumps({"file_name": f"{i}.png", "prompt": caption}) for i, caption in enumerate(CAPTIONS)]
    (place / "metadata.jsonl").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, parquet: str) -> Recipe:
    """Training on images alone: no prompts, no samples of the teacher."""
    told = dict(tiny.recipe_data(tmp_path_factory.mktemp("tiny")))
    stored = {"trajectories": {"shard_size": 2, "batch_size": 2}, "data": {"images": parquet, "batch_size": 2}}
    return parse(told | stored | {"method": {"name": "consistency"}})


def made(recipe: Recipe, store: Path) -> CommitLog:
    """The data set of a recipe's images, in this process."""
    images = open_images(recipe.data.images, "data.images")
    captions = captions_of(images, recipe.data.caption_column)
    plan = make_image_plan(recipe, Teacher(recipe.teacher).card, images, captions)
    commit_log = create_commit_log(str(store), plan, list(dict.fromkeys(captions)), recipe.teacher)
    commit_conditions(commit_log, 0, plan.num_conditions, "cpu", 1)
    maker = maker_of(commit_log, "cpu", 1)
    for shard in plan.shards():
        maker.make(shard.name, 0)
    commit_log.publish(commit_log.commits()[0])
    return commit_log


@pytest.fixture(scope="module")
def encoded(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> CommitLog:
    return made(recipe, tmp_path_factory.mktemp("store"))


def rows(commit_log: CommitLog) -> dict[str, torch.Tensor]:
    groups = Dataset.open(commit_log.url, commit_log.newest().version).row_groups()
    parts = [groups.read(i) for i in range(len(groups.sizes))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_a_row_is_an_image_through_the_teachers_autoencoder_and_its_caption(recipe: Recipe, encoded: CommitLog) -> None:
    found, teacher = rows(encoded), Teacher(recipe.teacher)
    assert list(found) == ["sample_id", "condition_id", "x0"]
    assert found["sample_id"].tolist() == [0, 1, 2, 3, 4] and found["condition_id"].tolist() == [0, 1, 0, 2, 1]
    conditions = Dataset.open(encoded.url, 1).conditions()
    expected = teacher.encode(["a cat", "a dog", "a red cat"])["prompt"]
    torch.testing.assert_close(conditions.cond["prompt"], expected, atol=1e-5, rtol=1e-5)
    pixels = open_images(recipe.data.images, "data.images").pixels(range(5), (32, 32))
    believed = teacher.pipeline.vae.encode(2 * pixels - 1).latent_dist
    noise = torch.stack([noise_of(encoded.plan, i) for i in range(5)])
    expected = (believed.mean + believed.std * noise) * teacher.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(found["x0"].float(), expected, atol=2e-3, rtol=2e-3)  # stored as float16


def test_images_are_encoded_in_the_size_of_the_nearest_aspect(recipe: Recipe, tmp_path: Path) -> None:
    sizes = ((32, 32), (48, 32), (32, 48))
    sized = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"resolution": sizes})})
    commit_log = made(sized, tmp_path)
    groups = Dataset.open(commit_log.url, 1).row_groups()
    found = [groups.read(i) for i in range(len(groups.sizes))]
    assert [part["sample_id"].tolist() for part in found] == [[0, 1], [2], [3], [4]]  # of images 0 3, 4, 1, 2
    assert [part["condition_id"].tolist() for part in found] == [[0, 2], [1], [1], [0]]
    assert groups.shapes == [(4, 8, 8), (4, 8, 8), (4, 12, 8), (4, 8, 12)]
    teacher, images = Teacher(sized.teacher), open_images(sized.data.images, "data.images")
    for part, image, size in zip(found, ([0, 3], [4], [1], [2]), (*sizes[:1], *sizes), strict=True):
        noise = torch.stack([noise_of(commit_log.plan, i) for i in part["sample_id"].tolist()])
        expected = teacher.latents(images.pixels(image, size), noise)
        torch.testing.assert_close(part["x0"].float(), expected, atol=2e-3, rtol=2e-3)  # stored as float16


def test_what_is_encoded_does_not_depend_on_how_it_was_cut(recipe: Recipe, encoded: CommitLog, tmp_path: Path) -> None:
    whole = recipe.model_copy(update={"trajectories": recipe.trajectories.model_copy(update={"shard_size": 8})})
    assert torch.equal(rows(made(whole, tmp_path))["x0"], rows(encoded)["x0"])


def test_a_folder_of_images_holds_what_the_parquet_file_does(parquet: str, folder: Path) -> None:
    one, other = open_images(parquet, "data.images"), open_images(str(folder), "data.images")
    assert one.captions("prompt") == other.captions("prompt") == CAPTIONS
    assert torch.equal(one.pixels(range(1, 4), (16, 16)), other.pixels(range(1, 4), (16, 16)))
    assert one.digest() != other.digest() and other.digest() == open_images(str(folder), "data.images").digest()


def test_pictures_in_folders_are_conditioned_on_their_folders_names(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    for i in range(len(SIZES)):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        shutil.move(folder / f"{i}.png", folder / str(i % 2) / f"{i}.png")
    assert open_images(str(folder), "data.images").captions("prompt") == ["0", "0", "0", "1", "1"]


def test_classes_and_pixels_serve_a_class_conditional_teacher(parquet: str, tmp_path: Path) -> None:
    told = dict(tiny.class_recipe_data(tmp_path))
    recipe = parse(told | {"data": {"images": parquet, "caption_column": "label"}, "method": {"name": "consistency"}})
    found = rows(made(recipe, tmp_path / "store"))
    grey = 2 * open_images(parquet, "data.images").pixels(range(5), (8, 8)).mean(1, keepdim=True) - 1
    torch.testing.assert_close(found["x0"].float(), grey, atol=1e-3, rtol=0.0)  # stored as float16
    assert found["condition_id"].tolist() == [0, 1, 0, 2, 1]


def test_the_identity_is_the_images_and_the_teacher_not_where_they_are(recipe: Recipe, encoded: CommitLog) -> None:
    plan = encoded.plan
    assert plan.model_copy(update={"images": "/elsewhere", "samples": 3}).hash == plan.hash
    for field, value in {"images_sha256": "0", "caption_column": "label", "seed": 1, "teacher": {}}.items():
        assert plan.model_copy(update={field: value}).hash != plan.hash


def test_images_that_changed_are_not_taken_for_those_that_were_encoded(encoded: CommitLog, tmp_path: Path) -> None:
    other = write(tmp_path / "other.parquet", prompt=["a cat"] * 5)
    check_images(encoded.plan)
    with pytest.raises(BadInput, match="does not hold the images that were encoded"):
        check_images(encoded.plan.model_copy(update={"images": other}))


def break_row(file: Path) -> str:
    cells = [{"bytes": picture(i) if i != 3 else b"\x89PNG torn", "path": ""} for i in range(5)]
    pq.write_table(pa.table({"image": cells}), file)
    return str(file)


BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "no column": (lambda file: write(file, text=CAPTIONS), "has no column 'prompt', only image, text; name another"),
    "no caption": (lambda file: write(file, prompt=["a", None, "b", "c", "d"]), "must hold text or a class's number"),
    "no pictures": (
        lambda file: [pq.write_table(pa.table({"prompt": CAPTIONS}), file), str(file)][1],
        "has no column 'image', only prompt",
    ),
    "empty": (
        lambda file: [pq.write_table(pa.table({"image": pa.array([], pa.binary())}), file), str(file)][1],
        "holds no image",
    ),
    "empty folder": (lambda file: str(file.parent), "holds no image; give Parquet .* or a folder of images"),
    "no parquet": (lambda file: [file.write_text("hello"), str(file)][1], "cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_holds_no_images_or_captions_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    place = make(tmp_path / "images.parquet")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match=f"^data.images: .*{words}") as caught:
        captions_of(open_images(place, "data.images"), "prompt")
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_read_is_named_by_its_row(tmp_path: Path) -> None:
    images = open_images(break_row(tmp_path / "images.parquet"), "data.images")
    images.pixels(range(3), (32, 32))
    with pytest.raises(BadInput, match="^data.images: row 3 of .* cannot be read as an image"):
        images.pixels(range(2, 5), (32, 32))


def test_a_picture_that_the_metadata_forgets_is_named(folder: Path) -> None:
    (folder / "extra.png").write_bytes(picture(0))
    with pytest.raises(BadInput, match="says nothing of extra.png"):
        open_images(str(folder), "data.images").captions("prompt")


def test_a_method_that_reads_what_the_teacher_samples_still_needs_samples(recipe: Recipe) -> None:
    check_sources(recipe)
    stored = recipe.method.model_validate({"name": "lcm", "teacher_step": "stored"})
    with pytest.raises(BadInput, match="trajectories.samples is missing; lcm learns from what the teacher samples"):
        check_sources(recipe.model_copy(update={"method": stored}))
    with pytest.raises(BadInput, match="trajectories.samples is missing; consistency"):
        check_sources(recipe.model_copy(update={"data": recipe.data.model_copy(update={"images": ""})}))


def test_images_are_the_data_beside_pairs_that_the_teacher_samples(recipe: Recipe) -> None:
    method = recipe.method.model_validate({"name": "dmd", "adversarial_weight": 0.1, "regression_weight": 0.25})
    (round,) = method.build().rounds()
    assert dataset_kinds(recipe, round) == {"prompts": "trajectories", "pairs": "trajectories", "data": "images"}
    unpaired = recipe.method.model_validate({"name": "dmd", "adversarial_weight": 0.1, "regression_weight": 0.0})
    (round,) = unpaired.build().rounds()
    assert dataset_kinds(recipe, round) == {"prompts": "images", "data": "images"}  # the captions


@pytest.mark.usefixtures("cluster")
def test_images_are_encoded_by_actors_and_mended_like_any_data_set(
    recipe: Recipe, encoded: CommitLog, tmp_path: Path
) -> None:
    done = encode_images(recipe, str(tmp_path))
    assert (done.rows, done.shards, done.content_hash) == (5, 3, encoded.newest().content_hash)
    assert encode_images(recipe, str(tmp_path)) == done
    commit_log = open_commit_log(done.url)
    assert isinstance(commit_log.plan, ImagePlan)
    file = Path(commit_log.url) / commit_log.newest().shards[1].file_key
    file.write_bytes(b"rot")
    (broken,) = commit_log.verify().broken
    assert broken.shard == "00000002-00000004"
    mended = repair(done.url, Resources())
    assert (mended.version, mended.content_hash) == (2, done.content_hash)
    facts = describe_dataset(done.url)
    assert (facts["rows"], facts["captions"], facts["images"]) == (5, 3, recipe.data.images)
    draw_dataset(done.url, 4, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 4 * 32


@pytest.mark.usefixtures("cluster")
def test_a_student_is_trained_on_images_without_any_trajectories(recipe: Recipe, tmp_path: Path) -> None:
    told = recipe.model_copy(update={"output": str(tmp_path / "run")})
    trained = stages.train(told)
    facts = json.loads((tmp_path / "run/run.json").read_text())["manifests"]
    commit_log = open_commit_log(facts["consistency"]["path"])
    assert isinstance(commit_log.plan, ImagePlan) and commit_log.plan.teacher_evaluations == 0
    assert trained["content_hash"] == {"images": commit_log.newest().content_hash}
    lines = (tmp_path / "run/rounds/1-consistency/metrics.jsonl").read_text().splitlines()
    losses = [value for line in lines for key, value in json.loads(line).items() if key.startswith("loss/")]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)
