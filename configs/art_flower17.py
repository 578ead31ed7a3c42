"""ART on Oxford Flower-17 (WRN-28-10 at 128x128), classes grown to 1,000 images each.

    python launch/run.py --config=configs/art_flower17.py:variant=art --config.data.dir=DATA --workdir=RUN

variant=natural|pgd|art or any ablation of configs/art_cifar10.py; `runlocal` a size for two CPU cores. DATA holds
flower17/ (an image folder) or flower17.npz; 72 images of a class train, 8 test.

Expected, from memory of the main paper's Table 1 and not verified (IN and K at 8/255, test, PGD-40): natural 38.22,
56.43, 93.91, 0.00; pgd 80.84, 84.14, 92.64, 69.85; art 79.84, 84.87, 93.21, 33.08.

Hardware and time: 68 epochs of 17,000 images are about 8.2e18 FLOP for ART: an estimate, 8 hours at a sustained
300 TFLOP/s. Not yet measured.
"""

from configs import art, common


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = common.arguments(argument, variant="art", runlocal=False)
    config = common.base()

    config.data.name = "flower17"
    config.data.image_size = 128
    config.data.balance_to = 1_000

    config.model = {"name": "wide_resnet", "depth": 28, "width": 10, "dropout": 0.1, "dtype": "float32", "weights": ""}
    config.model.mean = config.model.std = ()  # measured on the training set

    config.method = art.method(
        args["variant"],
        pgd={"num_steps": 7, "step_size": "2.5/255"},
        art={"mask_size": 16_000},  # the same share of coordinates as 1000 of CIFAR's 3072; not in the paper
    )

    config.train.batch_size = 128
    config.train.epochs = 68.0
    config.optimizer.update(
        {"learning_rate": 0.1, "weight_decay": 2e-4, "drop_epochs": (15, 35, 50), "drop_factors": (0.1, 0.1, 0.5)}
    )
    art.evaluation(config, top_k=1000, attack_steps=100)

    if args["runlocal"]:
        config.model.update({"depth": 10, "width": 1})
        config.data.update({"balance_to": 80, "image_size": 32})
        art.runlocal(config)
        config.evaluation.attribution.top_k = 100
        if "mask_size" in config.method and config.method.mask_size:
            config.method.mask_size = 1000
    return config
