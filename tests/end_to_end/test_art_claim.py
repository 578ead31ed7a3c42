"""The paper's claim at the smallest size: the maps of an ART network withstand an attack that moves a natural one's."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = (
    "--config.train.evaluate_every_epochs=0",
    "--config.evaluation.after_training=('accuracy','attribution')",
    "--config.evaluation.attribution.examples=100",
    "--config.evaluation.attribution.num_steps=20",
    "--config.evaluation.attribution.step_size=0.02",
    "--config.evaluation.attribution.sweep=()",
)


def trained(variant, workdir):
    """Train on the digits as the demo does, attack 100 images in 20 steps, and return the measures."""
    command = [sys.executable, "launch/run.py", f"--config=configs/art_digits.py:variant={variant}", *FLAGS]
    cache = str(ROOT / ".pytest_cache" / "compiled")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": cache}
    subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, check=True, timeout=600)
    records = [
        json.loads((workdir / "evaluation" / f"{suite}.json").read_text()) for suite in ("accuracy", "attribution")
    ]
    return {name: metric["value"] for record in records for name, metric in record["metrics"].items()}


def test_attributions_of_a_natural_network_lie_below_those_of_art(tmp_path):
    natural, art = (trained(variant, tmp_path / variant) for variant in ("natural", "art"))
    # One seed, whose margin in K is a matter of rounding: 5.5 points with jax 0.10, 1.4 with 0.12. Over seeds 0, 1, 2
    # with jax 0.12 it is 1.4, -0.5 and 0.7, that in IN 4.1, 1.1 and 0.1: on these digits the effect is small.
    assert art["IN"] > natural["IN"] + 0.02
    assert art["K"] > natural["K"]
    assert art["accuracy"] > natural["accuracy"] - 0.03
