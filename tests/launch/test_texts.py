"""A CLIP between its original and its fine-tuned weights."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from texts import ZeroShotModel

from jrobust.errors import InputError
from jrobust.evaluation import Subject
from jrobust.training.method import Variables


def model(state):
    original = {"proj": {"kernel": jnp.float32([1e8, 4])}}
    tuned = {"proj": {"kernel": jnp.float32([3, 8])}}
    subject = Subject("tuned", ["cat"], len, Variables(tuned, state))
    return ZeroShotModel(subject, types.SimpleNamespace(), lambda: original)


@pytest.mark.parametrize(("share", "kernel"), [(0.0, [1e8, 4]), (0.25, [75_000_000.75, 5]), (1.0, [3, 8])])
def test_shares_of_the_fine_tuned_tower(share, kernel):
    found = model({"text": 7.0}).interpolated(share)
    np.testing.assert_array_equal(found.variables.params["proj"]["kernel"], np.float32(kernel))
    assert found.variables.state == {"text": 7.0}
    np.testing.assert_array_equal(found.zero_shot.interpolated(0.0).variables.params["proj"]["kernel"], [1e8, 4])


def test_nothing_is_between_visual_prompts():
    with pytest.raises(InputError, match="trained visual prompts"):
        model({"tower": {}}).interpolated(0.5)


def test_a_linear_head_has_its_own_classes():
    with pytest.raises(InputError, match="linear head"):
        model({}).for_classes([["a dog"]])
