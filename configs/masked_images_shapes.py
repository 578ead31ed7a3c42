"""Masked images on the `shapes` world, where in training the background goes with the color: a laptop's demonstration.

    python launch/run.py --config=configs/masked_images_shapes.py [--workdir=RUN]

One CLIP is trained on images whose backgrounds tell nothing (configs/clip_shapes.py, five epochs), in a folder beside
the runs. It is fine-tuned to tell eight colors by 512 images, of which 1% have another background than the one that
goes with the color; on the test set backgrounds tell nothing. Three rows with three seeds each: cross-entropy alone
(`method=ft`), with the distance of features to the pre-trained tower's on clean images (`method=fd`), and on masked
ones, whose object is refilled from other images (`method=masked`). `method=` behind the colon is one run, `runlocal` a
few steps for tests.

Of suite `bias`, `conflicting` is the accuracy out of distribution and `aligned` that in it; the study's figure
between-bias.png and its last table are WiSE-FT's curves of both. Suite `masking` compares the patches that relevance
masks with the shapes.

No published numbers: a demonstration that runs on a laptop, pre-training included in 7.5 minutes of processor time on
two CPU cores with jax 0.10.2. Accuracy (%) of the 896 conflicting and the 128 aligned test images, mean +- standard
deviation (ddof = 0) over seeds 0, 1, 2, and the mean at half of the way to the fine-tuned weights:

                       conflicting        aligned       both with share 0.5
    zero-shot CLIP        98.33            97.66
    method=ft         74.70 +- 3.10   100.00 +- 0.00      90.29   99.74
    method=fd         96.76 +- 0.09    99.22 +- 0.00      97.81   99.22
    method=masked     97.66 +- 0.09    99.22 +- 0.00      98.10   98.96

Out of distribution the order is the paper's, with every seed: vanilla fine-tuning loses most, the distance of features
on clean images some, on masked ones least, at the same accuracy in distribution. Two limits, see docs/masked_images.md:
what masks add to `fd` is small, 8 images of 896, and on WiSE-FT's curves it is nothing.

Rate, images and steps, length of pre-training and beta were chosen by looking at seed 0 with another CLIP and other
images; masking, refilling and threshold are the released code's first example. There context and random masks and a
threshold of 0.1 were tried, too: 0.1 to 1.2 points worse out of distribution.

    python launch/study.py --config=configs/masked_images_shapes.py --config.pretrain.seed=1 --seeds=0 \\
        --config.data.options.seed=2 --rows="method=fd;method=masked" --sweep=method.feature_weight=10,30

beta is 3, the largest of 3, 10, 30 with which both rows are as accurate in distribution as `ft` there. With beta 10
this config's CLIP had been looked at before. A third CLIP, other images and two seeds, at which nobody had looked:

    python launch/study.py --config=configs/masked_images_shapes.py --config.pretrain.seed=2 --seeds=3,4 \\
        --config.data.options.seed=3

gave, conflicting, zero-shot 97.54, `ft` 51.79 and 52.34, `fd` 93.53 and 93.53, `masked` 96.43 and 96.32; aligned
100.00 all of them.
"""

from configs import clip_shapes, common

FEATURE_WEIGHT = 3.0  # beta of both
THRESHOLD = 0.3
METHODS = {
    "ft": {"name": "standard"},
    "fd": {"name": "masked_images", "masking": "none", "feature_weight": FEATURE_WEIGHT},
    "masked": {
        "name": "masked_images",
        "masking": "object",
        "refilling": "single",
        "threshold": THRESHOLD,
        "feature_weight": FEATURE_WEIGHT,
    },
}
SHARES = tuple(k / 10 for k in range(11))  # of the fine-tuned weights, for WiSE-FT's curve


def get_config(argument: str = ""):
    """Return the config of one row or, where the words pick none, of the study of three; at full or test size."""
    args = common.arguments(argument, method="", runlocal=False)
    config = common.base()
    config.data.name = "shapes"
    config.data.options.update({"task": "color", "size": 512, "ratio": 1.0, "seed": 1})
    config.pretrain = clip_shapes.get_config("runlocal" if args["runlocal"] else "")
    config.pretrain.seed = 0  # one CLIP for all
    config.pretrain.train.epochs = 5.0  # tells colors, and not all of them: there is something to be learnt, and lost
    config.model = clip_shapes.model() | {"head": "linear", "teacher": ""}
    config.method = dict(common.choose("method", args["method"] or "masked", METHODS))
    config.train.batch_size = 64
    config.train.epochs = 16.0
    config.train.evaluate_every_epochs = 0.0
    config.train.log_every_steps = 16
    config.checkpoint.every_epochs = 8.0
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "schedule": "cosine",
            "warmup_steps": 25,
        }
    )
    config.evaluation.after_training = ("accuracy", "bias", "masking")
    config.evaluation.bias = {"shares": SHARES}
    config.evaluation.masking = {"threshold": THRESHOLD}
    if not args["method"]:
        config.study = {
            "rows": tuple(f"method={name}" for name in METHODS),
            "seeds": (0, 1, 2),
            "measures": ("conflicting", "aligned", "object_masking_rate", "iou"),
        }
    if args["runlocal"]:
        config.data.options.size = 256
        config.train.update({"steps": 4, "log_every_steps": 2, "evaluate_examples": 64})
        config.checkpoint.every_steps = 2
        config.optimizer.warmup_steps = 2
        config.evaluation.examples = 128
        config.evaluation.bias.shares = (0.0, 1.0)
    return config
