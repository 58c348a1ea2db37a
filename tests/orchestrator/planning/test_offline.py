"""What `plan --offline` says, from configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks
from typer.testing import CliRunner, Result

from fewstep.orchestrator.cli.app import BAD_INPUT
from fewstep.orchestrator.cli.main import app
from fewstep.orchestrator.families.network import PipelineNetwork
from fewstep.orchestrator.planning.forecast import memory_of
from fewstep.orchestrator.planning.memory import Kept, MemoryEstimate
from fewstep.orchestrator.recipe.parsing import parse
from fewstep.orchestrator.students.student import student_network, trained_of
from fewstep.orchestrator.teachers.skeleton import skeleton
from fewstep.orchestrator.teachers.teacher import Teacher
from tests.support import tiny
from tests.support.families import KINDS


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, of a teacher whose weights are gone."""
    folder = tmp_path_factory.mktemp("offline")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny.recipe_data(folder)))
    for weights in (folder / "teacher").rglob("*.safetensors"):
        weights.unlink()
    return file


def plan(recipe: Path | str, *words: str) -> Result:
    return CliRunner().invoke(app, ["plan", str(recipe), "--offline", "--json", *words])


def test_a_plan_needs_no_weights_offline(recipe: Path) -> None:
    result = plan(recipe, "method={name: lcm, teacher_step: stored, skip: 250, grid: 4}")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["rows"], facts["shards"], facts["teacher_evaluations"]) == (20, 3, 20 * 4 * 2)
    whole = sum(tensor.numel() for tensor in tiny.denoiser(time_cond_proj_dim=256).parameters())
    assert facts["weights_bytes"] == facts["gradients_bytes"] == 4 * whole
    assert facts["optimizer_bytes"] == 8 * whole and facts["averages_bytes"] == (4 + 8) * whole
    assert facts["frozen_bytes"] == 0  # stored paths stand in for the teacher
    assert facts["activations_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([f"teacher={{hub: someone/model, revision: {'a' * 40}}}"], "someone/model is not known offline; known are"),
        (["method={name: lcm-lora, lora_targets: [nowhere]}"], "method.lora_targets: no module"),
        (["training.zero_stage=2", "training.offload=all"], "needs zero_stage 3"),
        (["training.precision=bfloat16"], "precision bfloat16 needs zero_stage 1, 2 or 3"),
        (["method={name: lcm-lora}", "training.placement=offload"], "would take the teacher's weights away from"),
        (["teacher.compile=true", "training.zero_stage=3"], "training.placement is shard; leave compile out"),
        (["teacher={factory: 'tests.support.own_models:walks'}"], "is a model of your own"),
        (["training.placement=shard", "training.evaluate_every=2"], "placement shard leaves no rank the whole"),
    ],
)
def test_what_does_not_fit_is_refused_offline_too(recipe: Path, words: list[str], says: str) -> None:
    result = plan(recipe, *words)
    assert result.exit_code == BAD_INPUT and says in result.stderr and result.stderr.count("\n") == 1


PIPELINES = {name: kind.teacher for name, kind in KINDS.items() if not isinstance(kind.teacher, str)}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_skeleton_is_the_teacher_without_weights(tmp_path: Path, kind: str) -> None:
    folder = PIPELINES[kind](tmp_path)
    spec = parse(tiny.recipe_data(tmp_path) | {"teacher": {"folder": str(folder)}}).teacher
    whole, bare = Teacher(spec), Teacher(spec, load=skeleton)
    assert bare.card == whole.card
    shapes = [{name: value.shape for name, value in t.network.state_dict().items()} for t in (whole, bare)]
    assert shapes[0] == shapes[1]
    assert all(weight.is_meta for weight in bare.network.parameters())
    # How many tokens there are is the tokenizer's, which is not here.
    if whole.family.is_conditional:
        told, cond = bare.network.cond_shapes, whole.encode(["1"])
        widths = {name: shape[-1] for name, shape in told.items() if name != "mask"}
        assert widths == {name: value.shape[-1] for name, value in cond.items() if name != "mask"}


def held(recipe: Path, **training: object) -> MemoryEstimate:
    data = yaml.safe_load(recipe.read_text())
    method = training.pop("method", {"name": "dmd"})
    workers = training.pop("workers", 1)
    told = {"training": data["training"] | training, "method": method, "resources": {"workers": workers}}
    return memory_of(parse(data | told))


def test_zero_cuts_up_more_at_each_stage(recipe: Path) -> None:
    one, two, three = (held(recipe, workers=2, zero_stage=stage) for stage in (1, 2, 3))
    whole = held(recipe)
    assert one.optimizer == two.optimizer == three.optimizer == whole.optimizer * 12 // 8 // 2
    assert one.gradients - two.gradients == whole.gradients // 2
    assert three.weights == whole.weights // 2 and two.weights == whole.weights
    assert three.frozen < two.frozen == whole.frozen  # the teacher too, not the decoder


def test_averages_are_cut_up_with_the_optimizer_but_for_the_network_that_a_loss_calls(recipe: Path) -> None:
    lcm = {"method": {"name": "lcm"}, "workers": 2, "precision": "bfloat16"}
    two, three = held(recipe, **lcm, zero_stage=2), held(recipe, **lcm, zero_stage=3)
    assert two.averages == 3 * two.weights  # half of two averages, twice as wide in float32, and the target
    assert three.averages == two.averages - two.weights // 2
    moved = held(recipe, **lcm, zero_stage=2, offload="optimizer")
    assert moved.host == moved.optimizer + 2 * moved.weights


def test_what_is_offloaded_is_the_hosts(recipe: Path) -> None:
    kept = held(recipe, zero_stage=2)
    moved = held(recipe, zero_stage=2, offload="optimizer", placement="offload")
    assert kept.host == 0 and moved.host > moved.optimizer
    assert moved.device + moved.host == kept.device


def test_adapters_share_one_frozen_base_and_recomputing_keeps_less(recipe: Path) -> None:
    lora: dict[str, object] = {"name": "dmd", "lora_rank": 2, "regression_weight": 0}
    whole, adapters = held(recipe, method=lora | {"lora_rank": 0}), held(recipe, method=lora)
    assert adapters.frozen == whole.frozen == whole.weights // 2
    assert adapters.weights < whole.weights / 4
    assert held(recipe, method=lora, gradient_checkpointing=True).activations < adapters.activations
    decoded = held(recipe, method={"name": "dmd"})
    assert decoded.activations > whole.activations and decoded.frozen > whole.frozen


def test_activations_are_what_a_forward_really_keeps(tmp_path: Path) -> None:
    recipe = parse(tiny.recipe_data(tmp_path) | {"method": {"name": "lcm-lora", "lora_rank": 2}})
    (round_,) = recipe.method.build().rounds()
    teacher, kept = Teacher(recipe.teacher), Kept()
    student = cast(PipelineNetwork, student_network(teacher.network, trained_of(round_, "student"))).train()
    rows = recipe.training.batch_size
    cond = {name: torch.randn(rows, *shape) for name, shape in student.cond_shapes.items()}
    kept.weights = {tensor.untyped_storage()._cdata for tensor in (*student.parameters(), *student.buffers())}
    with saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        student(torch.randn(rows, *tiny.LATENT), torch.full((rows,), 500.0), cond)
    assert memory_of(recipe).activations == pytest.approx(kept.bytes, rel=0.05)
