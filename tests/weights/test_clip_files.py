import re

import pytest

from jrobust.errors import InputError
from jrobust.models.clip import ARCHITECTURES
from jrobust.weights.clip_files import PUBLISHED, missing, published


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_error_says_where_the_file_is_and_what_is_read(architecture):
    known = PUBLISHED[architecture]
    assert re.fullmatch("[0-9a-f]{64}", known.sha256) and published(known.sha256) == f"OpenAI's {known.file}"
    for path, found in (("", "is not set"), ("clip.pt", "is 'clip.pt', which is no file")):
        error = missing(architecture, path)
        text = str(error)
        assert (
            isinstance(error, InputError) and "\n" not in text and text.startswith(f"model.weights {found}: expected")
        )
        for part in (architecture, f"{known.sha256}/{known.file}", "model.activation", ".safetensors"):
            assert part in text
        assert (known.hugging_face in text) and ("Hugging Face on" not in text)
        assert ("or one for open_clip's" in text) == bool(known.open_clip)
        assert ("'gelu' for those trained on LAION" in text) == (architecture in ("ViT-B/32", "ViT-B/16", "ViT-L/14"))
    assert len({entry.sha256 for entry in PUBLISHED.values()}) == len(PUBLISHED) == len(ARCHITECTURES)


def test_only_the_smallest_vits_weights_of_laion_400m_are_quick():
    assert "LAION-2B, DataComp or CommonPool, 'quick_gelu' for LAION-400M" in str(missing("ViT-B/32"))
    assert "'gelu' for those trained on LAION, DataComp" in str(missing("ViT-B/16"))


def test_a_model_that_nobody_publishes():
    assert "of model.sizes, image and text tower, as .pt" in str(missing("", "a.pt"))
    assert "http" not in str(missing(""))
