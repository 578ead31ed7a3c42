"""A config of 12 steps of a perceptron on the digits, for runs that are interrupted."""

from configs import common


def get_config(argument=""):
    common.arguments(argument)
    config = common.base()
    config.data.name = "digits"
    config.data.augment.crop_padding = 1
    config.model = {"name": "mlp", "depth": 1, "width": 128, "dtype": "float32"}
    config.model.update({"weights": "", "mean": (0.0,), "std": (1.0,)})
    config.method = {"name": "standard"}
    config.train.update({"batch_size": 64, "steps": 12, "log_every_steps": 5, "evaluate_examples": 90})
    config.train.shard_state = "all"  # the first kernel is large enough for it
    config.train.evaluate_every_epochs = 0.2  # every 4 steps
    config.checkpoint.every_steps = 3
    config.evaluation.step = "best"
    return config
