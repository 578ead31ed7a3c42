"""A config file of a network so small that a run takes a second, and what an interrupted run is compared by."""

import json
import textwrap

import command
import jax
import numpy as np
import pytest
import session

from jrobust.training import checkpoint

# Of a run by the width of its network and its seed.
ACCURACIES = {
    **{("4", 0): 0.25, ("4", 1): 0.75, ("5", 0): 0.5, ("5", 1): 0.625},
    **{("6", 0): 0.375, ("6", 1): 0.375, ("7", 0): 0.5, ("7", 1): 1.0},
}


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


@pytest.fixture
def runs(monkeypatch):
    """Runs of which nothing is trained; their folders, in the order in which they began."""
    begun = []

    def run_one(config, workdir, *, progress):
        begun.append(workdir.name)
        print("what a run says")
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config.to_json())
        of = session.config_hash(workdir)
        value = ACCURACIES[str(config.model.width), config.seed]
        record = {"suite": "accuracy", "config_hash": of, "metrics": {"accuracy": {"value": value}}}
        (workdir / "evaluation" / "accuracy.json").write_text(json.dumps(record))
        (workdir / session.FINISHED).write_text(json.dumps({"config_hash": of, "step": 4, "failures": []}))
        return session.Outcome([])

    monkeypatch.setattr(session, "run_one", run_one)
    return begun
