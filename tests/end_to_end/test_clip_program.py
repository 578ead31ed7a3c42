"""The compiled steps of fine-tuning a CLIP: what they cost, and that they hold no text tower."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jrobust import methods
from jrobust.models import zoo
from jrobust.training import state as train_states
from jrobust.training.step import make_train_step
from tests.end_to_end.test_program import equations, flops

# No two sizes are the same, so that a shape says what an array is: 5 images of 17 tokens, 4 texts.
SIZES = {"embed_dim": 24, "image_size": 32, "image_width": 128, "image_layers": 2, "patch": 8}
TEXT = {"text_width": 48, "text_layers": 1, "vocabulary": 23, "context": 7, "image_heads": 2, "text_heads": 2}
B, CLASSES, SHAPE = 5, 4, (32, 32, 3)
SECTIONS = {
    "standard": {},
    "adversarial": {"eps": "1/255", "step_size": "1/255", "num_steps": 2},
    "pmg_aft": {"eps": "1/255", "step_size": "1/255", "num_steps": 2},
}


def make(name, *, sizes=SIZES, shape=SHAPE, prompts=None, **fields):
    model = zoo.build(
        {"name": "clip", "sizes": sizes | TEXT, "prompts": prompts}, num_classes=CLASSES, input_shape=shape
    )
    return methods.build({"name": name} | SECTIONS[name] | fields, model)


def shapes(method, tx):
    """A train state and a batch, of shapes alone."""
    start = jax.eval_shape(lambda key: train_states.create(method.init(key, {}), tx), jax.random.key(0))
    labels = jax.ShapeDtypeStruct((B,), jnp.int32)
    images = jax.ShapeDtypeStruct((B, *method.classifier.input_shape), jnp.float32)
    return start, {"image": images, "label": labels, "index": labels}


def step_of(method, tx):
    return make_train_step(method, tx, lambda batch, resident, key: batch)


@pytest.fixture(scope="module")
def cost():
    """FLOPs in forward passes of the image tower; programs are lowered on shapes, not compiled or run."""
    tx, key = optax.sgd(0.1, momentum=0.9), jax.eval_shape(lambda: jax.random.key(0))
    found = {}
    for name, method in {name: make(name) for name in SECTIONS}.items():
        start, batch = shapes(method, tx)
        model = method.classifier
        forward = flops(
            lambda p, s, x, model=model: model.apply(p, s, x).logits, start.params, start.state, batch["image"]
        )
        found[name] = flops(step_of(method, tx), start, batch, (), key) / forward
    return found


@pytest.mark.parametrize(("name", "expected"), {"standard": 3, "adversarial": 7, "pmg_aft": 11}.items())
def test_cost_in_forward_passes(cost, name, expected):
    assert cost[name] == pytest.approx(expected, rel=0.05)


def test_linear_probing_costs_a_forward_pass_and_remembers_nothing_of_the_tower():
    model = zoo.build({"name": "clip", "sizes": SIZES | TEXT, "head": "linear"}, num_classes=CLASSES, input_shape=SHAPE)
    method, tx = methods.build({"name": "linear_probe"}, model), optax.adamw(0.1)
    start, batch = shapes(method, tx)
    whole = method.deployed(start.variables)
    forward = flops(lambda p, s, x: model.apply(p, s, x).logits, *whole, batch["image"])
    step = flops(step_of(method, tx), start, batch, (), jax.eval_shape(lambda: jax.random.key(0)))
    assert step == pytest.approx(forward, rel=0.01)
    count, head = train_states.count_parameters, (SIZES["embed_dim"] + 1) * CLASSES
    assert count(start.params) == head and count(start.opt_state) == 2 * head + 1  # and the number of the step


@pytest.mark.parametrize("name", SECTIONS)
def test_weights_are_differentiated_once_and_never_inside_an_attack(name):
    """Every product of matrices has the images first, of one branch or of two, but for gradients in weights."""
    method, key = make(name), jax.eval_shape(lambda: jax.random.key(0))
    start, batch = shapes(method, optax.sgd(0.1))

    def weight_gradients(function):
        program = jax.make_jaxpr(function)(start.params, start.state, batch, key).jaxpr
        found = [e.outvars[0].aval.shape for e in equations(program) if e.primitive.name == "dot_general"]
        assert len(found) > 16  # the search goes deep enough to see the blocks
        return sum(shape[0] not in (B, 2 * B) for shape in found)

    loss = lambda *arguments: method.loss(*arguments)[0]
    assert weight_gradients(loss) == 0
    assert weight_gradients(jax.grad(loss)) == 2 * (4 + 2) + 2  # attention and MLP of each block, patches, projection


@pytest.mark.parametrize("prompts", [None, {"pixels": "border", "width": 2, "tokens": 6}])
def test_the_state_holds_the_original_once_and_no_text_tower(prompts):
    method = make("pmg_aft", prompts=prompts)
    tower = jax.eval_shape(method.classifier.clip.init, jax.random.key(0))["image"]
    start, _ = shapes(method, optax.sgd(0.1, momentum=0.9))
    count = train_states.count_parameters
    assert count(start.state) == count(tower) + CLASSES * SIZES["embed_dim"] + 1
    trained = tower if prompts is None else jax.eval_shape(method.init, jax.random.key(0), {}).params
    assert count(start.params) == count(start.opt_state) == count(trained)
    deployed = jax.eval_shape(lambda v: method.deployed(v), start.variables)
    assert count(deployed.state) == count(start.state) - (count(tower) if prompts is None else 0)
