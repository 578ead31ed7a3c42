"""What every config shares: the argument behind the colon and the sections that belong to no paper."""

from __future__ import annotations

from typing import Any

import ml_collections

from jrobust.errors import InputError, unknown


def arguments(text: str | None, **defaults: str | bool) -> dict[str, Any]:
    """Read the words behind the colon of `--config=FILE:word,name=value` against their defaults.

    A default of type bool is a switch (`runlocal`), any other is set by `name=value`.

    >>> arguments("variant=pgd,runlocal", variant="art", runlocal=False)
    {'variant': 'pgd', 'runlocal': True}
    """
    values: dict[str, Any] = dict(defaults)
    for word in filter(None, (text or "").split(",")):
        name, equals, value = word.partition("=")
        if name not in defaults:
            raise unknown("config argument", name, defaults)
        if isinstance(defaults[name], bool) == bool(equals):
            form = name if isinstance(defaults[name], bool) else f"{name}=VALUE"
            raise InputError(f"config argument {word!r} is not of the form {form!r}: write it as --config=FILE:{form}")
        values[name] = value if equals else True
    return values


def choose(kind: str, name: str, table: dict):
    """Return `table[name]` or raise the error that lists what there is."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def step_decay(every: int, factor: float, epochs: int) -> dict[str, tuple]:
    """Return the drops of a rate that is multiplied by `factor` after every `every` of `epochs` epochs; 0 for never.

    >>> step_decay(10, 0.5, 35)
    {'drop_epochs': (10, 20, 30), 'drop_factors': (0.5, 0.5, 0.5)}
    """
    drops = tuple(range(every, epochs, every)) if every else ()
    return {"drop_epochs": drops, "drop_factors": (factor,) * len(drops)}


def base() -> ml_collections.ConfigDict:
    """Return the sections every run has: data, train, checkpoint, log, evaluation."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.name = ""
    config.data.dir = ""  # the folder that holds the data set's own folder; see launch/prepare_data.py
    config.data.image_size = 0  # images are resized to this square on reading; 0 keeps their size
    config.data.held_out = 0  # training images, of each class its share, that become the split validation; 0 for none
    config.data.held_out_seed = -1  # which ones; -1 for the run's seed
    config.data.balance_to = 0  # images a class after balancing by transforms; 0 leaves the classes as they are
    config.data.options = ml_collections.ConfigDict()  # what the data set itself takes, such as ratio and seed
    config.data.resident = True  # keep the whole training set on the device
    config.data.augment = ml_collections.ConfigDict()
    config.data.augment.crop_padding = 0  # pixels of zero padding before a random crop of the original size
    config.data.augment.resize = 0  # the shorter side is resized to this on the device before crop_size; 0 for none
    config.data.augment.crop_size = 0  # side of a random crop out of a larger image; 0 for none
    config.data.augment.center_crop = False  # that crop is the centre, in training as in evaluation
    config.data.augment.resized_crop = False  # that crop is of random area and aspect, resized to crop_size
    config.data.augment.flip = False
    config.data.augment.jitter = 0.0  # brightness, contrast and saturation factors are U(1 - jitter, 1 + jitter)
    config.data.augment.rotation = 0.0  # degrees: the angle is U(-rotation, rotation)

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 128
    # The first of steps, examples, epochs that is not 0 is the length of the run.
    config.train.steps = 0
    config.train.examples = 0
    config.train.epochs = 0.0
    # Equal parts of a batch whose gradients are taken one after the other and averaged: memory is that of a part. Batch
    # norm and other couplings of examples see their part alone.
    config.train.microbatches = 1
    config.train.parallelism = "jit"  # or "pmap": same step, same state, same numbers up to rounding
    # Whose examples batch norm sees: those of the whole batch, or "device", those of its own device, as in PyTorch's
    # DataParallel. With "batch" a run is the same on any number of devices.
    config.train.norm_over = "batch"
    # What is split over the devices of jit, each of which then holds its part: nothing, "optimizer" for its moments, or
    # "all" for parameters and frozen towers, too. The numbers are the same up to rounding.
    config.train.shard_state = "none"
    config.train.log_every_steps = 50
    config.train.evaluate_every_epochs = 1.0
    config.train.evaluate_split = "test"  # on which accuracy is measured during training; or "validation"
    config.train.evaluate_examples = 1000  # of that split; 0 for all of it

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_epochs = 1.0
    config.checkpoint.every_steps = 0  # if not 0, instead of every_epochs
    config.checkpoint.keep_latest = 2
    config.checkpoint.keep_best = 1  # by accuracy during training; chosen on the test split it is an oracle

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # or "adam", "adamw"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9  # this and nesterov: of sgd
    config.optimizer.nesterov = True
    config.optimizer.betas = (0.9, 0.999)  # this and epsilon: of adam and adamw
    config.optimizer.epsilon = 1e-8
    # Of every parameter: L2, added to the gradient before momentum or moments; with adamw it goes past the moments.
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0  # largest l2 norm of the gradient of all parameters together; 0 for none
    config.optimizer.schedule = "steps"  # or "cosine", "one_cycle", both over the whole length of the run
    config.optimizer.drop_epochs = ()  # this and drop_factors: of steps
    config.optimizer.drop_factors = ()
    config.optimizer.warmup_steps = 0  # of cosine: steps of a linear rise before it
    config.optimizer.cycle_beta1 = True  # of one_cycle with adam and adamw: betas[0] goes 0.95 -> 0.85 -> 0.95
    config.optimizer.fast_layers = ()  # parameter-name prefixes whose rate is multiplied by fast_factor
    config.optimizer.fast_factor = 1.0

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.after_training = ("accuracy",)
    config.evaluation.step = "latest"  # the checkpoint that is evaluated and exported after training; or "best"
    config.evaluation.batch_size = 256
    config.evaluation.examples = 0  # 0 for the whole test split
    return config
