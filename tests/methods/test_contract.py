"""What every method promises to the runtime."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from pydantic import TypeAdapter, ValidationError

from fewstep.methods import METHODS
from fewstep.methods.base import Averaged, Critic, Frozen, Method, Round, Trained
from fewstep.methods.instaflow import InstaFlow
from fewstep.methods.lcm import LCM
from fewstep.methods.search_space import Choice, LogUniform, Range

every_method = pytest.mark.parametrize("name", METHODS)


def tried(leaf: Range) -> tuple[object, ...]:
    """Values that a search may pick."""
    return leaf.options if isinstance(leaf, Choice) else (leaf.low, leaf.high)


def variants(name: str) -> list[Method]:
    """The method as its paper has it, and with each value that a search may try."""
    cls = METHODS[name]
    return [cls(), *(cls(**{field: value}) for field, leaf in cls.space.items() for value in tried(leaf))]


def all_rounds(name: str) -> list[Round]:
    return [round_ for method in variants(name) for round_ in method.rounds()]


def test_the_registry_is_sorted() -> None:
    assert list(METHODS) == sorted(METHODS)


@every_method
def test_a_method_says_where_it_is_from(name: str) -> None:
    assert "." in METHODS[name].paper and METHODS[name].__doc__


@every_method
def test_the_space_varies_fields_with_values_that_the_method_takes(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    assert set(METHODS[name].space) <= fields
    assert all(leaf.low < leaf.high for leaf in METHODS[name].space.values() if not isinstance(leaf, Choice))
    assert all(leaf.low > 0 for leaf in METHODS[name].space.values() if isinstance(leaf, LogUniform))
    assert len(variants(name)) > 1


@every_method
def test_rounds_survive_pickling(name: str) -> None:
    for method in variants(name):
        restored = pickle.loads(pickle.dumps(method.rounds()))
        assert [round_.name for round_ in restored] == [round_.name for round_ in method.rounds()]


@every_method
def test_rounds_have_names_of_their_own(name: str) -> None:
    for method in variants(name):
        names = [round_.name for round_ in method.rounds()]
        assert len(set(names)) == len(names) > 0


@every_method
def test_updates_train_trained_networks_and_all_of_them(name: str) -> None:
    for round_ in all_rounds(name):
        trained = {net for net, spec in round_.nets.items() if isinstance(spec, Trained | Critic)}
        assert {update.net for update in round_.updates} == trained
        assert all(update.every >= 1 for update in round_.updates)


@every_method
def test_averages_follow_trained_networks_and_the_result_is_a_denoiser(name: str) -> None:
    for round_ in all_rounds(name):
        assert "student" in round_.nets and "teacher" not in round_.nets
        assert isinstance(round_.nets[round_.result], Trained | Averaged)
        for spec in round_.nets.values():
            if isinstance(spec, Averaged):
                assert isinstance(round_.nets[spec.of], Trained)


@every_method
def test_a_critic_has_features_to_look_at(name: str) -> None:
    for round_ in all_rounds(name):
        if any(isinstance(spec, Critic) for spec in round_.nets.values()):
            assert round_.nets["features"] == Frozen("features")


@every_method
def test_a_round_reads_sources(name: str) -> None:
    assert all(round_.sources for round_ in all_rounds(name))


@every_method
def test_only_later_rounds_build_on_a_previous_one(name: str) -> None:
    for method in variants(name):
        first = method.rounds()[0]
        assert (first.start, first.teacher) == ("base", "base")


@every_method
def test_a_fake_score_needs_a_teacher_in_memory(name: str) -> None:
    for round_ in all_rounds(name):
        starts = {spec.init for spec in round_.nets.values() if isinstance(spec, Trained)}
        assert round_.online or starts == {"student"}


@every_method
def test_a_sampler_takes_the_guidance_scale_if_its_network_does(name: str) -> None:
    for method in variants(name):
        student = method.rounds()[-1].nets["student"]
        assert isinstance(student, Trained)
        assert student.guidance_input == (method.sampler().guidance == "input")


@every_method
def test_no_steps_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"student_steps must be .*1.*, got 0"):
        METHODS[name](student_steps=0)  # pyright: ignore[reportCallIssue] - every method has the field


@pytest.mark.parametrize("name", [name for name, cls in METHODS.items() if "guidance_scale" in vars(cls)])
def test_guidance_below_none_is_refused(name: str) -> None:
    bad = (0.5, 2.0) if isinstance(vars(METHODS[name])["guidance_scale"], tuple) else 0.5
    with pytest.raises(ValueError, match="guidance_scale must be at least 1"):
        METHODS[name](guidance_scale=bad)  # pyright: ignore[reportCallIssue] - these have the field


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("add", {"r1_weight": -1.0}, "r1_weight must be at least 0, got -1"),
        ("add", {"student_steps": 101}, "student_steps must be at most 100, got 101"),
        ("add", {"lora_rank": -1}, "lora_rank must be at least 0, got -1"),
        ("consistency", {"grid": 2}, "student_steps must be below grid=2, got 2"),
        ("dmd", {"student_steps": 4}, "regression_weight must be 0 where student_steps=4: .*, got 0.25"),
        ("dmd", {"start_time": 400}, "start_time must be one less than a multiple of 100, got 400; try 399"),
        ("dmd", {"start_time": -1}, "start_time must be one less than a multiple of 100, got -1; try 99"),
        ("guided", {"teacher_steps": 48}, "teacher_steps must be student_steps=4 doubled once or more, got 48"),
        ("instaflow", {"num_reflows": 0}, "num_reflows must be at least 1, got 0"),
        ("instaflow", {"time_min": 1.0}, r"time_min must be in \[0, 1\), got 1"),
        ("lcm", {"guidance_scale": (9, 3)}, r"guidance_scale range is reversed: \[9, 3\]; write \[3, 9\]"),
        ("lcm", {"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1"),
        ("lcm", {"student_steps": 51}, "student_steps must be at most grid=50, got 51"),
        ("lcm-lora", {"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ("progressive", {"student_steps": 6}, "teacher_steps must be student_steps=6 doubled once or more, got 1024"),
        ("progressive", {"teacher_steps": 4}, "teacher_steps must be student_steps=4 doubled once or more, got 4"),
        ("reflow", {"time_min": 1.0}, r"time_min must be in \[0, 1\), got 1"),
        ("tcd", {"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_bad_hyperparameter_is_refused_by_name_and_value(name: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS[name](**fields)


@every_method
def test_a_recipe_builds_it_from_plain_data_and_refuses_an_unknown_choice(name: str) -> None:
    build = TypeAdapter(METHODS[name]).validate_python
    assert build({}) == METHODS[name]()
    for field, leaf in METHODS[name].space.items():
        if isinstance(tried(leaf)[0], str):
            with pytest.raises(ValidationError):
                build({field: "no such choice"})


def test_progressive_distillation_halves_until_the_student_is_reached() -> None:
    rounds = METHODS["progressive"](teacher_steps=16, student_steps=1).rounds()  # pyright: ignore[reportCallIssue]
    assert [round_.name for round_ in rounds] == ["16-to-8", "8-to-4", "4-to-2", "2-to-1"]
    assert [round_.teacher for round_ in rounds] == ["base", "previous", "previous", "previous"]
    assert [round_.length for round_ in rounds] == [1.0, 1.0, 2.0, 2.0]
    assert all(round_.anneal and round_.start == round_.teacher for round_ in rounds)


def test_guided_distillation_halves_what_it_matched() -> None:
    matching, *halvings = METHODS["guided"]().rounds()
    assert matching.name == "matching" and not matching.anneal
    assert len(halvings) == 7
    assert all((round_.start, round_.teacher) == ("previous", "previous") for round_ in halvings)


def test_reflow_generates_with_the_average_and_goes_on_from_the_raw_weights() -> None:
    first, second = METHODS["reflow"](num_reflows=2).rounds()  # pyright: ignore[reportCallIssue]
    assert (first.start, first.teacher, first.result) == ("base", "base", "average")
    assert (second.start, second.teacher, second.result) == ("previous", "previous_average", "average")
    assert not first.online and not second.online


def test_instaflow_distills_new_pairs_of_the_straightened_model() -> None:
    reflow, distillation = InstaFlow().rounds()
    assert reflow.sources["pairs"].guidance_scale == (6.0, 6.0)
    assert distillation.teacher == "previous_average"
    assert distillation.sources["pairs"].guidance_scale == (1.5, 1.5)


def test_dmd2_drops_the_pairs_and_reads_real_data() -> None:
    (dmd,) = METHODS["dmd"]().rounds()
    assert set(dmd.sources) == {"prompts", "pairs"}
    improved = {"regression_weight": 0.0, "adversarial_weight": 1e-3, "student_every": 5}
    (dmd2,) = METHODS["dmd"](**improved).rounds()
    assert set(dmd2.sources) == {"prompts", "data"}
    assert {update.net: update.every for update in dmd2.updates} == {"fake_score": 1, "student": 5}


def test_a_stored_path_leaves_the_teacher_out_of_memory() -> None:
    (online,) = LCM().rounds()
    (stored,) = LCM(teacher_step="stored").rounds()
    assert online.online and set(online.sources) == {"data"}
    assert not stored.online and set(stored.sources) == {"path"}
