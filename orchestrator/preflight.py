"""What only the loaded teacher can tell of a recipe, asked before anything is sampled or trained."""

from __future__ import annotations

from torch import nn

from methods.base import Frozen, Round, Trained
from orchestrator.errors import BadInput
from orchestrator.export import check as check_export
from orchestrator.features import feature_network
from orchestrator.networks import meaning, student_network, trained_of
from orchestrator.recipe import Recipe
from orchestrator.results import StudentFacts
from orchestrator.sampling import refusal
from orchestrator.sources import samples_teacher
from orchestrator.teacher import Teacher


def preflight(recipe: Recipe, teacher: Teacher) -> None:
    """Raises BadInput where this teacher cannot be sampled or the method built on it, or its student not exported."""
    told, config = recipe.trajectories, teacher.card.scheduler
    rounds = recipe.method.build().rounds()
    why = refusal(told.solver, told.num_inference_steps, teacher.prediction, config)
    if why and samples_teacher(recipe, rounds):
        raise BadInput(f"trajectories.solver: {why}")
    for round in rounds:
        _check_networks(round, recipe, teacher)
    last = rounds[-1]
    check_export(recipe, teacher.card.scheduler, StudentFacts.of(trained_of(last, last.result)))


def _check_networks(round: Round, recipe: Recipe, teacher: Teacher) -> None:
    network: nn.Module = teacher.network
    for net in round.nets.values():
        if isinstance(net, Trained):
            try:
                meaning(network, net, teacher.denoiser())
            except ValueError as error:
                raise BadInput(f"method: {error}") from error
            if net.lora_rank:
                student_network(network, net, shares_base=True)
        if isinstance(net, Frozen) and net.role != "decoder":
            features = feature_network(recipe.training.features, section="training")
            if not features.channels:
                raise BadInput(f"training.features: {recipe.training.features} shows no layers, which losses look at")
