"""Checks what only the loaded teacher can tell of a recipe, before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from fewstep.methods.base import Critic, Frozen, Round, Trained
from fewstep.methods.schedules import Schedule
from fewstep.methods.solution_points import points_in
from fewstep.orchestrator.datasets.sources import samples_teacher, trajectories_of
from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.feature_networks import feature_network, features_label
from fewstep.orchestrator.recipe.recipe import Recipe
from fewstep.orchestrator.sampling.ode import unsupported_reason
from fewstep.orchestrator.sampling.solvers import SOLVERS
from fewstep.orchestrator.students.round_result import StudentSpec
from fewstep.orchestrator.students.schedulers import check_scheduler as check_export
from fewstep.orchestrator.students.student import as_denoiser, student_network, trained_of
from fewstep.orchestrator.students.warm_start import warm_start
from fewstep.orchestrator.teachers.teacher import Teacher


def preflight(recipe: Recipe, teacher: Teacher, *, is_offline: bool = False) -> None:
    """Raises BadInput where this teacher cannot be sampled or the method built on it, or its student not exported.

    Offline no weights are read, neither a feature network's nor those that the student is to start from; and adapters
    are made for the estimate of memory anyway.
    """
    trajectories, evaluation, config = recipe.trajectories, recipe.evaluation, teacher.scheduler
    rounds = recipe.method.build().rounds()
    check_paths(recipe, teacher.schedule)
    solver, steps = trajectories.solver, trajectories.num_inference_steps
    why = unsupported_reason(solver, steps, teacher.prediction, config)
    if why and samples_teacher(recipe, rounds):
        raise BadInput(f"trajectories.solver: {why}")
    if recipe.teacher.compile and SOLVERS[solver].is_adaptive:
        raise BadInput(
            f"teacher.compile: {solver} evaluates batches of ever other sizes, each of which would be compiled; "
            "choose another solver, or leave compile out"
        )
    if recipe.teacher.compile and len(teacher.family.latent_shapes) > 1:
        raise BadInput(
            "teacher.compile: each size would be compiled; give one teacher.resolution, or leave compile out"
        )
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


def check_paths(recipe: Recipe, schedule: Schedule) -> None:
    """Refuse a skip that leads from a stored point to between two others."""
    for round in recipe.method.build().rounds():
        for source in round.sources.values():
            if source.skip:
                try:
                    points_in(source.skip, trajectories_of(recipe, round).num_inference_steps, schedule)
                except ValueError as error:
                    raise BadInput(f"method.{error}; change it or trajectories.num_inference_steps") from None


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


def _check_networks(round: Round, recipe: Recipe, teacher: Teacher, *, is_offline: bool) -> None:
    network: nn.Module = teacher.network
    trained = (net for net in round.nets.values() if isinstance(net, Trained) and not is_offline)
    for net in {net.lora: net for net in trained if net.lora.rank}.values():
        student_network(network, net)
    for net in round.nets.values():
        if isinstance(net, Trained):
            try:
                as_denoiser(network, net, teacher.denoiser())
            except ValueError as error:
                raise BadInput(f"method: {error}") from error
            if net.guidance_input and not teacher.network.can_take_guidance_input:
                teacher.network.with_guidance_input()  # which says why not
        if isinstance(net, Critic) and isinstance(round.nets.get(net.on), Trained):
            net.init(network)
        if isinstance(net, Frozen) and not teacher.family.has_pictures:
            raise BadInput(f"method: {recipe.method.name} has a loss of pictures, and this teacher's samples are none")
        if isinstance(net, Frozen) and net.role != "decoder" and recipe.has_training:
            features_label(recipe.training.features, field="training.features")
            if not is_offline and not feature_network(recipe.training.features, field="training.features").channels:
                raise BadInput(f"training.features: {recipe.training.features} shows no layers, which losses look at")
