"""Checks an evaluation by a named protocol, and reads statistics of real images that somebody stored."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from fewstep.orchestrator.errors import BadInput
from fewstep.orchestrator.evaluation.distances import SAMPLES_FOR_FRECHET, FeatureMoments
from fewstep.orchestrator.evaluation.feature_cache import read_features
from fewstep.orchestrator.evaluation.system import SampleFeatures
from fewstep.orchestrator.inputs.prompts import read_prompts
from fewstep.orchestrator.recipe.evaluation import Evaluation

FIELD = "evaluation.statistics"


def check_evaluation(evaluation: Evaluation) -> None:
    """Raises BadInput for what an evaluation could not use, before anything starts."""
    if evaluation.statistics:
        read_statistics(evaluation)
    if evaluation.protocol:
        count = len(read_prompts(evaluation.prompts, "evaluation.prompts", distinct=False))
        if count < evaluation.samples:
            raise BadInput(
                f"evaluation.prompts: {evaluation.prompts} has {count:,} captions, and {evaluation.protocol} takes "
                f"{evaluation.samples:,}, one for each sample; give its whole list, one a line"
            )


def read_statistics(evaluation: Evaluation) -> FeatureMoments | SampleFeatures:
    """Mean and covariance of real images' features, or the features themselves, from a file of `fewstep evaluate`'s.

    Raises BadInput for a file that holds neither, or features of another network.
    """
    file = evaluation.statistics
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if "features" in arrays:
                _check_own(evaluation, json.loads(str(arrays["facts"])))
                return read_features(Path(file))
            moments = FeatureMoments(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        if isinstance(error, BadInput):
            raise
        holds = "mu and sigma, as FID's statistics do, or features that fewstep wrote"
        raise BadInput(f"{FIELD}: {file} must be an .npz that holds {holds} ({error})") from None
    _check_moments(evaluation, moments)
    return moments


def _check_own(evaluation: Evaluation, facts: dict[str, object]) -> None:
    network = facts["features"]
    if network != evaluation.features:
        raise BadInput(
            f"{FIELD}: {evaluation.statistics} is of {network}, and evaluation.features is not; take one network"
        )
    if evaluation.images:
        raise BadInput(f"{FIELD} holds features, which take the place of evaluation.images; leave one of the two out")


def _check_moments(evaluation: Evaluation, moments: FeatureMoments) -> None:
    width = len(moments.mean)
    if moments.covariance.shape != (width, width):
        raise BadInput(f"{FIELD}: sigma of {evaluation.statistics} must be {width} x {width}, as mu says")
    if evaluation.samples < SAMPLES_FOR_FRECHET:
        raise BadInput(
            f"{FIELD}: a Frechet distance needs {SAMPLES_FOR_FRECHET:,} samples, below which its bias is larger than "
            f"what it measures; set evaluation.samples to that at least, got {evaluation.samples:,}"
        )
