"""Samples that were made elsewhere: read as people keep them, taken over once, and trained on."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.dataloader.columns import columns_of
from fewstep.orchestrator.datasets.captioned_plans import make_import_plan
from fewstep.orchestrator.datasets.commit_log import CommitLog, create_commit_log, open_commit_log
from fewstep.orchestrator.datasets.dataset import Dataset
from fewstep.orchestrator.datasets.sources import check_sources, dataset_kinds
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.generation.data_sets import imported
from fewstep.orchestrator.generation.repair import check_images
from fewstep.orchestrator.generation.shard_makers import commit_conditions, maker_of
from fewstep.orchestrator.inputs.webdataset import open_samples
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.teachers.teacher import Teacher
from fewstep.orchestrator.workflow.inspection import describe_dataset, show
from tests.support import tiny

CAPTIONS = ["a cat", "a dog", "a cat", "a red cat", "a dog"]


def drawn(seed: int) -> Tensor:
    return torch.randn(5, *tiny.LATENT, generator=torch.Generator().manual_seed(seed))


NOISE, LATENT = drawn(0), drawn(1)


def npy(value: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value.numpy())
    return stream.getvalue()


def pth(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 32), (50 * number, 90, 10)).save(stream, "PNG")
    return stream.getvalue()


def pairs() -> dict[str, bytes]:
    """Five, by the names of their files."""
    files = dict[str, bytes]()
    for i, caption in enumerate(CAPTIONS):
        files |= {f"00{i}.noise.npy": npy(NOISE[i]), f"00{i}.latent.pth": pth(LATENT[i].clone())}
        files |= {f"00{i}.txt": caption.encode(), f"00{i}.json": b"{}"}
    return files


def folder_of(place: Path, files: dict[str, bytes]) -> str:
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return str(place)


def tars_of(place: Path, files: dict[str, bytes]) -> str:
    """Two of them."""
    place.mkdir()
    for number in range(2):
        with tarfile.open(place / f"{number}.tar", "w") as archive:
            for name, data in files.items():
                if (int(name[:3]) >= 3) == number:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return str(place)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    told = tiny.recipe_data(tmp_path_factory.mktemp("tiny"))
    trajectories = told["trajectories"]
    assert isinstance(trajectories, dict)
    return {**told, "trajectories": trajectories | {"guidance_scale": 2.0, "dtype": "float32", "shard_size": 4}}


def ledger_of(recipe: Recipe, source: str, store: Path) -> CommitLog:
    """Imported in this process."""
    samples = open_samples(source)
    captions = samples.captions("")
    plan = make_import_plan(recipe, Teacher(recipe.teacher).card, samples, captions)
    commit_log = create_commit_log(str(store), plan, list(dict.fromkeys(captions)), recipe.teacher)
    commit_conditions(commit_log, 0, plan.num_conditions, "cpu", 1)
    maker = maker_of(commit_log, "cpu", 1)
    for shard in plan.shards():
        maker.make(shard.name, 0)
    commit_log.publish(commit_log.commits()[0])
    return commit_log


def test_pairs_from_tars_and_from_a_folder_are_the_same_rows(data: dict, tmp_path: Path) -> None:
    recipe = parse(data)
    places = (folder_of(tmp_path / "folder", pairs()), tars_of(tmp_path / "tars", pairs()))
    ledgers = [ledger_of(recipe, place, tmp_path / "store") for place in places]
    assert ledgers[0].newest().content_hash == ledgers[1].newest().content_hash
    for commit_log in ledgers:
        facts = describe_dataset(commit_log.url)
        assert (facts["rows"], facts["guidance_scale"], facts["captions"]) == (5, 2.0, 3)
        assert facts["imported_from"] in places and commit_log.verify().broken == ()
        dataset = Dataset.open(commit_log.url, 1)
        groups = dataset.row_groups()
        rows = [columns_of("pairs", "imported", dataset)(groups.read(group)) for group in range(len(groups.sizes))]
        assert torch.equal(torch.cat([row["noise"] for row in rows]), NOISE)
        assert torch.equal(torch.cat([row["x0"] for row in rows]), LATENT)
        assert torch.cat([row["guidance_scale"] for row in rows]).tolist() == [2.0] * 5
        assert dataset.times().tolist() == [999, -1]
        prompts = Teacher(recipe.teacher).encode(["a cat", "a dog"])["prompt"]
        assert torch.allclose(dataset.conditions().rows(torch.tensor([0, 1]))["prompt"], prompts)


def test_pictures_with_captions_are_encoded_by_the_teacher(data: dict, tmp_path: Path) -> None:
    files = {f"00{i}.png": png(i) for i in range(5)} | {f"00{i}.txt": c.encode() for i, c in enumerate(CAPTIONS)}
    recipe = parse(data)
    commit_log = ledger_of(recipe, tars_of(tmp_path / "tars", files), tmp_path / "store")
    dataset = Dataset.open(commit_log.url, 1)
    rows = columns_of("data", "imported", dataset)(dataset.row_groups().read(0))
    back = Teacher(recipe.teacher).decode(rows["x0"])
    assert rows["x0"].shape[1:] == tiny.LATENT and bool(back.isfinite().all())
    told = parse(data | {"data": {"imported": commit_log.url}, "method": {"name": "reflow"}})
    with pytest.raises(BadInput, match="holds samples alone, but reflow reads pairs"):
        check_sources(told)


def test_imported_pairs_take_the_place_of_what_the_teacher_would_sample(data: dict, tmp_path: Path) -> None:
    commit_log = ledger_of(parse(data), folder_of(tmp_path / "folder", pairs()), tmp_path / "store")
    recipe = parse(data | {"data": {"imported": commit_log.url}, "method": {"name": "reflow"}, "trajectories": {}})
    check_sources(recipe)
    first, *others = recipe.method.build().rounds()
    assert set(dataset_kinds(recipe, first).values()) == {"imported"}
    assert {dataset_kind for round in others for dataset_kind in dataset_kinds(recipe, round).values()} <= {
        "trajectories"
    }
    stored = parse(data | {"data": {"imported": commit_log.url}, "method": {"name": "lcm", "teacher_step": "stored"}})
    with pytest.raises(BadInput, match="holds pairs, but lcm reads whole paths"):
        check_sources(stored)


def broken(change: dict[str, bytes], drop: str = "") -> dict[str, bytes]:
    return {name: part for name, part in (pairs() | change).items() if name != drop}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.txt": b"alone"}, "holds no sample; give each sample files of one name"),
        (broken({}, "003.noise.npy"), "003 of .* has no noise, unlike the first sample"),
        (broken({}, "004.txt"), "004 of .* has no caption"),
        (broken({"001.noise.npy": npy(NOISE[:2])}), r"001.noise.npy of .* must be \[4, 8, 8\] .* got \[2, 4, 8, 8\]"),
        (broken({"001.latent.pth": pth({"x": 1})}), "must be .* got dict"),
        (broken({"001.latent.pth": pth(Path("/etc"))}), "is no plain array"),
        (broken({"001.noise.npy": b"\x93NUMPY"}), "is no plain array"),
        (broken({f"00{i}.noise.npy": npy(80 * NOISE[i]) for i in range(5)}), "deviation 1 and not"),
    ],
)
def test_what_is_no_pair_is_refused(data: dict, tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        ledger_of(parse(data), folder_of(tmp_path / "folder", files), tmp_path / "store")


def test_a_compressed_tar_and_a_place_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w:gz") as archive:
        archive.add(__file__)
    for place, says in ((tmp_path, "cannot be read as a plain tar"), (tmp_path / "nowhere", "there is nothing at")):
        with pytest.raises(BadInput, match=says):
            open_samples(str(place))


def test_pairs_need_the_guidance_that_they_were_made_with(data: dict, tmp_path: Path) -> None:
    trajectories = data["trajectories"] | {"guidance_scale": [1.0, 4.0]}
    with pytest.raises(BadInput, match="say with which one the pairs were made"):
        ledger_of(parse(data | {"trajectories": trajectories}), folder_of(tmp_path / "x", pairs()), tmp_path / "store")


def test_importing_is_a_command_that_continues(cluster: None, data: dict, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(data))
    source = tars_of(tmp_path / "tars", pairs())
    command = ["import", str(tmp_path / "recipe.yaml"), source, str(tmp_path / "store"), "--json"]
    done = [CliRunner().invoke(app, command) for _ in range(2)]
    assert [result.exit_code for result in done] == [0, 0], done[0].output
    facts, again = (json.loads(result.stdout) for result in done)
    assert facts == again and facts["rows"] == 5
    recipe = parse(data | {"data": {"imported": facts["path"]}, "method": {"name": "reflow"}})
    assert imported(recipe).content_hash == facts["content_hash"]
    classes = parse(tiny.class_recipe_data(tmp_path) | {"data": {"imported": facts["path"]}})
    with pytest.raises(BadInput, match="is of another teacher"):
        imported(classes)
    assert show(facts["path"], 2, str(tmp_path / "pairs.png"))["rows"] == 5
    (tmp_path / "tars" / "1.tar").write_bytes(b"")
    with pytest.raises(BadInput, match="cannot be read as a plain tar|does not hold the samples"):
        check_images(open_commit_log(facts["path"]).plan)
