"""A config file of a network so small that a run takes a second, and what an interrupted run is compared by."""

import textwrap

import command
import jax
import numpy as np
import pytest

from jrobust.training import checkpoint


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    """A config on the digits with the words method=plain|jtt, width= and study."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(
        textwrap.dedent(
            """
            from configs import common

            def get_config(argument=""):
                args = common.arguments(argument, method="plain", width="4", study=False)
                config = common.base()
                config.data.name = "digits"
                config.model = {"name": "mlp", "depth": 1, "width": int(args["width"]), "dtype": "float32"}
                config.model.update({"weights": "", "mean": (0.0,), "std": (1.0,)})
                config.method = {"name": "standard"}
                if args["method"] == "jtt":
                    config.jtt = {"epochs": 0.4, "copies": 3, "count": "total", "error_set": "eval_pass"}
                config.train.update({"batch_size": 128, "steps": 4, "log_every_steps": 2, "evaluate_examples": 64})
                config.train.evaluate_every_epochs = 0.0
                config.checkpoint.every_steps = 2
                config.evaluation.batch_size = 512
                if args["study"]:
                    config.study = {"rows": ("width=4", "width=5"), "seeds": (0, 1)}
                return config
            """
        )
    )
    return path


@pytest.fixture(scope="session")
def read(config_file):
    """Return the config with these words and overrides."""

    def read(words="", *overrides):
        return command.read_config(f"{config_file}:{words}" if words else str(config_file), overrides)

    return read


@pytest.fixture
def trained():
    """Return what a run has trained and logged, to the bit."""

    def trained(workdir):
        variables, step = checkpoint.restore_variables(workdir)
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)]
        return step, leaves, (workdir / "metrics.jsonl").read_bytes()

    return trained
