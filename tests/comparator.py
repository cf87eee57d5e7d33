"""The one way tests compare floating point: with float64, allowing twice the error of the plain operation."""

from __future__ import annotations

import torch


def assert_as_good_as_plain(*, actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """`actual` is at most twice as far from `exact` as `plain` is, in the largest and in the root mean square error.

    actual and plain have the same dtype: the op under test, and the same mathematics in plain torch operations; exact
    is float64, from the same inputs. All have one shape and must agree on which elements are NaN. There is no
    tolerance to tune: the plain operation sets it. One unit in the last place of the largest exact value is always
    granted, for inputs on which the plain operation happens to be exact.
    """
    assert exact.dtype == torch.float64, f"exact is {exact.dtype}, expected float64"
    assert actual.dtype == plain.dtype, f"actual is {actual.dtype} and plain {plain.dtype}"
    assert actual.shape == plain.shape == exact.shape, f"{actual.shape}, {plain.shape} and {exact.shape} differ"
    actual, plain, exact = actual.detach().cpu(), plain.detach().cpu(), exact.detach().cpu()
    missing = exact.isnan()
    assert torch.equal(actual.isnan(), missing), "actual and exact disagree on which elements are NaN"
    if missing.all():
        return
    found = (actual.double() - exact)[~missing].abs()
    allowed = (plain.double() - exact)[~missing].abs()
    unit = exact[~missing].abs().max() * torch.finfo(actual.dtype).eps
    for name, error, limit in (
        ("largest", found.max(), 2 * allowed.max()),
        ("rms", found.square().mean().sqrt(), 2 * allowed.square().mean().sqrt()),
    ):
        assert error <= max(limit, unit), f"{name} error {error:.3e} is above twice the plain operation's, {limit:.3e}"
