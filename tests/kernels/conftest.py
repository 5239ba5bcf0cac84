"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_checks import GPU


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody writes is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=GPU)  # which also fills new memory with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)
