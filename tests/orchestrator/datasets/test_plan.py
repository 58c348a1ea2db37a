from __future__ import annotations

import json
from collections import Counter

import pytest

from fewstep.orchestrator.datasets.plan import Plan, Shard, make_plan
from fewstep.orchestrator.teachers.card import TeacherCard
from tests.support.data_sets import MakeRecipe
from tests.support.plan import PLAN

OTHER = {
    "teacher": {"revision": "abd", "scheduler": {"beta_start": 0.00085}},
    "solver": "unipc",
    "scheduler": "UniPCMultistepScheduler",
    "scheduler_options": {"timestep_spacing": "leading"},
    "num_inference_steps": 5,
    "guidance_scale": (1.5, 4.5),
    "guidance_scales": (2.0,),
    "negative_prompt": "ugly",
    "prompts_sha256": "1" * 64,
    "num_prompts": 8,
    "prompt_repeats": 2,
    "prompt_order": "random",
    "saved_points": (0, 4),
    "dtype": "float32",
    "compute_dtype": "float16",
    "latent_shape": (4, 8, 9),
    "seed": 4,
    "batch_size": 8,
    "shard_size": 16,
}


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    assert PLAN.hash == "60623ed1ea90f4bb69264cd4c10c1cb9bb497638d9b1b3e24ceced46e20efe44"


def test_a_plan_survives_json() -> None:
    again = Plan.model_validate_json(json.dumps(PLAN.model_dump(mode="json")))
    assert again == PLAN and again.hash == PLAN.hash


@pytest.mark.parametrize("field", sorted(set(Plan.model_fields) - {"schema_version", "samples"}))
def test_every_field_changes_the_hash(field: str) -> None:
    other = PLAN.model_copy(update={field: OTHER[field]})
    assert other.hash != PLAN.hash
    assert PLAN.differences(other) == [field]


def test_the_number_of_samples_is_no_part_of_the_identity() -> None:
    more = PLAN.model_copy(update={"samples": 51})
    assert more.hash == PLAN.hash and PLAN.differences(more) == []
    assert [shard.name for shard in PLAN.shards()][:-1] == [shard.name for shard in more.shards()][:-1]


def test_shards_cover_every_sample_once_and_batches_every_shard() -> None:
    shards = PLAN.shards()
    assert [i for shard in shards for i in shard.samples] == list(range(50))
    assert [i for shard in shards for batch in PLAN.batches(shard) for i in batch] == list(range(50))
    assert {len(batch) for shard in shards[:-1] for batch in PLAN.batches(shard)} == {4}
    assert [Shard.named(shard.name) for shard in shards] == shards


def test_shards_take_sizes_in_turn() -> None:
    shapes = [(4, 8, 8), (4, 12, 6)]
    plan = PLAN.model_copy(update={"teacher": {**PLAN.teacher, "latent_shapes": shapes}})
    assert [plan.sample_shape(shard.samples.start) for shard in plan.shards()] == [*shapes * 3, shapes[0]]
    assert all(len({plan.sample_shape(i) for i in shard.samples}) == 1 for shard in plan.shards())
    more = plan.model_copy(update={"samples": 99})
    assert [plan.sample_shape(i) for i in range(50)] == [more.sample_shape(i) for i in range(50)]
    assert plan.total_bytes == sum(plan.row_bytes(plan.sample_shape(i)) for i in range(50))
    assert plan.hash != PLAN.hash and PLAN.sample_shape(49) == (4, 8, 8)


def test_prompts_get_equal_shares_in_changing_orders() -> None:
    drawn = [PLAN.sample_condition(i) for i in range(49)]
    assert set(Counter(drawn).values()) == {7}
    assert drawn[7:14] != drawn[14:21]


def test_few_samples_meet_prompts_from_the_whole_list() -> None:
    plan = PLAN.model_copy(update={"num_prompts": 1000, "samples": 20})
    assert [plan.sample_condition(i) for i in range(20)] == list(range(plan.num_conditions))
    met = [plan.condition_prompt(condition) for condition in range(plan.num_conditions)]
    assert len(set(met)) == 20 and max(met) > 500 > min(met)


def test_guidance_is_drawn_over_the_range_and_seeds_differ() -> None:
    drawn = [PLAN.sample_guidance(i) for i in range(1000)]
    assert 1.5 <= min(drawn) < 1.55 and 3.95 < max(drawn) <= 4.0
    assert len({PLAN.sample_seed(i) for i in range(1000)}) == 1000
    other = PLAN.model_copy(update={"seed": 4})
    assert not {PLAN.sample_seed(i) for i in range(1000)} & {other.sample_seed(i) for i in range(1000)}


def test_evaluations_count_guidance_twice() -> None:
    assert PLAN.teacher_evaluations == 50 * 4 * 2
    assert PLAN.model_copy(update={"guidance_scale": (1.0, 1.0)}).teacher_evaluations == 50 * 4


def test_prompts_may_repeat_in_a_row_and_be_drawn_independently() -> None:
    twice = PLAN.model_copy(update={"prompt_repeats": 2, "samples": 9})
    assert [twice.sample_condition(i) for i in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert twice.num_conditions == 5
    random = PLAN.model_copy(update={"prompt_order": "random"})
    drawn = Counter(random.sample_condition(i) for i in range(7000))
    assert drawn.keys() == set(range(random.num_conditions)) and min(drawn.values()) > 850
    assert [random.sample_condition(i) for i in range(7)] != list(range(7))


def test_an_adaptive_solver_stops_where_a_state_is_saved_and_plans_its_tolerance(make_recipe: MakeRecipe) -> None:
    card = TeacherCard("abc", "StableDiffusionPipeline", {}, "v_prediction", (4, 8, 8))
    told = {"solver": "rk45", "num_inference_steps": 4, "guidance_scale": 1.0}
    ends, whole = (make_plan(make_recipe(**told, save=save), card, ["a cat"], 2) for save in ("ends", "all"))
    assert (ends.num_inference_steps, whole.num_inference_steps) == (1, 4)
    assert ends.evaluations_per_sample < whole.evaluations_per_sample
    assert ends == make_plan(make_recipe(**told | {"num_inference_steps": 9}, save="ends"), card, ["a cat"], 2)
    assert ends.hash != make_plan(make_recipe(**told, save="ends", tolerance=1e-4), card, ["a cat"], 2).hash


def test_evaluations_are_the_solvers() -> None:
    assert PLAN.model_copy(update={"solver": "heun"}).evaluations_per_sample == 2 * (2 * 4 - 1)


def test_guidance_is_drawn_from_a_list() -> None:
    listed = PLAN.model_copy(update={"guidance_scales": (1.0, 3.0, 7.5)})
    drawn = Counter(listed.sample_guidance(i) for i in range(3000))
    assert drawn.keys() == {1.0, 3.0, 7.5} and min(drawn.values()) > 850
    assert PLAN.model_copy(update={"guidance_scales": (1.0,)}).evaluations_per_sample == 4
