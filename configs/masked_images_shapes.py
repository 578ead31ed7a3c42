"""Masked images on the `shapes` world, where in training the background goes with the color: a laptop's demonstration.

    python launch/run.py --config=configs/masked_images_shapes.py [--workdir=RUN]

One CLIP is trained on images whose backgrounds tell nothing (configs/clip_shapes.py), in a folder beside the runs. It
is fine-tuned to tell eight colors where 2% of the images of each have another background than the one that goes with
it; on the test set backgrounds tell nothing. Three rows with three seeds each: cross-entropy alone (`method=ft`), with
the distance of features to the pre-trained tower's on clean images (`method=fd`), and on masked ones, whose object is
refilled from other images (`method=masked`). `method=` behind the colon is one run, `runlocal` a few steps for tests.

Of suite `bias`, `conflicting` is the accuracy out of distribution and `aligned` that on images like those of training;
suite `masking` compares the patches that relevance masks with the shapes.
"""

from configs import clip_shapes, common

METHODS = {
    "ft": {"name": "standard"},
    "fd": {"name": "masked_images", "masking": "none", "feature_weight": 30.0},
    "masked": {
        "name": "masked_images",
        "masking": "object",
        "refilling": "single",
        "threshold": 0.3,
        "feature_weight": 30.0,
    },
}


def get_config(argument: str = ""):
    """Return the config of one row or, where the words pick none, of the study of three; at full or test size."""
    args = common.arguments(argument, method="", runlocal=False)
    config = common.base()
    config.data.name = "shapes"
    config.data.options.update({"task": "color", "size": 2048, "ratio": 2.0, "seed": 1})
    config.pretrain = clip_shapes.get_config("runlocal" if args["runlocal"] else "")
    config.pretrain.seed = 0  # one CLIP for all
    config.model = clip_shapes.model() | {"head": "linear", "teacher": ""}
    config.method = dict(common.choose("method", args["method"] or "masked", METHODS))
    config.train.batch_size = 64
    config.train.epochs = 8.0
    config.train.evaluate_every_epochs = 0.0
    config.train.log_every_steps = 16
    config.checkpoint.every_epochs = 4.0
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "schedule": "cosine",
            "warmup_steps": 25,
        }
    )
    config.evaluation.after_training = ("accuracy", "bias", "masking")
    config.evaluation.masking = {"threshold": 0.3}
    if not args["method"]:
        config.study = {
            "rows": tuple(f"method={name}" for name in METHODS),
            "seeds": (0, 1, 2),
            "measures": ("conflicting", "aligned", "average"),
        }
    if args["runlocal"]:
        config.data.options.size = 256
        config.train.update({"steps": 4, "log_every_steps": 2, "evaluate_examples": 64})
        config.checkpoint.every_steps = 2
        config.optimizer.warmup_steps = 2
        config.evaluation.examples = 128
    return config
