from __future__ import annotations

import pytest
from tests.recipes import built


@pytest.fixture
def model(tmp_path):
    return built.tiny(tmp_path)
