"""FSR on scikit-learn's handwritten digits: 8x8 scans that ship with a dependency, so nothing is downloaded.

    python launch/run.py --config=configs/fsr_digits.py:method=at,fsr

The words behind the colon are those of configs/fsr.py, but the network is always the small CNN of three blocks, the
module behind its last: method=at|trades|mart, `fsr`, the ablations; `runlocal` is a few steps for tests.

No published numbers: this is a demonstration that runs on a laptop.
"""

from configs import fsr


def get_config(argument: str = ""):
    """Return the config of one row, at full or test size."""
    args = fsr.arguments(argument)
    args["position"] = args["position"] or "block3"
    config = fsr.base(args)

    config.data.name = "digits"
    config.data.augment.update({"crop_padding": 0, "flip": False})

    modules = config.model.get("fsr")
    config.model = {"name": "small_cnn", "width": 16, "dtype": "float32", "weights": "", "mean": (0.0,), "std": (1.0,)}
    if modules is not None:
        config.model.fsr = modules
        config.model.fsr.hidden = 16

    config.method.update({"eps": "0.1", "step_size": "0.02"})

    config.train.batch_size = 64
    config.train.epochs = 40.0
    config.train.log_every_steps = 22
    config.train.evaluate_every_epochs = 4.0
    config.train.evaluate_examples = 0
    config.checkpoint.every_epochs = 4.0
    config.optimizer.update({"drop_epochs": (24, 34)})
    fsr.evaluation(config, "0.1", "0.01")
    config.evaluation.sanity.radii = ("0", "0.025", "0.05", "0.1", "0.2", "0.4")
    config.evaluation.transfer.step_size = "0.02"

    if args["runlocal"]:
        fsr.runlocal(config, steps=20)
        config.checkpoint.every_steps = 10
    return config
