"""One wrong variant of the mathematics per trap, and the test that has to notice it.

python -m tests.mutations     # says which wrong variants went unnoticed, and fails if there is one
"""

from __future__ import annotations

import ast
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
METHODS = ROOT / "methods"


@dataclass(frozen=True)
class Mutation:
    """Replace `right` by `wrong` in a file of methods/; `test` must fail then, and passes now.

    Both are Python, an expression or a statement; `right` is found by its syntax, however it is written down, and
    must stand in the definition exactly once.
    """

    file: str
    definition: str  # qualified name of a function or class; "" is the module
    right: str
    wrong: str
    test: str  # pytest's id, below tests/methods


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "progressive.py",
        "halving",
        "range(3)",
        "(0, 2, 1)",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "step(schedule, believe(z_middle, middle), s)",
        "step(schedule, believe(z_middle, t), s)",
        "test_progressive.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "z_s = step(schedule, believe(z_middle, middle), s)",
        "z_s = step(schedule, believe(z_t, t), s)",
        "test_progressive.py::test_a_student_whose_ddim_step_ends_where_two_of_its_teachers_end_is_right",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "z_middle = step(schedule, believe(z_t, t), middle)",
        "z_middle = diffuse(schedule, x0, draw.normal(x0), middle)",
        "test_progressive.py::test_both_half_steps_see_the_same_noise",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "reach * half / (2 * steps)",
        "reach * half / steps",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "draw.integers(1, steps + 1) / steps",
        "draw.integers(0, steps) / steps",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "draw.integers(1, steps + 1) / steps",
        "draw.integers(1, 2 * steps + 1) / (2 * steps)",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "following(student, z_t, t, z_s, s, cond, weighting)",
        "following(student, z_t, t, z_middle, middle, cond, weighting)",
        "test_progressive.py::test_next_to_clean_data_the_student_has_to_believe_what_its_teacher_does_half_way",
    ),
    Mutation(
        "progressive.py",
        "implied_x0",
        "alpha_s - ratio * alpha_t",
        "alpha_s",
        "test_progressive.py::test_one_step_of_the_implied_x0_ends_where_it_has_to",
    ),
    Mutation(
        "progressive.py",
        "implied_x0",
        "z_s - ratio * z_t",
        "z_s",
        "test_progressive.py::test_one_step_of_the_implied_x0_ends_where_it_has_to",
    ),
    Mutation(
        "progressive.py",
        "weight",
        "ratio.clamp_min(1)",
        "ratio",
        "test_progressive.py::test_weights_turn_the_error_of_x0_into_that_of_eps_and_v",
    ),
    Mutation(
        "progressive.py",
        "weight",
        "ratio.clamp_min(1)",
        "ratio.clamp_max(1)",
        "test_progressive.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "progressive.py",
        "weight",
        "ratio + 1",
        "ratio",
        "test_progressive.py::test_at_zero_terminal_snr_the_weight_is_one",
    ),
    Mutation(
        "progressive.py",
        "following",
        "weight(weighting, schedule, t)",
        "weight(weighting, schedule, s)",
        "test_progressive.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "torch.where(u > 1.5 / steps, 2, 1)",
        "2",
        "test_guided.py::test_a_stochastic_students_step_is_two_of_its_teachers_of_its_own_length",
    ),
    Mutation(
        "progressive.py",
        "halving",
        "torch.no_grad()",
        "torch.enable_grad()",
        "test_progressive.py::test_only_the_student_gets_gradients",
    ),
    Mutation(
        "progressive.py",
        "progressive_loss.believe",
        "guided(nets['teacher'], x_t, t, rows.cond, rows.uncond, guidance_scale)",
        "guided(nets['teacher'], x_t, t, rows.cond, rows.uncond, guidance_scale + 1)",
        "test_progressive.py::test_the_first_teacher_alone_is_guided",
    ),
    Mutation(
        "progressive.py",
        "Progressive.rounds",
        "partial(loss, guidance_scale=1.0)",
        "partial(loss, guidance_scale=self.guidance_scale)",
        "test_progressive.py::test_the_first_teacher_alone_is_guided",
    ),
    Mutation(
        "progressive.py",
        "halvings",
        "partial(loss, steps=steps)",
        "partial(loss, steps=2 * steps)",
        "test_progressive.py::test_each_round_has_its_own_number_of_steps_and_the_methods_weighting",
    ),
    Mutation(
        "progressive.py",
        "Progressive.rounds",
        "self.teacher_steps // 2",
        "self.teacher_steps",
        "test_progressive.py::test_each_round_has_its_own_number_of_steps_and_the_methods_weighting",
    ),
    Mutation(
        "progressive.py",
        "Progressive.rounds",
        "Trained(prediction=self.prediction)",
        "Trained()",
        "test_progressive.py::test_every_student_may_be_asked_for_another_prediction",
    ),
    Mutation(
        "progressive.py",
        "halvings",
        '"previous" if rounds else "base"',
        '"base"',
        "test_contract.py::test_progressive_distillation_halves_until_the_student_is_reached",
    ),
    Mutation(
        "progressive.py",
        "stored_progressive_loss",
        "z_t, t, z_s, s = rows.path[here, i], rows.times[here, i], rows.path[here, i + 2], rows.times[here, i + 2]",
        "z_t, t, z_s, s = rows.path[here, i], rows.times[here, i], rows.path[here, i + 1], rows.times[here, i + 1]",
        "test_progressive.py::test_from_a_stored_path_the_student_has_to_end_where_two_stored_steps_end",
    ),
    Mutation(
        "progressive.py",
        "stored_progressive_loss",
        "2 * batch.draw.integers(0, steps)",
        "batch.draw.integers(0, 2 * steps - 1)",
        "test_progressive.py::test_from_a_stored_path_the_student_has_to_end_where_two_stored_steps_end",
    ),
    Mutation(
        "progressive.py",
        "Progressive._path",
        "self.guidance_scale if 2 * steps == self.teacher_steps else 1.0",
        "self.guidance_scale",
        "test_progressive.py::test_stored_rounds_read_the_path_that_their_own_teacher_makes",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        'guided(nets["teacher"], x_t, t, rows.cond, rows.uncond, w)',
        'guided(nets["teacher"], x_t, t, rows.cond, rows.uncond, w + 1)',
        "test_guided.py::test_before_training_the_loss_is_what_guidance_adds",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        'guided(nets["teacher"], x_t, t, rows.cond, rows.uncond, w)',
        'guided(nets["teacher"], x_t, t, rows.uncond, rows.cond, w)',
        "test_guided.py::test_the_student_has_to_answer_as_the_guided_teacher",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "student(x_t, t, with_guidance(rows.cond, w))",
        "student(x_t, t, rows.cond)",
        "test_guided.py::test_one_network_answers_for_every_w_and_then_in_half_the_steps",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "with_guidance(rows.cond, w)",
        "with_guidance(rows.cond, w - 1)",
        "test_guided.py::test_times_are_continuous_and_w_is_drawn_for_each_sample",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "draw.uniform(*guidance_scale)",
        "draw.uniform(*guidance_scale)[:1].expand(len(t))",
        "test_guided.py::test_times_are_continuous_and_w_is_drawn_for_each_sample",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "draw.uniform(*guidance_scale)",
        "draw.uniform(*guidance_scale)[:1].expand(len(t))",
        "test_guided.py::test_the_loss_does_not_depend_on_how_the_batch_is_split",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "1 - draw.uniform()",
        "draw.uniform()",
        "test_guided.py::test_no_draw_of_the_time_is_nan",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "1 - draw.uniform()",
        "draw.integers(1, 51) / 50",
        "test_guided.py::test_times_are_continuous_and_w_is_drawn_for_each_sample",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "weight(weighting, student.schedule, t) * distance",
        "distance",
        "test_guided.py::test_before_training_the_loss_is_what_guidance_adds",
    ),
    Mutation(
        "guided.py",
        "matching_loss",
        "torch.no_grad()",
        "torch.enable_grad()",
        "test_guided.py::test_only_the_student_gets_gradients",
    ),
    Mutation(
        "guided.py",
        "guided_progressive_loss.believe",
        "teacher(x_t, t, cond)",
        "teacher(x_t, t, rows.cond)",
        "test_guided.py::test_one_w_per_sample_is_an_input_of_student_and_teacher_alike",
    ),
    Mutation(
        "guided.py",
        "guided_progressive_loss.believe",
        "teacher(x_t, t, cond)",
        "teacher(x_t, t, rows.cond)",
        "test_guided.py::test_the_halving_student_has_to_believe_what_its_teacher_does_for_the_same_w",
    ),
    Mutation(
        "guided.py",
        "guided_progressive_loss.believe",
        "teacher(x_t, t, cond)",
        "teacher(x_t, t, with_guidance(rows.cond, batch.draw.uniform(*guidance_scale)))",
        "test_guided.py::test_the_halving_student_has_to_believe_what_its_teacher_does_for_the_same_w",
    ),
    Mutation(
        "guided.py",
        "guided_progressive_loss",
        "halving(student, believe, rows.x0, cond, batch.draw, steps, weighting, overshoots=stochastic)",
        "halving(student, believe, rows.x0, rows.cond, batch.draw, steps, weighting, overshoots=stochastic)",
        "test_guided.py::test_one_w_per_sample_is_an_input_of_student_and_teacher_alike",
    ),
    Mutation(
        "guided.py",
        "guided_progressive_loss",
        "halving(student, believe, rows.x0, cond, batch.draw, steps, weighting, overshoots=stochastic)",
        "halving(student, believe, rows.x0, cond, batch.draw, 2 * steps, weighting, overshoots=stochastic)",
        "test_guided.py::test_halving_is_progressive_distillation_with_w_in_the_condition",
    ),
    Mutation(
        "guided.py",
        "Guided.rounds",
        "Trained(self.lora, guidance_input=True)",
        "Trained(self.lora)",
        "test_guided.py::test_the_rounds_match_and_then_halve",
    ),
    Mutation(
        "guided.py",
        "Guided.rounds",
        'replace(halved, start="previous", teacher="previous")',
        'replace(halved, start="previous")',
        "test_contract.py::test_guided_distillation_halves_what_it_matched",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        'consistency_function(nets["target"], x_s, s, cond, sigma_min)',
        'consistency_function(nets["target"], x_t, t, cond, sigma_min)',
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "consistency_loss",
        "(n, n + 1)",
        "(n + 1, n)",
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        'consistency_function(nets["student"], x_t, t, cond, sigma_min)',
        'consistency_function(nets["student"], x_s, s, cond, sigma_min)',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        'consistency_function(nets["target"], x_s, s, cond, sigma_min)',
        'consistency_function(nets["student"], x_s, s, cond, sigma_min)',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "consistency_function",
        "towards * net(x_t, t, cond).x0 + SIGMA_DATA**2 * (ours - towards * edms) * x_t",
        "towards * net(x_t, t, cond).x0",
        "test_consistency.py::test_at_sigma_min_every_network_is_the_identity",
    ),
    Mutation(
        "consistency.py",
        "consistency_function",
        "towards * net(x_t, t, cond).x0 + SIGMA_DATA**2 * (ours - towards * edms) * x_t",
        "net(x_t, t, cond).x0",
        "test_consistency.py::test_at_sigma_min_every_network_is_the_identity",
    ),
    Mutation(
        "consistency.py",
        "consistency_function",
        "(sigma - sigma_min * alpha) ** 2",
        "sigma**2",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "consistency_function",
        "ours - towards * edms",
        "ours - edms",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "consistency_function",
        "ours - towards * edms",
        "ours",
        "test_consistency.py::test_the_student_starts_as_the_teachers_denoiser",
    ),
    Mutation(
        "consistency.py",
        "consistency_function",
        "1 - sigma_min * alpha / sigma",
        "1 - sigma_min / sigma",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "",
        "SIGMA_DATA = 0.5",
        "SIGMA_DATA = 1.0",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "schedules.py",
        "EDM",
        "rho: float = 7.0",
        "rho: float = 5.0",
        "test_consistency.py::test_the_grid_is_that_of_the_papers_sampler_on_any_schedule",
    ),
    Mutation(
        "schedules.py",
        "karras_times",
        "point.double() / (grid - 1)",
        "point.double() / grid",
        "test_consistency.py::test_the_grid_is_that_of_the_papers_sampler_on_any_schedule",
    ),
    Mutation(
        "consistency.py",
        "consistency_loss",
        "draw.integers(0, grid - 1)",
        "draw.integers(0, grid)",
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "consistency_loss",
        "draw.integers(0, grid - 1)",
        "draw.integers(1, grid - 1)",
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "heun_step",
        "(first.eps + second.eps) / 2",
        "first.eps",
        "test_consistency.py::test_the_teachers_step_is_of_second_order",
    ),
    Mutation(
        "consistency.py",
        "heun_step",
        "(first.eps + second.eps) / 2",
        "second.eps",
        "test_consistency.py::test_the_teachers_step_is_heuns_on_the_mixture",
    ),
    Mutation(
        "consistency.py",
        "heun_step",
        "believe(step(schedule, first, s), s)",
        "believe(step(schedule, first, s), t)",
        "test_consistency.py::test_the_teachers_step_is_heuns_on_the_mixture",
    ),
    Mutation(
        "consistency.py",
        "heun_step",
        "alpha_s / alpha_t * (x_t - sigma_t * slope)",
        "x_t - sigma_t * slope",
        "test_consistency.py::test_the_teachers_step_is_heuns_on_the_mixture",
    ),
    Mutation(
        "consistency.py",
        "consistency_loss",
        "heun_step(believe, schedule, x_t, t, s)",
        "diffuse(schedule, rows.x0, draw.normal(rows.x0), s)",
        "test_consistency.py::test_both_points_have_the_same_noise",
    ),
    Mutation(
        "consistency.py",
        "consistency_loss",
        "guided(teacher, x, time, rows.cond, rows.uncond, guidance_scale)",
        "guided(teacher, x, time, rows.cond, rows.uncond, guidance_scale + 1)",
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        "torch.no_grad()",
        "torch.enable_grad()",
        "test_consistency.py::test_only_the_student_gets_gradients",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        "l1(x0, end)",
        "l2(x0, end)",
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        "perceptual(nets, x0, end)",
        'nets["perceptual"](x0, end)',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "Consistency.rounds",
        "Averaged(decay=self.ema_decay, is_target=True)",
        "Averaged(decay=self.sampling_ema_decay, is_target=True)",
        "test_consistency.py::test_the_round_has_what_its_loss_calls_and_its_hyperparameters",
    ),
    Mutation(
        "consistency.py",
        "Consistency.rounds",
        "Averaged(decay=self.sampling_ema_decay)",
        "Averaged(decay=self.ema_decay)",
        "test_consistency.py::test_the_round_has_what_its_loss_calls_and_its_hyperparameters",
    ),
    Mutation(
        "consistency.py",
        "agreement",
        "x_t, t, x_s, s, cond, _ = points",
        "x_s, s, x_t, t, cond, _ = points",
        "test_consistency.py::test_a_stored_step_is_the_teachers",
    ),
    Mutation(
        "reflow.py",
        "reflow_loss",
        "pairs.noise - pairs.x0",
        "pairs.x0 - pairs.noise",
        "test_reflow.py::test_the_right_velocity_leads_from_noise_to_data_in_one_euler_step_of_diffusers",
    ),
    Mutation(
        "reflow.py",
        "reflow_loss",
        "diffuse(student.schedule, pairs.x0, pairs.noise, t)",
        "diffuse(student.schedule, pairs.x0, batch.draw.normal(pairs.x0), t)",
        "test_reflow.py::test_each_sample_is_on_the_straight_line_between_its_own_noise_and_data",
    ),
    Mutation(
        "reflow.py",
        "distillation_loss",
        "batch.draw.step < perceptual_after",
        "batch.draw.step <= perceptual_after",
        "test_reflow.py::test_the_perceptual_distance_takes_over_at_its_step",
    ),
    Mutation(
        "reflow.py",
        "distillation_loss",
        "torch.ones_like(pairs.noise.flatten(1)[:, 0])",
        "0.999 * torch.ones_like(pairs.noise.flatten(1)[:, 0])",
        "test_reflow.py::test_the_distilled_step_starts_at_pure_noise_and_is_squared",
    ),
    Mutation(
        "instaflow.py",
        "InstaFlow.rounds",
        "distillation(self.ema_decay, straightened, self.perceptual_after)",
        "distillation(self.ema_decay, straightened, None)",
        "test_reflow.py::test_the_distillation_round_has_what_its_loss_calls",
    ),
    Mutation(
        "trajectory_consistency.py",
        "trajectory_loss",
        "(u - clean) * batch.draw.uniform()",
        "(t - clean) * batch.draw.uniform()",
        "test_trajectory_consistency.py::test_s_is_never_above_u_nor_u_at_t",
    ),
    Mutation(
        "trajectory_consistency.py",
        "trajectory_loss",
        "batch.draw.uniform()",
        "batch.draw.uniform()[0]",
        "test_trajectory_consistency.py::test_each_sample_has_its_own_s",
    ),
    Mutation(
        "trajectory_consistency.py",
        "trajectory_loss",
        'trajectory_function(nets["target"], x_u, u, s, cond)',
        'trajectory_function(nets["target"], x_u, u, clean + (u - clean) * batch.draw.uniform(), cond)',
        "test_trajectory_consistency.py::test_s_is_uniform_from_clean_data_to_u_and_the_same_for_both",
    ),
    Mutation(
        "trajectory_consistency.py",
        "trajectory_loss",
        'trajectory_function(nets["target"], x_u, u, s, cond)',
        'trajectory_function(nets["student"], x_u, u, s, cond)',
        "test_trajectory_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "trajectory_consistency.py",
        "trajectory_function",
        "net(x_t, t, cond)",
        "net(x_t, s, cond)",
        "test_trajectory_consistency.py::test_the_trajectory_function_is_what_the_inference_scheduler_noises_again",
    ),
    Mutation(
        "distribution_matching.py",
        "matching_gradient",
        "expand(l1(x0, real), x0)",
        "l1(x0, real).mean()",
        "test_distribution_matching.py::test_each_samples_gradient_is_its_own",
    ),
    Mutation(
        "distribution_matching.py",
        "matching_gradient",
        "fake(x_t, t, rows.cond).x0 - real",
        "real - fake(x_t, t, rows.cond).x0",
        "test_distribution_matching.py::test_descent_leads_from_the_fake_to_the_real",
    ),
    Mutation(
        "distribution_matching.py",
        "matching_gradient",
        "((fake(x_t, t, rows.cond).x0 - real) / norm).nan_to_num(0.0, 0.0, 0.0)",
        "(fake(x_t, t, rows.cond).x0 - real) / norm",
        "test_distribution_matching.py::test_a_sample_that_is_the_teachers_own_answer_gets_no_gradient_rather_than_nan",
    ),
    Mutation(
        "distribution_matching.py",
        "fake_score_loss",
        "target(fake.prediction, fake.schedule, Estimate(sample.x0, eps), t)",
        "sample.x0",
        "test_distribution_matching.py::test_the_fake_score_denoises_the_students_samples_in_its_own_prediction",
    ),
    Mutation(
        "distribution_matching.py",
        "fake_score_loss",
        "softplus(generated).mean() + softplus(-real).mean()",
        "softplus(-generated).mean() + softplus(real).mean()",
        "test_distribution_matching.py::test_the_head_and_the_features_beneath_it_learn_to_tell_real_from_generated",
    ),
    Mutation(
        "distribution_matching.py",
        "noised",
        "draw.uniform()",
        "draw.uniform(0.02, 0.98)",
        "test_distribution_matching.py::test_the_fake_score_sees_every_time",
    ),
    Mutation(
        "distribution_matching.py",
        "noised",
        "diffuse(fake.schedule, x0, eps, t)",
        "x0",
        "test_distribution_matching.py::test_the_head_and_the_features_beneath_it_learn_to_tell_real_from_generated",
    ),
    Mutation(
        "distribution_matching.py",
        "rollout",
        "x_t = draw.normal(rows.blank)",
        "x_t = rows.blank",
        "test_distribution_matching.py::test_the_student_takes_its_one_step_from_pure_noise",
    ),
    Mutation(
        "distribution_matching.py",
        "rollout",
        "draw.integer(0, student_steps)",
        "draw.integer(0, student_steps) // 2",
        "test_distribution_matching.py::test_every_stop_is_as_likely_and_the_same_for_all_ranks",
    ),
    Mutation(
        "distribution_matching.py",
        "rollout",
        "draw.integer(0, student_steps)",
        "int(draw.integers(0, student_steps)[0])",
        "test_distribution_matching.py::test_every_stop_is_as_likely_and_the_same_for_all_ranks",
    ),
    Mutation(
        "distribution_matching.py",
        "rollout",
        "diffuse(student.schedule, x0, draw.normal(x0), s)",
        "diffuse(student.schedule, x0, draw.normal(x0), t)",
        "test_distribution_matching.py::test_a_sample_of_several_steps_is_one_that_the_student_meets_on_its_own_way",
    ),
    Mutation(
        "distribution_matching.py",
        "rollout",
        "diffuse(student.schedule, x0, draw.normal(x0), s)",
        "diffuse(student.schedule, rows.blank, draw.normal(x0), s)",
        "test_distribution_matching.py::test_a_sample_of_several_steps_is_one_that_the_student_meets_on_its_own_way",
    ),
    Mutation(
        "distribution_matching.py",
        "student_loss",
        "torch.nn.functional.softplus(-judged)",
        "torch.nn.functional.softplus(judged)",
        "test_distribution_matching.py::test_dmd2_asks_how_real_the_students_samples_look_to_the_fake_score_under_noise",
    ),
    Mutation(
        "distribution_matching.py",
        "student_loss",
        "student(batch['rollout'].x_t, batch['rollout'].t, prompts.cond).x0",
        "batch['rollout'].x0.requires_grad_()",
        "test_distribution_matching.py::test_gradients_reach_the_last_step_alone",
    ),
    Mutation(
        "discriminator.py",
        "answer_and_logits",
        "network.head(middle)",
        "network.head(middle.detach())",
        "test_distribution_matching.py::test_the_features_beneath_the_head_learn_too",
    ),
    Mutation(
        "schedules.py",
        "sampled_times",
        "(steps * grid / num_steps).floor() / grid",
        "steps / num_steps",
        "test_distribution_matching.py::test_the_student_is_asked_at_the_times_that_it_is_sampled_at",
    ),
    Mutation(
        "diffusion.py",
        "guided",
        "scale == 1 and not teacher.has_guidance_input",
        "False",
        "test_diffusion.py::test_a_teacher_that_is_not_guided_is_asked_once",
    ),
    Mutation(
        "schedules.py",
        "least_noise",
        "max(sigma_min, (schedule.sigma(first) / schedule.alpha(first)).item())",
        "sigma_min",
        "test_consistency.py::test_no_point_has_less_noise_than_the_network_is_told_of",
    ),
    Mutation(
        "feature_discriminator.py",
        "hinge_loss",
        "torch.autograd.grad([logits.mean(1).sum() for logits in reals], maps, create_graph=True)",
        "torch.autograd.grad([logits.mean(1).sum() for logits in reals], maps)",
        "test_adversarial.py::test_r1_makes_the_heads_less_steep",
    ),
    Mutation(
        "feature_discriminator.py",
        "hinge_loss",
        "[logits.mean(1).sum() for logits in reals]",
        "[logits.mean() for logits in reals]",
        "test_adversarial.py::test_r1_of_the_real_heads_is_that_of_each_sample_alone_in_float64",
    ),
    Mutation(
        "feature_discriminator.py",
        "hinge_loss",
        "1 - logits",
        "-logits",
        "test_adversarial.py::test_the_hinge_on_logits_made_up",
    ),
    Mutation(
        "feature_discriminator.py",
        "fooling_loss",
        "image_features(nets, real.x0)",
        "image_features(nets, generated)",
        "test_adversarial.py::test_both_sides_are_judged_for_the_condition_and_the_image_of_the_real_sample",
    ),
    Mutation(
        "adversarial.py",
        "distill_scale",
        "alpha * sigma / 2",
        "alpha * sigma",
        "test_adversarial.py::test_the_gradient_of_the_distillation",
    ),
    Mutation(
        "adversarial.py",
        "rollout",
        "torch.where(expand(step == 0, eps), eps, diffuse(student.schedule, rows.x0, eps, t))",
        "diffuse(student.schedule, rows.x0, eps, t)",
        "test_adversarial.py::test_the_student_starts_from_noised_data_with_each_time_as_likely",
    ),
    Mutation(
        "adversarial.py",
        "rollout",
        "draw.integers(0, student_steps)",
        "draw.integers(0, student_steps - 1)",
        "test_adversarial.py::test_the_student_is_trained_at_the_times_that_it_is_sampled_at",
    ),
    Mutation(
        "feature_discriminator.py",
        "pooled",
        '{"mask", "size", "aspect", *(["prompt"] if "pooled" in cond else [])}',
        '{"mask"}',
        "test_adversarial.py::test_the_discriminator_is_told_what_to_show_and_not_how_large_it_is",
    ),
    Mutation(
        "feature_discriminator.py",
        "_mean",
        "weights.sum(1)",
        "tokens.shape[1]",
        "test_adversarial.py::test_tokens_that_do_not_count_are_left_out",
    ),
    Mutation(
        "adversarial.py",
        "student_loss",
        "l2(decode(x0), decode(target))",
        "l2(x0, target)",
        "test_adversarial.py::test_the_distance_is_one_of_pixels",
    ),
    Mutation(
        "adversarial.py",
        "teachers_view",
        "is_clean * unconditional + guidance_scale * (conditional - unconditional)",
        "unconditional + guidance_scale * (conditional - unconditional)",
        "test_adversarial.py::test_the_gradient_of_the_distillation",
    ),
)


def mutate(mutation: Mutation, source: str) -> str:
    """The source with the mutation in it. Raises ValueError where its place is not there, or not the only one."""
    tree = ast.parse(source)
    right, wrong = parse(mutation.right), parse(mutation.wrong)
    within = _definition(tree, mutation)
    nodes = [node for node in ast.walk(within) if _text(node) == _text(right)]
    if len(nodes) != 1:
        close = _nearest(ast.unparse(right), (ast.unparse(n) for n in ast.walk(within) if isinstance(n, _kind(right))))
        raise ValueError(f"{_name(mutation)}: there {len(nodes)} times, not once; nearest: {close}")
    return ast.unparse(_Replace(nodes[0], wrong).visit(tree))


def parse(code: str) -> ast.expr | ast.stmt:
    """An expression, or else one statement."""
    (statement,) = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every function and class of a module, at any depth, by its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")


def _definition(tree: ast.Module, mutation: Mutation) -> ast.AST:
    by_name = {"": tree, **dict(definitions(tree))}
    if mutation.definition not in by_name:
        raise ValueError(f"{_name(mutation)}: no such definition; nearest: {_nearest(mutation.definition, by_name)}")
    return by_name[mutation.definition]


class _Replace(ast.NodeTransformer):
    def __init__(self, right: ast.AST, wrong: ast.AST) -> None:
        self.right, self.wrong = right, wrong

    def visit(self, node: ast.AST) -> ast.AST:
        return self.wrong if node is self.right else self.generic_visit(node)


def _text(node: ast.AST) -> str:
    return ast.dump(node)  # without line numbers


def _kind(node: ast.AST) -> type[ast.AST]:
    return ast.stmt if isinstance(node, ast.stmt) else ast.expr


def _name(mutation: Mutation) -> str:
    return f"{mutation.file}, {mutation.definition or 'module'}: {mutation.right!r} -> {mutation.wrong!r}"


def _nearest(text: str, others: Iterable[str]) -> str:
    return "; ".join(difflib.get_close_matches(text, dict.fromkeys(others), n=3, cutoff=0.0))


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from changed source."""

    def __init__(self, mutation: Mutation) -> None:
        self.file, self.name = METHODS / mutation.file, f"fewstep.methods.{Path(mutation.file).stem}"
        self.source = mutate(mutation, self.file.read_text())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """This module, and no other."""
        return importlib.util.spec_from_loader(fullname, self, origin=str(self.file)) if fullname == self.name else None

    def get_filename(self, fullname: str) -> str:
        """Where it would be."""
        return str(self.file)

    def get_data(self, path: str | bytes) -> bytes:
        """The changed source; there is no bytecode of it."""
        if not str(path).endswith(".py"):
            raise OSError("no bytecode")
        return self.source.encode()


FAILED_TO_RUN = 70


def is_noticed(mutation: Mutation) -> bool:
    """Run the mutation's test in a process of its own, forked so that torch is imported once for all."""
    child = os.fork()
    if child == 0:
        code = FAILED_TO_RUN
        try:
            code = _run(mutation)
        finally:  # whatever happens, a child never goes on as its parent would
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 1  # pytest's code for failed tests; a wrong id is 4


def _run(mutation: Mutation) -> int:
    import pytest

    sys.meta_path.insert(0, Mutated(mutation))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    return pytest.main(["-x", "-p", "no:cacheprovider", str(ROOT / "tests/methods" / mutation.test)])


def import_all_but_ours() -> None:
    """Import what tests import, once for all; our own modules each child imports anew, one of them changed."""
    import pytest  # noqa: F401
    import ray  # noqa: F401

    from tests.support import data_sets, tiny  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] in ("fewstep", "tests")]:
        del sys.modules[name]


def main() -> None:
    """Try all, one per core at a time."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import_all_but_ours()
    for mutation in MUTATIONS:
        Mutated(mutation)  # which says where one is no longer to be found
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        unnoticed = [m for m, noticed in zip(MUTATIONS, pool.map(is_noticed, MUTATIONS), strict=True) if not noticed]
    for mutation in unnoticed:
        print(f"{_name(mutation)} goes unnoticed by {mutation.test}")
    print(f"{len(MUTATIONS) - len(unnoticed)} of {len(MUTATIONS)} wrong variants were noticed")
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
