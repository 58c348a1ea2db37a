"""What an evaluation is told of the field: named protocols, and statistics of real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.distances import FeatureMoments
from fewstep.orchestrator.evaluation.evaluator_pool import evaluation_prompts
from fewstep.orchestrator.evaluation.feature_cache import FeatureFiles, Key
from fewstep.orchestrator.evaluation.reference_statistics import check_evaluation, read_statistics
from fewstep.orchestrator.evaluation.system import SampleFeatures
from fewstep.orchestrator.recipe.evaluation import Evaluation
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.recipe.recipe import Recipe
from tests.support import tiny
from tests.support.results import sampled


def saved(file: Path, **arrays: np.ndarray) -> str:
    np.savez(file, allow_pickle=False, **arrays)
    return str(file)


@pytest.fixture
def statistics(tmp_path: Path) -> str:
    """As FID's are kept; ADM's hold more beside."""
    return saved(tmp_path / "coco.npz", mu=np.arange(3.0), sigma=np.eye(3), mu_s=np.zeros(2))


@pytest.fixture
def captions(tmp_path: Path) -> str:
    """As long as COCO's list, some of them twice."""
    file = tmp_path / "captions.txt"
    file.write_text("".join(f"a picture of {number // 2}\n" for number in range(30_000)))
    return str(file)


def recipe(folder: Path, **evaluation: object) -> Recipe:
    data = tiny.recipe_data(folder)
    told = data["evaluation"]
    assert isinstance(told, dict)
    return parse(data | {"evaluation": {name: told[name] for name in told if name != "samples"} | evaluation})


def test_coco_30k_judges_each_caption_once(tmp_path: Path, statistics: str, captions: str) -> None:
    told = recipe(tmp_path, protocol="coco-30k", statistics=statistics, prompts=captions)
    evaluation = told.evaluation
    assert evaluation.samples == 30_000
    check_evaluation(evaluation)
    judged = evaluation_prompts(evaluation)
    assert sorted(judged) == sorted(Path(captions).read_text().splitlines())
    assert parse(told.resolved()).evaluation == evaluation


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"samples": 5000}, "protocol coco-30k has samples=30000, got 5000"),
        ({"statistics": ""}, "give their `statistics`, or `images`"),
        ({"protocol": "coco-10k"}, "evaluation.protocol"),
    ],
)
def test_what_is_not_the_protocol_is_refused(
    tmp_path: Path, statistics: str, captions: str, field: dict, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        recipe(tmp_path, **{"protocol": "coco-30k", "statistics": statistics, "prompts": captions} | field)


def test_a_list_that_is_too_short_for_the_protocol_is_refused(tmp_path: Path, statistics: str) -> None:
    told = recipe(tmp_path, protocol="coco-30k", statistics=statistics)
    with pytest.raises(BadInput, match="evaluation.prompts: .* has 4 captions, and coco-30k takes 30,000"):
        check_evaluation(told.evaluation)


def evaluation_of(file: str, samples: int = 5000, **others: str) -> Evaluation:
    return Evaluation.model_validate({"prompts": "x", "samples": samples, "statistics": file, **others})


def test_statistics_are_read_as_the_field_keeps_them(statistics: str) -> None:
    found = read_statistics(evaluation_of(statistics))
    assert isinstance(found, FeatureMoments)
    assert found.mean.tolist() == [0, 1, 2] and found.covariance.tolist() == np.eye(3).tolist()


def test_features_of_our_own_are_statistics_too(tmp_path: Path) -> None:
    features, key = np.ones((4, 2), np.float16), Key("images", {"features": "mobilenetv2"})
    FeatureFiles(tmp_path, "", "").keep(key, sampled(features))
    file = str(tmp_path / f"{key.stem}.npz")
    found = read_statistics(evaluation_of(file, samples=8))
    assert isinstance(found, SampleFeatures) and found.features.tolist() == features.tolist()
    with pytest.raises(BadInput, match="is of mobilenetv2, and evaluation.features is not"):
        read_statistics(evaluation_of(file, features="inception:x.pt"))
    with pytest.raises(BadInput, match="take the place of evaluation.images"):
        read_statistics(evaluation_of(file, images="x.parquet"))


def test_a_file_of_anything_else_is_refused(tmp_path: Path, statistics: str) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    for file in (saved(tmp_path / "other.npz", x=np.zeros(2)), str(tmp_path / "text.npz")):
        with pytest.raises(BadInput, match="must be an .npz that holds mu and sigma"):
            read_statistics(evaluation_of(file))
    with pytest.raises(BadInput, match="sigma of .* must be 3 x 3"):
        read_statistics(evaluation_of(saved(tmp_path / "skewed.npz", mu=np.zeros(3), sigma=np.eye(2))))
    with pytest.raises(BadInput, match="needs 5,000 samples"):
        read_statistics(evaluation_of(statistics, samples=500))
    objects = tmp_path / "objects.npz"
    np.savez(objects, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(BadInput, match="must be an .npz"):
        read_statistics(evaluation_of(str(objects)))
