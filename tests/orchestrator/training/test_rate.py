"""The learning rate of each step."""

from __future__ import annotations

import pytest

from fewstep.methods.adversarial import Adversarial
from fewstep.methods.distribution_matching import DistributionMatching
from fewstep.methods.lcm import LCM
from fewstep.methods.progressive import Progressive
from fewstep.orchestrator.recipe.training import Training
from fewstep.orchestrator.training.loop import learning_rate


def test_the_rate_warms_up_stays_and_falls_to_zero_in_the_last_steps() -> None:
    (round_,) = LCM().rounds()
    training = Training(steps=10, learning_rate=1.0, warmup_steps=3, decay_steps=4)
    rates = [learning_rate(round_, training, "student", step, 10) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_every_trained_network_has_the_rate_that_the_method_gives_it() -> None:
    (adversarial,) = Adversarial(discriminator_lr_scale=3.0).rounds()
    (matching,) = DistributionMatching(fake_lr_scale=0.5).rounds()
    training = Training(steps=4, learning_rate=1.0)
    assert learning_rate(adversarial, training, "discriminator", 0, 4) == 3
    assert learning_rate(adversarial, training, "student", 0, 4) == 1
    assert learning_rate(matching, training, "fake_score", 0, 4) == 0.5


def test_without_decay_it_stays_unless_the_method_anneals() -> None:
    training = Training(steps=4, learning_rate=1.0)
    (lcm,), (halving, *_) = LCM().rounds(), Progressive().rounds()
    assert [learning_rate(lcm, training, "student", step, 4) for step in range(4)] == [1, 1, 1, 1]
    assert [learning_rate(halving, training, "student", step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
