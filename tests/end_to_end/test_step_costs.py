"""No regressions by accident: what each method's compiled step costs is what the table beside this file says.

FLOPs to 3 %, in forward passes of the network; the compiler's temporaries at most 20 % above the table's. A change that
is meant is written into the table, and so into the commit that makes it, by

    STEP_COSTS=write python -m pytest tests/end_to_end/test_step_costs.py
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jrobust import methods
from tests.end_to_end.step_costs import CASES, STEPS, compile_step

TABLE = pathlib.Path(__file__).with_name("step_costs.json")
UPDATE = "STEP_COSTS=write python -m pytest tests/end_to_end/test_step_costs.py"
WRITE = os.environ.get("STEP_COSTS") == "write"
HOST = ("callback", "infeed", "outfeed", " send(", " recv(", "S(5)")  # the last: memory of the host
# In passes of the image tower or network forward: 3 are a loss with its gradient in weights, 2 with that in images.
BY_HAND = {
    "standard": 3,
    "adversarial": 2 * 2 + 3,
    "trades": 1 + 2 + 2 * 3,  # p(x), a step, and both images
    "mart": 2 + 2 * 3,
    "adversarial, FSR": 2 + 3,
    "art": 2 + 6 + 18 + 3,  # mask, a step, L_attr, L_ce
    "erm, BiasAdv": 2 * 3 + 2 * 2 + 3,  # two networks, a step through each, and the adversarial images
    "identification": 3,
    "jtt, BiasAdv": 3 + 2 * 2 + 3,  # one of the two is frozen
    "lff": 2 * 3,
    "lff, BiasAdv": 2 * 3 + 2 * 2 + 3,
    "pmg_aft": 2 * 2 + 2 * 3 + 1,  # and the frozen tower
    "linear_probe": 1,
    "masked_images": 3 + 3 + 1,  # x, x', the frozen tower on x'; relevance is the rest
}


@pytest.fixture(scope="module")
def table():
    found = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    yield found
    if WRITE:
        rows = (f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in CASES if name in found)
        TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


@pytest.mark.parametrize("name", CASES)
def test_costs_are_those_of_the_table(name, table):
    step = compile_step(name)
    if WRITE:
        table[name] = {"passes": round(step.passes, 3), "temporaries": step.temporaries}
    assert name in table, f"{name} is not in {TABLE.name}: {UPDATE}"
    then = table[name]
    word = "grew" if step.passes > then["passes"] else "fell"
    assert step.passes == pytest.approx(then["passes"], rel=0.03), (
        f"the FLOPs of a step of {name} {word} from {then['passes']} to {step.passes:.3f} forward passes; if that is"
        f" meant: {UPDATE}"
    )
    assert step.temporaries <= 1.2 * then["temporaries"], (
        f"the temporaries of a step of {name} grew from {then['temporaries']:,} to {step.temporaries:,} bytes; if"
        f" that is meant: {UPDATE}"
    )


@pytest.mark.parametrize("name", BY_HAND)
def test_flops_are_those_counted_by_hand(name, table):
    """Within a tenth: in passes, the rest is what is not a convolution or a product of matrices."""
    assert table[name]["passes"] == pytest.approx(BY_HAND[name], rel=0.1)


@pytest.mark.parametrize("name", CASES)
def test_one_program_that_leaves_the_host_alone_and_takes_its_state(name):
    step = compile_step(name)
    assert step.traces == 1
    text = step.compiled.as_text()
    assert not [word for word in HOST if word in text]
    state, *others = step.arguments
    aliased = step.compiled.memory_analysis().alias_size_in_bytes
    assert aliased >= sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with jax.transfer_guard("disallow"):
        for _ in range(3):  # a program compiled ahead raises where a state is not what it was compiled for
            before = state
            state, _ = step.compiled(state, *others)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert int(state.step) == 1 + 3


def test_every_method_is_here(table):
    assert {name.partition(",")[0] for name in CASES} == set(methods.METHODS)
    assert set(table) == set(CASES) and set(STEPS) <= set(CASES)


def test_a_call_of_the_host_would_be_seen():
    def double(x):
        return jax.pure_callback(lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    text = jax.jit(double).lower(jnp.ones(3)).compile().as_text()
    assert [word for word in HOST if word in text] == ["callback"]
