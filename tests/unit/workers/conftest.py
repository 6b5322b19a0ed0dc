from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of a model with a head of its own, and of one whose head is its embedding."""
    return make_checkpoint(tmp_path, "Qwen3ForCausalLM", tie_word_embeddings=request.param)
