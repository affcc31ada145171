"""A given model is not asked to read more than it was made for."""

import json

import pytest

from rlhf.errors import ConfigError
from rlhf.planning.context import require_context
from rlhf.schema import ModelConfig


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"max_position_embeddings": 1023}, True),
        ({"max_position_embeddings": 1023, "rope_parameters": {"rope_type": "default"}}, True),
        ({"max_position_embeddings": 1024}, False),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, False),
        ({}, False),  # positions without end
    ],
)
def test_texts_longer_than_a_given_model_reads_are_refused_with_the_setting_that_fits(tmp_path, config, refused):
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelConfig(path=str(tmp_path), max_length=1024)
    if not refused:
        require_context(model)
        return
    with pytest.raises(ConfigError, match=r"max_length is 1024, and .* reads 1023 tokens") as caught:
        require_context(model)
    assert caught.value.hints == ("model.max_length=1023",)


@pytest.mark.parametrize("path", [None, "someone/a-model-on-the-hub"])
def test_what_is_not_here_yet_is_not_looked_at(path):
    require_context(ModelConfig(path=path, max_length=1024))
