"""Metrics."""

from __future__ import annotations

import torch

from fewstep.methods.losses import l1, l2, pseudo_huber

A = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
B = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))


def test_pseudo_huber_is_quadratic_within_c_and_linear_beyond() -> None:
    torch.testing.assert_close(pseudo_huber(A, A + 1e-3, c=1.0), torch.full((5,), 5e-7), atol=1e-7, rtol=0)
    torch.testing.assert_close(pseudo_huber(A, B, c=1e-6), l1(A, B), atol=1e-5, rtol=0)


def test_metrics_are_one_number_per_sample() -> None:
    changed = torch.cat([A[:1] + 1, A[1:]])
    for metric in (l1, l2, lambda a, b: pseudo_huber(a, b, c=0.1)):
        assert metric(changed, A)[0] > 0.5 and not metric(changed, A)[1:].any()
