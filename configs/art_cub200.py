"""ART on CUB-200-2011 (ResNet-50 from ImageNet weights): weakly supervised localisation.

    python launch/run.py --config=configs/art_cub200.py:variant=art --config.data.dir=DATA \\
        --config.model.weights=resnet50.safetensors --workdir=RUN

variant=natural|pgd|art or any ablation of configs/art_cifar10.py; `runlocal` a size for two CPU cores. DATA holds
CUB_200_2011/. The weights are torchvision's resnet50-19c8e357 saved as safetensors; without a file the network starts
from random weights, and says so.

Published: Top-1 localisation of ART 65.22 (a benchmark listing, second hand). From memory, not verified: GT-known
localisation of the gradient map 82.65, Top-1 accuracy 77.51.

Hardware and time: not yet measured.
"""

from configs import art, common


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = common.arguments(argument, variant="art", runlocal=False)
    config = common.base()

    config.data.name = "cub200"
    config.data.image_size = 256
    config.data.augment.update({"crop_size": 224, "flip": True})
    config.data.resident = False

    # Pre-trained weights have 1000 classes, so the linear layer starts fresh.
    config.model = {"name": "resnet50", "last_stride": 1, "dtype": "float32", "weights": "", "new_head": True}
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)

    config.method = art.method(
        args["variant"],
        pgd={"eps": "2/255", "num_steps": 7, "step_size": "0.5/255", "batch_norm": "train"},
        art={"eps": "2/255", "mask_size": 15_000, "reduction": "absmean"},
    )

    # ART has batches of 90 and drops the rate every 40 epochs; natural and PGD training 128 and every 60.
    ours = config.method.name == "art"
    config.train.batch_size = 90 if ours else 128
    config.train.epochs = 200.0
    drops = tuple(range(40, 200, 40)) if ours else tuple(range(60, 200, 60))
    config.optimizer.update(
        {
            "learning_rate": 0.01,
            "weight_decay": 1e-4,
            "drop_epochs": drops,
            "drop_factors": (0.1,) * len(drops),
            "fast_layers": ("layer4", "fc"),  # from the released code; the paper is silent
            "fast_factor": 10.0,
        }
    )
    art.evaluation(config, top_k=1000, attack_steps=50, eps="2/255", step_size="0.5/255")  # not described in the paper
    config.evaluation.after_training = ("accuracy", "robustness", "localization")
    config.evaluation.localization = {"threshold": 0.2, "iou": 0.5}
    config.evaluation.batch_size = 64

    if args["runlocal"]:
        config.model.name = "resnet18"
        config.data.image_size = 72
        config.data.augment.crop_size = 64
        art.runlocal(config, steps=20)
        config.train.batch_size = 8
        config.evaluation.examples = 64
        if "mask_size" in config.method and config.method.mask_size:
            config.method.mask_size = 1200
    return config
