"""Masked-image training in the trainer: what moves and what stays, devices, and what a config may say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust import methods
from jrobust.errors import InputError
from jrobust.methods.masked_images import MaskedImages
from jrobust.models.clip import CLIP, Sizes
from jrobust.models.clip.linear_head import LinearHead
from jrobust.models.clip.zero_shot import ZeroShot
from tests.methods.flat_clip import train, values
from tests.methods.patched_clip import CLASSES, batch, cells, model

B = 8


@pytest.fixture
def x64(rolled_loops):
    with jax.enable_x64(True):
        yield


def trained(mode="jit", devices=1, **fields):
    method = MaskedImages(model(), threshold=0.3, logit_weight=1.0, **fields)
    return train(method, [batch(B, seed) for seed in range(3)], optax.adamw(1e-2), mode, devices)


def test_the_student_leaves_what_is_frozen_and_devices_do_not_matter(x64):
    """Masks by relevance, without refilling, are no draw: four devices take the steps of one."""
    states, metrics = trained(refilling="none")
    first = values(states[0].state)
    assert set(first) == {"pretrained", "teacher"}
    jax.tree.map(np.testing.assert_array_equal, first["pretrained"], states[0].params["image"])
    for state in states:
        jax.tree.map(np.testing.assert_array_equal, values(state.state), first)
    for now, before in zip(jax.tree.leaves(states[-1].params), jax.tree.leaves(first["teacher"]), strict=True):
        assert np.abs(now - before).min() > 1e-8
    assert metrics[0]["feature_loss"] < 1e-15 < 1e-5 < metrics[1]["feature_loss"]
    (*_, state), others = trained("pmap", 4, refilling="none")
    for one, other in zip(metrics, others, strict=True):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-9)
    for a, b in zip(jax.tree.leaves(states[-1]), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


COLLECTIVES = ("all_gather", "ppermute", "psum", "all_to_all")


@pytest.mark.parametrize("refilling", ["single", "multi"])
@pytest.mark.parametrize(("groups", "sent"), [(8, set()), (4, set()), (2, {"all_gather"}), (1, {"all_gather"})])
def test_donors_do_not_depend_on_the_number_of_devices(refilling, groups, sent, x64):
    """Four devices make of a batch what one does; nothing is sent where each has whole groups."""
    rows, key = batch(16), jax.random.key(3)
    params, state = MaskedImages(model()).init(jax.random.key(0), {})
    of_device = jax.tree.map(lambda rows: rows.reshape(4, 4, *rows.shape[1:]), rows)

    def filled(axis, rows):
        method = MaskedImages(model(axis_name=axis), threshold=0.2, refilling=refilling, groups=groups)
        maps = method._forward(params, state, rows["image"], rows["label"])[1]
        return method._counterfactual(rows, maps, key)[0]

    one = np.asarray(filled(None, jax.tree.map(jnp.asarray, rows)))
    many = jax.pmap(lambda rows: filled("data", rows), "data")(of_device)
    np.testing.assert_array_equal(one, np.asarray(many).reshape(one.shape))
    donors = (cells(one)[:, None] == cells(rows["image"])).all(-1).argmax(1)
    place = np.arange(16)[:, None]
    assert ((donors != place).any(1)).sum() >= 8 and (donors * groups // 16 == place * groups // 16).all()

    program = jax.make_jaxpr(lambda rows: filled("data", rows), axis_env=[("data", 4)])
    text = str(program(jax.tree.map(lambda rows: rows[0], of_device)))
    assert {name for name in COLLECTIVES if name in text} == sent


VIT = CLIP(Sizes(8, 16, 64, 1, 8, text_width=64, text_layers=1, vocabulary=20, context=6))


SECTION = {"name": "masked_images"}


def test_a_config_section():
    method = methods.build(SECTION, model())
    assert method == MaskedImages(model())
    assert (method.masking, method.refilling, method.threshold, method.rate) == ("object", "single", 0.3, 0.5)
    assert (method.feature_weight, method.logit_weight, method.temperature, method.groups) == (30, 0, 10, 1)
    assert (method.logit_teacher, method.logit_images) == ("file", "clean")
    fields = {"masking": "context", "refilling": "multi", "threshold": 0.5, "rate": 0.75, "groups": 4}
    fields |= {"feature_weight": 1.0, "logit_weight": 2.0, "temperature": 1.0}
    assert methods.build(SECTION | fields, model()) == MaskedImages(model(), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"masking": "objects"}, "unknown method.masking 'objects'.*did you mean 'object'"),
        ({"refilling": "singel"}, "unknown method.refilling 'singel'.*did you mean 'single'"),
        ({"treshold": 0.3}, "unknown field of method 'masked_images' 'treshold'.*did you mean 'threshold'"),
        ({"rate": 1.5}, "method.rate is 1.5: expected a number of at most 1"),
        ({"rate": -0.5}, "method.rate is -0.5: expected a number of at least 0"),
        ({"threshold": 3.0}, "method.threshold is 3.0: expected a number of at most 1"),
        ({"threshold": -0.1}, "method.threshold is -0.1: expected a number of at least 0"),
        ({"feature_weight": -1.0}, "method.feature_weight is -1.0: expected a number of at least 0"),
        ({"logit_weight": -1.0}, "method.logit_weight is -1.0: expected a number of at least 0"),
        ({"logit_teacher": "pretraind"}, "unknown method.logit_teacher 'pretraind'.*did you mean 'pretrained'"),
        ({"logit_images": "mask"}, "unknown method.logit_images 'mask'.*did you mean 'masked'"),
        ({"temperature": 0.0}, "method.temperature is 0.0: expected a number above 0"),
        ({"groups": 0}, "method.groups is 0: expected a number above 0"),
    ],
)
def test_what_a_config_may_not_say(fields, message):
    with pytest.raises(InputError, match=message) as error:
        methods.build(SECTION | fields, model())
    assert "\n" not in str(error.value)


def test_other_networks():
    text = ZeroShot(VIT, CLASSES, (16, 16, 3))
    with pytest.raises(InputError, match=r"method 'masked_images' trains CLIP alone: .*model.head 'linear'"):
        methods.build(SECTION, text)
    sizes = Sizes(4, 32, 2, (1, 1, 1, 1), None, text_width=64, text_layers=1)
    resnet = LinearHead(CLIP(sizes), CLASSES, (32, 32, 3))
    with pytest.raises(InputError, match="ResNet tower has no attention blocks and patches: take a ViT"):
        methods.build(SECTION, resnet)
    with pytest.raises(InputError, match="ResNet tower has no attention"):
        methods.build(SECTION | {"feature_weight": 0.0, "logit_weight": 1.0, "logit_images": "masked"}, resnet)
    methods.build(SECTION | {"feature_weight": 0.0, "logit_weight": 1.0}, resnet)  # nothing is masked
    distilled = methods.build(SECTION | {"masking": "none"}, resnet)  # clean images alone
    assert set(jax.eval_shape(distilled.init, jax.random.key(0), {}).state) == {"batch_stats", "pretrained"}


def test_batches_that_do_not_fit(x64):
    rows = jax.tree.map(jnp.asarray, batch(6))
    for fields, message in (
        ({"groups": 4}, "a batch of 6 images is not 4 equal groups"),
        ({"groups": 6, "refilling": "multi"}, "expected at least 2, found 1"),
    ):
        method = MaskedImages(model(), masking="random", **fields)
        variables = method.init(jax.random.key(0), {})
        with pytest.raises(InputError, match=message):
            jax.eval_shape(method.loss, *variables, rows, jax.random.key(0))
