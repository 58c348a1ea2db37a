"""One wrong variant of the mathematics per trap, and the test that has to notice it.

python -m tests.mutations     # says which wrong variants went unnoticed, and fails if there is one
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    """Replace `right` by `wrong` in a file of methods/; `test` must fail then, and passes now."""

    file: str
    right: str
    wrong: str
    test: str  # pytest's id, below tests/methods


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "diffusion.py",
        "(sigma**2 * clean + alpha * (x_t - sigma * noise)) / norm**2",
        "(alpha**2 * clean + sigma**2 / alpha * (x_t - sigma * noise)) / norm**2",
        "test_diffusion.py::test_both_answers_count_as_much_as_they_are_well_conditioned",
    ),
    Mutation(
        "diffusion.py",
        "clean, noise = output.chunk(2, 1)",
        "noise, clean = output.chunk(2, 1)",
        "test_diffusion.py::test_in_pure_noise_the_answer_of_both_is_its_x0_alone",
    ),
    Mutation(
        "progressive.py",
        "for half in range(3))",
        "for half in (0, 2, 1))",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "step(schedule, believe(z_middle, middle), s)",
        "step(schedule, believe(z_middle, t), s)",
        "test_progressive.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "progressive.py",
        "z_s = step(schedule, believe(z_middle, middle), s)",
        "z_s = step(schedule, believe(z_t, t), s)",
        "test_progressive.py::test_a_student_whose_ddim_step_ends_where_two_of_its_teachers_end_is_right",
    ),
    Mutation(
        "progressive.py",
        "z_middle = step(schedule, believe(z_t, t), middle)",
        "z_middle = diffuse(schedule, x0, draw.normal(x0), middle)",
        "test_progressive.py::test_both_half_steps_see_the_same_noise",
    ),
    Mutation(
        "progressive.py",
        "half / (2 * steps)",
        "half / steps",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "draw.integers(1, steps + 1) / steps",
        "draw.integers(0, steps) / steps",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "draw.integers(1, steps + 1) / steps",
        "draw.integers(1, 2 * steps + 1) / (2 * steps)",
        "test_progressive.py::test_the_teacher_is_asked_at_the_students_times_and_then_half_a_step_on",
    ),
    Mutation(
        "progressive.py",
        "implied_x0(schedule, z_t, t, z_s, s)",
        "implied_x0(schedule, z_t, t, z_middle, middle)",
        "test_progressive.py::test_next_to_clean_data_the_student_has_to_believe_what_its_teacher_does_half_way",
    ),
    Mutation(
        "progressive.py",
        "(alpha_s - ratio * alpha_t)",
        "alpha_s",
        "test_progressive.py::test_one_step_of_the_implied_x0_ends_where_it_has_to",
    ),
    Mutation(
        "progressive.py",
        "(z_s - ratio * z_t) /",
        "z_s /",
        "test_progressive.py::test_one_step_of_the_implied_x0_ends_where_it_has_to",
    ),
    Mutation(
        "progressive.py",
        '"truncated_snr": ratio.clamp_min(1)',
        '"truncated_snr": ratio',
        "test_progressive.py::test_weights_turn_the_error_of_x0_into_that_of_eps_and_v",
    ),
    Mutation(
        "progressive.py",
        '"truncated_snr": ratio.clamp_min(1)',
        '"truncated_snr": ratio.clamp_max(1)',
        "test_progressive.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "progressive.py",
        '"snr_plus_one": ratio + 1',
        '"snr_plus_one": ratio',
        "test_progressive.py::test_at_zero_terminal_snr_the_weight_is_one",
    ),
    Mutation(
        "progressive.py",
        "(weight(weighting, schedule, t) * l2",
        "(weight(weighting, schedule, middle) * l2",
        "test_progressive.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "progressive.py",
        "torch.where(u > 1.5 / steps, 2, 1)",
        "2",
        "test_guided.py::test_a_stochastic_students_step_is_two_of_its_teachers_of_its_own_length",
    ),
    Mutation(
        "progressive.py",
        "with torch.no_grad():",
        "with torch.enable_grad():",
        "test_progressive.py::test_only_the_student_gets_gradients",
    ),
    Mutation(
        "progressive.py",
        "torch.full_like(t, guidance_scale)",
        "torch.full_like(t, guidance_scale + 1)",
        "test_progressive.py::test_the_first_teacher_alone_is_guided",
    ),
    Mutation(
        "progressive.py",
        "unguided = partial(loss, guidance_scale=1.0)",
        "unguided = partial(loss, guidance_scale=self.guidance_scale)",
        "test_progressive.py::test_the_first_teacher_alone_is_guided",
    ),
    Mutation(
        "progressive.py",
        "partial(loss, steps=steps)",
        "partial(loss, steps=2 * steps)",
        "test_progressive.py::test_each_round_has_its_own_number_of_steps_and_the_methods_weighting",
    ),
    Mutation(
        "progressive.py",
        "steps=self.teacher_steps // 2",
        "steps=self.teacher_steps",
        "test_progressive.py::test_each_round_has_its_own_number_of_steps_and_the_methods_weighting",
    ),
    Mutation(
        "progressive.py",
        "Trained(prediction=self.prediction)",
        "Trained()",
        "test_progressive.py::test_every_student_may_be_asked_for_another_prediction",
    ),
    Mutation(
        "progressive.py",
        'before = "previous" if rounds else "base"',
        'before = "base"',
        "test_contract.py::test_progressive_distillation_halves_until_the_student_is_reached",
    ),
    Mutation(
        "progressive.py",
        "rows.path[here, i + 2], rows.times[here, i + 2]",
        "rows.path[here, i + 1], rows.times[here, i + 1]",
        "test_progressive.py::test_from_a_stored_path_the_student_has_to_end_where_two_stored_steps_end",
    ),
    Mutation(
        "progressive.py",
        "i = 2 * batch.draw.integers(0, steps)",
        "i = batch.draw.integers(0, 2 * steps - 1)",
        "test_progressive.py::test_from_a_stored_path_the_student_has_to_end_where_two_stored_steps_end",
    ),
    Mutation(
        "progressive.py",
        "self.guidance_scale if 2 * steps == self.teacher_steps else 1.0",
        "self.guidance_scale",
        "test_progressive.py::test_stored_rounds_read_the_path_that_their_own_teacher_makes",
    ),
    Mutation(
        "guided.py",
        "rows.cond, rows.uncond, w).x0",
        "rows.cond, rows.uncond, w + 1).x0",
        "test_guided.py::test_before_training_the_loss_is_what_guidance_adds",
    ),
    Mutation(
        "guided.py",
        "rows.cond, rows.uncond, w).x0",
        "rows.uncond, rows.cond, w).x0",
        "test_guided.py::test_the_student_has_to_answer_as_the_guided_teacher",
    ),
    Mutation(
        "guided.py",
        "student(x_t, t, with_guidance(rows.cond, w))",
        "student(x_t, t, rows.cond)",
        "test_guided.py::test_one_network_answers_for_every_w_and_then_in_half_the_steps",
    ),
    Mutation(
        "guided.py",
        "student(x_t, t, with_guidance(rows.cond, w))",
        "student(x_t, t, with_guidance(rows.cond, w - 1))",
        "test_guided.py::test_times_are_continuous_and_w_is_drawn_for_each_sample",
    ),
    Mutation(
        "guided.py",
        "w = draw.uniform(*guidance_scale)",
        "w = draw.uniform(*guidance_scale)[:1].expand(len(t))",
        "test_guided.py::test_times_are_continuous_and_w_is_drawn_for_each_sample",
    ),
    Mutation(
        "guided.py",
        "w = draw.uniform(*guidance_scale)",
        "w = draw.uniform(*guidance_scale)[:1].expand(len(t))",
        "test_guided.py::test_the_loss_does_not_depend_on_how_the_batch_is_split",
    ),
    Mutation(
        "guided.py", "at(1 - draw.uniform())", "at(draw.uniform())", "test_guided.py::test_no_draw_of_the_time_is_nan"
    ),
    Mutation(
        "guided.py",
        "at(1 - draw.uniform())",
        "at(draw.integers(1, 51) / 50)",
        "test_guided.py::test_times_are_continuous_and_w_is_drawn_for_each_sample",
    ),
    Mutation(
        "guided.py",
        "(weight(weighting, student.schedule, t) * apart)",
        "apart",
        "test_guided.py::test_before_training_the_loss_is_what_guidance_adds",
    ),
    Mutation(
        "guided.py",
        "with torch.no_grad():",
        "with torch.enable_grad():",
        "test_guided.py::test_only_the_student_gets_gradients",
    ),
    Mutation(
        "guided.py",
        "return teacher(x_t, t, cond)",
        "return teacher(x_t, t, rows.cond)",
        "test_guided.py::test_one_w_per_sample_is_an_input_of_student_and_teacher_alike",
    ),
    Mutation(
        "guided.py",
        "return teacher(x_t, t, cond)",
        "return teacher(x_t, t, rows.cond)",
        "test_guided.py::test_the_halving_student_has_to_believe_what_its_teacher_does_for_the_same_w",
    ),
    Mutation(
        "guided.py",
        "return teacher(x_t, t, cond)",
        "return teacher(x_t, t, with_guidance(rows.cond, batch.draw.uniform(*guidance_scale)))",
        "test_guided.py::test_the_halving_student_has_to_believe_what_its_teacher_does_for_the_same_w",
    ),
    Mutation(
        "guided.py",
        "believe, rows.x0, cond, batch.draw",
        "believe, rows.x0, rows.cond, batch.draw",
        "test_guided.py::test_one_w_per_sample_is_an_input_of_student_and_teacher_alike",
    ),
    Mutation(
        "guided.py",
        "believe, rows.x0, cond, batch.draw, steps",
        "believe, rows.x0, cond, batch.draw, 2 * steps",
        "test_guided.py::test_halving_is_progressive_distillation_with_w_in_the_condition",
    ),
    Mutation(
        "guided.py",
        "self.lora_targets), guidance_input=True)",
        "self.lora_targets))",
        "test_guided.py::test_the_rounds_match_and_then_halve",
    ),
    Mutation(
        "guided.py",
        'replace(halved, start="previous", teacher="previous")',
        'replace(halved, start="previous")',
        "test_contract.py::test_guided_distillation_halves_what_it_matched",
    ),
    Mutation(
        "consistency.py",
        '(nets["target"], x_s, s,',
        '(nets["target"], x_t, t,',
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "(place, place + 1)",
        "(place + 1, place)",
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        'consistency_function(nets["student"], x_t, t,',
        'consistency_function(nets["student"], x_s, s,',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        'consistency_function(nets["target"], x_s',
        'consistency_function(nets["student"], x_s',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        " + SIGMA_DATA**2 * (ours - towards * edms) * x_t",
        "",
        "test_consistency.py::test_at_sigma_min_every_network_is_the_identity",
    ),
    Mutation(
        "consistency.py",
        "return towards * net(x_t, t, cond).x0 + SIGMA_DATA**2 * (ours - towards * edms) * x_t",
        "return net(x_t, t, cond).x0",
        "test_consistency.py::test_at_sigma_min_every_network_is_the_identity",
    ),
    Mutation(
        "consistency.py",
        "((sigma - sigma_min * alpha) ** 2 + (SIGMA_DATA",
        "(sigma**2 + (SIGMA_DATA",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "(ours - towards * edms)",
        "(ours - edms)",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "(ours - towards * edms)",
        "ours",
        "test_consistency.py::test_the_student_starts_as_the_teachers_denoiser",
    ),
    Mutation(
        "consistency.py",
        "(1 - sigma_min * alpha / sigma)",
        "(1 - sigma_min / sigma)",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "SIGMA_DATA = 0.5",
        "SIGMA_DATA = 1.0",
        "test_consistency.py::test_the_consistency_function_is_that_of_the_papers_sampler",
    ),
    Mutation(
        "consistency.py",
        "RHO = 7.0",
        "RHO = 5.0",
        "test_consistency.py::test_the_grid_is_that_of_the_papers_sampler_on_any_schedule",
    ),
    Mutation(
        "consistency.py",
        "place.double() / (grid - 1)",
        "place.double() / grid",
        "test_consistency.py::test_the_grid_is_that_of_the_papers_sampler_on_any_schedule",
    ),
    Mutation(
        "consistency.py",
        "draw.integers(0, grid - 1)",
        "draw.integers(0, grid)",
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "draw.integers(0, grid - 1)",
        "draw.integers(1, grid - 1)",
        "test_consistency.py::test_the_target_is_one_point_closer_to_clean_data",
    ),
    Mutation(
        "consistency.py",
        "slope = (first.eps + second.eps) / 2",
        "slope = first.eps",
        "test_consistency.py::test_the_teachers_step_is_of_second_order",
    ),
    Mutation(
        "consistency.py",
        "slope = (first.eps + second.eps) / 2",
        "slope = second.eps",
        "test_consistency.py::test_the_teachers_step_is_heuns_on_the_mixture",
    ),
    Mutation(
        "consistency.py",
        "believe(step(schedule, first, s), s)",
        "believe(step(schedule, first, s), t)",
        "test_consistency.py::test_the_teachers_step_is_heuns_on_the_mixture",
    ),
    Mutation(
        "consistency.py",
        "alpha_s / alpha_t * (x_t",
        "(x_t",
        "test_consistency.py::test_the_teachers_step_is_heuns_on_the_mixture",
    ),
    Mutation(
        "consistency.py",
        "x_s = heun_step(believe, schedule, x_t, t, s)",
        "x_s = diffuse(schedule, rows.x0, draw.normal(rows.x0), s)",
        "test_consistency.py::test_both_points_have_the_same_noise",
    ),
    Mutation(
        "consistency.py",
        "torch.full_like(time, guidance_scale)",
        "torch.full_like(time, guidance_scale + 1)",
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "with torch.no_grad():\n        end =",
        "with torch.enable_grad():\n        end =",
        "test_consistency.py::test_only_the_student_gets_gradients",
    ),
    Mutation(
        "consistency.py",
        '"l1": lambda: l1(found, end)',
        '"l1": lambda: l2(found, end)',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        "perceptual(nets, found, end)",
        'nets["perceptual"](found, end)',
        "test_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "consistency.py",
        '"target": Averaged(decay=self.ema_decay, is_target=True)',
        '"target": Averaged(decay=self.sampling_ema_decay, is_target=True)',
        "test_consistency.py::test_the_round_has_what_its_loss_calls_and_its_hyperparameters",
    ),
    Mutation(
        "consistency.py",
        'result="average"',
        'result="target"',
        "test_consistency.py::test_the_round_has_what_its_loss_calls_and_its_hyperparameters",
    ),
    Mutation(
        "consistency.py",
        "x_t, t, x_s, s, cond, _ = stored_neighbors",
        "x_s, s, x_t, t, cond, _ = stored_neighbors",
        "test_consistency.py::test_a_stored_step_is_the_teachers",
    ),
    Mutation(
        "reflow.py",
        "pairs.noise - pairs.x0).mean()",
        "pairs.x0 - pairs.noise).mean()",
        "test_reflow.py::test_the_right_velocity_leads_from_noise_to_data_in_one_euler_step_of_diffusers",
    ),
    Mutation(
        "reflow.py",
        "diffuse(student.schedule, pairs.x0, pairs.noise, t)",
        "diffuse(student.schedule, pairs.x0, batch.draw.normal(pairs.x0), t)",
        "test_reflow.py::test_each_sample_is_on_the_straight_line_between_its_own_noise_and_data",
    ),
    Mutation(
        "reflow.py",
        "batch.draw.step < lpips_after",
        "batch.draw.step <= lpips_after",
        "test_reflow.py::test_lpips_takes_over_at_its_step",
    ),
    Mutation(
        "reflow.py",
        "x0 = student(pairs.noise, torch.ones_like(pairs.noise.flatten(1)[:, 0]), pairs.cond).x0",
        "x0 = student(pairs.noise, 0.999 * torch.ones_like(pairs.noise.flatten(1)[:, 0]), pairs.cond).x0",
        "test_reflow.py::test_the_distilled_step_starts_at_pure_noise_and_is_squared",
    ),
    Mutation(
        "instaflow.py",
        "distillation(self.ema_decay, straightened, self.lpips_after)",
        "distillation(self.ema_decay, straightened, None)",
        "test_reflow.py::test_the_distillation_round_has_what_its_loss_calls",
    ),
    Mutation(
        "trajectory_consistency.py",
        "(u - clean) * batch.draw.uniform()",
        "(t - clean) * batch.draw.uniform()",
        "test_trajectory_consistency.py::test_s_is_never_above_u_nor_u_at_t",
    ),
    Mutation(
        "trajectory_consistency.py",
        "s = clean + (u - clean) * batch.draw.uniform()",
        "s = clean + (u - clean) * batch.draw.uniform()[0]",
        "test_trajectory_consistency.py::test_each_sample_has_its_own_s",
    ),
    Mutation(
        "trajectory_consistency.py",
        '(nets["target"], x_u, u, s, cond)',
        '(nets["target"], x_u, u, clean + (u - clean) * batch.draw.uniform(), cond)',
        "test_trajectory_consistency.py::test_s_is_uniform_from_clean_data_to_u_and_the_same_for_both",
    ),
    Mutation(
        "trajectory_consistency.py",
        '(nets["target"], x_u, u, s, cond)',
        '(nets["student"], x_u, u, s, cond)',
        "test_trajectory_consistency.py::test_the_loss_is_that_of_the_paper",
    ),
    Mutation(
        "trajectory_consistency.py",
        "return step(net.schedule, net(x_t, t, cond), s)",
        "return step(net.schedule, net(x_t, s, cond), s)",
        "test_trajectory_consistency.py::test_the_trajectory_function_is_what_the_inference_scheduler_noises_again",
    ),
    Mutation(
        "distribution_matching.py",
        "norm = expand(l1(x0, real), x0)",
        "norm = l1(x0, real).mean()",
        "test_distribution_matching.py::test_each_samples_gradient_is_its_own",
    ),
    Mutation(
        "distribution_matching.py",
        "(fake(x_t, t, rows.cond).x0 - real)",
        "(real - fake(x_t, t, rows.cond).x0)",
        "test_distribution_matching.py::test_descent_leads_from_the_fake_to_the_real",
    ),
    Mutation(
        "distribution_matching.py",
        ".nan_to_num(0.0, 0.0, 0.0)",
        "",
        "test_distribution_matching.py::test_a_sample_that_is_the_teachers_own_answer_gets_no_gradient_rather_than_nan",
    ),
    Mutation(
        "distribution_matching.py",
        'torch.no_grad():\n        x0 = generate(nets["student"], prompts, draw, student_steps)\n    t, eps',
        'torch.enable_grad():\n        x0 = generate(nets["student"], prompts, draw, student_steps)\n    t, eps',
        "test_distribution_matching.py::test_an_update_gives_gradients_to_its_own_network_alone",
    ),
    Mutation(
        "distribution_matching.py",
        "answers = (target(fake.prediction, fake.schedule, estimate, t) for estimate in (found, Estimate(x0, eps)))",
        "answers = (found.x0, x0)",
        "test_distribution_matching.py::test_the_fake_score_denoises_the_students_samples_in_its_own_prediction",
    ),
    Mutation(
        "distribution_matching.py",
        "    return student(x_t, schedule.at(left / student_steps)",
        "    return student(x_t, schedule.at(0.98 * left / student_steps)",
        "test_distribution_matching.py::test_the_student_takes_its_one_step_from_pure_noise",
    ),
    Mutation(
        "distribution_matching.py",
        "F.softplus(-logits(nets, x0, prompts.cond, draw))",
        "F.softplus(logits(nets, x0, prompts.cond, draw))",
        "test_distribution_matching.py::"
        "test_dmd2_asks_how_real_the_students_samples_look_to_the_fake_score_under_noise",
    ),
    Mutation(
        "distribution_matching.py",
        "draw.normal(x0), schedule.at((left - 1) / student_steps))",
        "draw.normal(x0), schedule.at(left / student_steps))",
        "test_distribution_matching.py::test_a_sample_of_several_steps_is_one_that_the_student_meets_on_its_own_way",
    ),
    Mutation(
        "distribution_matching.py",
        "noised = diffuse(schedule, x0, draw",
        "noised = diffuse(schedule, rows.blank, draw",
        "test_distribution_matching.py::test_a_sample_of_several_steps_is_one_that_the_student_meets_on_its_own_way",
    ),
    Mutation(
        "distribution_matching.py",
        "(draw.uniform() * number >= 1)",
        "(draw.uniform() * student_steps >= 1)",
        "test_distribution_matching.py::test_a_sample_of_several_steps_is_one_that_the_student_meets_on_its_own_way",
    ),
    Mutation(
        "distribution_matching.py",
        "    with torch.no_grad():\n        for number",
        "    with torch.enable_grad():\n        for number",
        "test_distribution_matching.py::test_gradients_reach_the_last_step_alone",
    ),
    Mutation(
        "discriminator.py",
        "x_t = diffuse(fake.schedule, x0, draw.normal(x0), t)",
        "x_t = x0",
        "test_distribution_matching.py::test_the_discriminator_and_the_features_beneath_it_learn_to_tell_real_from_generated",
    ),
    Mutation(
        "discriminator.py",
        "F.softplus(fake).mean() + F.softplus(-real).mean()",
        "F.softplus(-fake).mean() + F.softplus(real).mean()",
        "test_distribution_matching.py::test_the_discriminator_and_the_features_beneath_it_learn_to_tell_real_from_generated",
    ),
    Mutation(
        "discriminator.py",
        "schedule.at(draw.uniform())",
        "schedule.at(draw.uniform(0.02, 0.98))",
        "test_distribution_matching.py::test_the_discriminator_sees_samples_under_every_noise",
    ),
    Mutation(
        "adversarial.py",
        "torch.autograd.grad([logits.mean(1).sum() for logits in reals], maps, create_graph=True)",
        "torch.autograd.grad([logits.mean(1).sum() for logits in reals], maps)",
        "test_adversarial.py::test_r1_makes_the_heads_less_steep",
    ),
    Mutation(
        "adversarial.py",
        "[logits.mean(1).sum() for logits in reals]",
        "[logits.mean() for logits in reals]",
        "test_adversarial.py::test_r1_of_the_real_heads_is_that_of_each_sample_alone_in_float64",
    ),
    Mutation(
        "adversarial.py",
        "F.relu(1 - logits).mean() for",
        "F.relu(-logits).mean() for",
        "test_adversarial.py::test_the_hinge_on_logits_made_up",
    ),
    Mutation(
        "adversarial.py",
        "        image = look(nets, real.x0)[-1].mean((2, 3))",
        "        image = look(nets, generated)[-1].mean((2, 3))",
        "test_adversarial.py::test_both_sides_are_judged_for_the_condition_and_the_image_of_the_real_sample",
    ),
    Mutation(
        "adversarial.py",
        'alpha if weighting == "exponential" else alpha * sigma / 2',
        'alpha if weighting == "exponential" else alpha * sigma',
        "test_adversarial.py::test_the_gradient_of_the_distillation",
    ),
    Mutation(
        "adversarial.py",
        "draw.integers(1, student_steps + 1) / student_steps",
        "draw.integers(0, student_steps) / student_steps",
        "test_adversarial.py::test_the_student_is_trained_at_the_times_that_it_is_sampled_at",
    ),
    Mutation(
        "adversarial.py",
        "l2(decode(x0), decode(wanted))",
        "l2(x0, wanted)",
        "test_adversarial.py::test_the_distance_is_one_of_pixels",
    ),
    Mutation(
        "adversarial.py",
        "is_clean * alone + guidance_scale * (told - alone)",
        "alone + guidance_scale * (told - alone)",
        "test_adversarial.py::test_the_gradient_of_the_distillation",
    ),
)


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from changed source."""

    def __init__(self, mutation: Mutation) -> None:
        self.file, self.name = ROOT / "methods" / mutation.file, f"fewstep.methods.{Path(mutation.file).stem}"
        source = self.file.read_text()
        if source.count(mutation.right) != 1:
            raise ValueError(f"{mutation.file} holds {mutation.right!r} {source.count(mutation.right)} times, not once")
        self.source = source.replace(mutation.right, mutation.wrong)

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
    import tests.conftest  # noqa: F401

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
        print(f"{mutation.file}: {mutation.wrong!r} goes unnoticed by {mutation.test}")
    print(f"{len(MUTATIONS) - len(unnoticed)} of {len(MUTATIONS)} wrong variants were noticed")
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
