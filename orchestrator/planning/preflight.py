"""Checks what only the loaded teacher can tell of a recipe, before anything is sampled or trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from fewstep.methods.base import Frozen, Method, Round, Trained
from fewstep.methods.diffusion import Denoiser
from fewstep.methods.solution_points import points_in
from fewstep.orchestrator.datasets.sources import samples_teacher, trajectories_of
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.features.feature_networks import (
    LOSSES,
    feature_network,
    features_label,
    layered_network,
)
from fewstep.orchestrator.features.perceptual import is_learned, perceptual_distance
from fewstep.orchestrator.recipe.data import Trajectories
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.ode import path_times, unsupported_reason
from fewstep.orchestrator.sampling.schedules import is_flow_matching, prediction_of, schedule_of
from fewstep.orchestrator.sampling.solvers import ODE_SOLVERS, SOLVERS, Solver
from fewstep.orchestrator.students.round_result import StudentSpec
from fewstep.orchestrator.students.schedulers import check_scheduler as check_export
from fewstep.orchestrator.students.student import as_denoiser, student_network, trained_of
from fewstep.orchestrator.students.warm_start import warm_start
from fewstep.orchestrator.teachers.teacher import Teacher

LARGEST_DIVISION = 30.0  # by alpha, that bfloat16's 8 bits leave a picture of
MAX_SHRINKING = 4  # of pictures before a network; a stroke of so many pixels is one then


def preflight(recipe: Recipe, teacher: Teacher, *, is_offline: bool = False) -> None:
    """Raises BadInput where this teacher cannot be sampled or the method built on it, or its student not exported.

    Offline no weights are read, neither a feature network's nor those that the student is to start from; and adapters
    are made for the estimate of memory anyway.
    """
    trajectories, evaluation, config = recipe.trajectories, recipe.evaluation, teacher.scheduler
    rounds = recipe.method.build().rounds()
    solver, steps = trajectories.solver, trajectories.num_inference_steps
    why = unsupported_reason(solver, steps, teacher.prediction, config)
    if why and samples_teacher(recipe, rounds):
        raise BadInput(f"trajectories.solver: {why}")
    _check_compiled(recipe, teacher)
    is_evaluated = teacher.family.has_pictures and recipe.has_training
    if is_evaluated:
        if why := unsupported_reason(evaluation.solvers[0], evaluation.reference_steps, teacher.prediction, config):
            raise BadInput(f"evaluation.solvers: {why}")
    elif recipe.training.evaluate_every:
        raise BadInput("training.evaluate_every: this teacher's samples are no pictures to judge; leave it out")
    if teacher.family.is_conditional:
        _check_prompts(recipe, rounds, is_evaluated=is_evaluated)
    if not teacher.family.has_null:
        _check_unguided(recipe, rounds, is_evaluated=is_evaluated)
    if teacher.network.has_guidance_input:
        _check_told_guidance(recipe.method.build())
    for round in rounds:
        _check_networks(round, recipe, teacher, is_offline=is_offline)
    if recipe.training.init_from and not is_offline:
        first = trained_of(rounds[0], rounds[0].result)
        warm_start(student_network(teacher.network, first), recipe, first)
    last = rounds[-1]
    if not recipe.export.merged and not isinstance(teacher.pipeline, LoraBaseMixin):
        raise BadInput(f"export.merged: a {type(teacher.pipeline).__name__} loads no adapters; leave it out")
    if why := teacher.family.unsupported_reason(recipe.method.build().sampler()):
        raise BadInput(f"method: {why}")
    check_export(recipe, teacher, StudentSpec.of(trained_of(last, last.result)))
    check_times(recipe, config)


def warnings(recipe: Recipe, teacher: Teacher) -> list[str]:
    """What is no fault of the teacher's or the recipe's, but better known before anything is made; a sentence each.

    Raises BadInput where a network that judges pictures is not there.
    """
    evaluation, family = recipe.evaluation, teacher.family
    sentences = family.warnings()
    if not (family.has_pictures and recipe.has_training):
        return sentences
    for field, name in (("evaluation.features", evaluation.features), ("evaluation.check", evaluation.check)):
        if name:
            network = feature_network(name, field=field)
            if network.shrinking(family.image_size) > MAX_SHRINKING:
                sentences.append(
                    f"{field}: {network.label(family.image_size)} overlooks what is finer than {MAX_SHRINKING} px, and "
                    "no figure by it tells of that; take a network that is shown larger pictures, or look at them too"
                )
    return sentences


def _check_compiled(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse to compile a network for batches of many shapes."""
    solver = recipe.trajectories.solver
    if recipe.teacher.compile and SOLVERS[solver].is_adaptive:
        raise BadInput(
            f"teacher.compile: {solver} evaluates batches of ever other sizes, each of which would be compiled; "
            "choose another solver, or leave compile out"
        )
    if recipe.teacher.compile and len(teacher.family.latent_shapes) > 1:
        raise BadInput(
            "teacher.compile: each size would be compiled; give one teacher.resolution, or leave compile out"
        )


def check_times(recipe: Recipe, config: Mapping[str, object]) -> None:
    """Refuse to train where the student is not sampled, with a teacher whose scheduler has this configuration."""
    method = recipe.method.build()
    for round in method.rounds():
        trajectories = trajectories_of(recipe, round)
        for source in round.sources.values():
            if (rest := source.grid % method.student_steps) and is_flow_matching(config):
                raise BadInput(
                    f"method.grid: {source.grid} even times leave out some of the {method.student_steps} that students "
                    "of flow-matching teachers are sampled at; choose a multiple of method.student_steps, like "
                    f"{source.grid - rest}"
                )
            if source.grid and source.kind == "path":
                _check_grid(source.grid, trajectories, config)
            if source.skip:
                try:
                    points_in(source.skip, trajectories.num_inference_steps, schedule_of(config))
                except ValueError as error:
                    raise BadInput(f"method.{error}; change it or trajectories.num_inference_steps") from None


def _check_grid(grid: int, trajectories: Trajectories, config: Mapping[str, object]) -> None:
    """Refuse stored paths that do not stop at the times of a grid."""
    steps, schedule = trajectories.num_inference_steps, schedule_of(config)
    if steps % grid:
        raise BadInput(
            f"trajectories.num_inference_steps: {steps} steps leave out some of the times that the student is sampled "
            f"at; choose a multiple of method.grid={grid}, or another grid"
        )
    even = schedule.at(torch.arange(grid, -1, -1) / grid)

    def stops_there(solver: Solver) -> bool:
        times = path_times(solver, config, steps)[:: steps // grid]
        stops, sampled = schedule.network_time(times), schedule.network_time(even)
        return len(stops) == len(sampled) and torch.allclose(stops, sampled, rtol=0.0, atol=1e-3)

    if not stops_there(SOLVERS[trajectories.solver]):
        able = [name for name, solver in ODE_SOLVERS.items() if prediction_of(config) in solver.predictions]
        others = ", ".join(name for name in able if stops_there(SOLVERS[name]))
        raise BadInput(
            f"trajectories.solver: {trajectories.solver} does not stop at the {grid} even times of method.grid; choose "
            f"one of {others}"
        )


def _check_told_guidance(method: Method) -> None:
    """Refuse a guidance scale for a student's own pairs, where its network is told it and learned with 1 alone."""
    if scales := _scales_of_students(method):
        fields = (name for name, value in vars(method).items() if "guidance_scale" in name and value == scales[0])
        field = next(name for name in fields if not _scales_of_students(dataclasses.replace(method, **{name: 1.0})))
        raise BadInput(
            f"method.{field}: {scales[0]:g} is told to a student that generates pairs, but students of this teacher, "
            "whose network takes the guidance scale as an input, learn with 1; set it to 1"
        )


def _scales_of_students(method: Method) -> list[float]:
    """The guidance scales other than 1 that rounds sample a student of the run with."""
    later = (round for round in method.rounds() if round.teacher != "base")
    sources = (source for round in later for source in round.sources.values())
    return [source.guidance_scale[1] for source in sources if source.guidance_scale[1] > 1]


def _check_prompts(recipe: Recipe, rounds: Sequence[Round], *, is_evaluated: bool) -> None:
    """Refuse a recipe without the prompts that this teacher is conditioned on."""
    if samples_teacher(recipe, rounds) and not recipe.trajectories.prompts:
        learns = f"{recipe.method.name} learns from what the teacher samples"
        raise BadInput(f"trajectories.prompts is missing; {learns}")
    if is_evaluated and not recipe.evaluation.prompts:
        raise BadInput("evaluation.prompts is missing; the student is judged on them")


def _check_unguided(recipe: Recipe, rounds: Sequence[Round], *, is_evaluated: bool) -> None:
    """Refuse guidance, whoever asks for it: this teacher has no null condition."""
    mend = (
        "this teacher was trained without a null condition and cannot be guided; 1, or a range of [1, 1], asks for none"
    )
    trajectories, evaluation = recipe.trajectories, recipe.evaluation
    scales: dict[str, Sequence[float]] = {
        "trajectories.guidance_scale": trajectories.guidance_scale,
        "trajectories.guidance_scales": trajectories.guidance_scales,
    }
    if is_evaluated:
        scales["evaluation.guidance_scale"] = (evaluation.guidance_scale,)
        scales["evaluation.guidance_scales"] = evaluation.guidance_scales
    for name, values in scales.items():
        if any(value != 1 for value in values):
            raise BadInput(f"{name}: {', '.join(f'{value:g}' for value in values)}, but {mend}")
    for round in rounds:
        has_guided_source = any(scale > 1 for source in round.sources.values() for scale in source.guidance_scale)
        if round.is_guided or has_guided_source:
            raise BadInput(f"method.guidance_scale: {recipe.method.name} guides its teacher, but {mend}")


def _check_precision(student: Denoiser, recipe: Recipe) -> None:
    """Refuse half precision where an epsilon network's x_0 is its answer's rounding errors many times over."""
    alpha = student.schedule.alpha(student.schedule.at(torch.ones(1))).item()
    precision = recipe.training.precision
    if student.prediction == "epsilon" and alpha * LARGEST_DIVISION < 1 and precision != "float32":
        starts = any(field.name == "start_time" for field in dataclasses.fields(recipe.method.build()))
        mend = "set method.start_time=399, or float32" if starts else "set float32"
        raise BadInput(
            f"training.precision: at the last time an epsilon student's x_0 is {1 / alpha:.0f} times its rounding "
            f"errors in {precision}; {mend}"
        )


def _check_networks(round: Round, recipe: Recipe, teacher: Teacher, *, is_offline: bool) -> None:
    network: nn.Module = teacher.network
    trained = (net for net in round.nets.values() if isinstance(net, Trained) and not is_offline)
    for net in {net.lora: net for net in trained if net.lora.rank}.values():
        student_network(network, net)
    for net in round.nets.values():
        if isinstance(net, Trained):
            try:
                denoiser = as_denoiser(network, net, teacher.denoiser())
            except ValueError as error:
                raise BadInput(f"method.{error}" if net.start_time else f"method: {error}") from error
            if net.init == "student":
                _check_precision(denoiser, recipe)
            if net.guidance_input and not teacher.network.can_take_guidance_input:
                teacher.network.with_guidance_input()  # which says why not
            if net.head:
                net.head(network)
        if isinstance(net, Frozen) and not teacher.family.has_pictures:
            raise BadInput(f"method: {recipe.method.name} has a loss of pictures, and this teacher's samples are none")
        if isinstance(net, Frozen) and net.role != "decoder" and recipe.has_training:
            _check_features(net, recipe.training.features, is_offline=is_offline)


def _check_features(net: Frozen, name: str, *, is_offline: bool) -> None:
    """Refuse a network that is not there, or that losses cannot look through."""
    is_distance = net.role == "perceptual"
    if not (is_distance and is_learned(name)):
        features_label(name, LOSSES)
    if not is_offline:
        (perceptual_distance if is_distance else layered_network)(name)
