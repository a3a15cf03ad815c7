from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.models import embedded_tokenizer

settings.register_profile("engine", deadline=None, derandomize=True, max_examples=40, print_blob=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return embedded_tokenizer()
