"""ART on SVHN (WRN-40-2).

    python launch/run.py --config=configs/art_svhn.py:variant=art --config.data.dir=DATA --workdir=RUN

variant=natural|pgd|art or any ablation of configs/art_cifar10.py; `runlocal` a size for two CPU cores. DATA holds
TFDS' svhn_cropped/ (`python launch/prepare_data.py svhn --dir=DATA`) or svhn.npz. The extra set is not used.

Expected, from memory of the main paper's Table 1 and not verified (IN and K at 8/255, test, PGD-40): natural 60.43,
56.50, 95.66, 0.00; pgd 39.67, 55.56, 92.84, 50.12; art 61.37, 72.60, 95.47, 43.56.

Hardware and time: 200 epochs of ART are about 4.1e17 FLOP: an estimate, 25 minutes at a sustained 300 TFLOP/s. Not yet
measured.
"""

from configs import art, common


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = common.arguments(argument, variant="art", runlocal=False)
    config = common.base()

    config.data.name = "svhn"
    config.data.augment.crop_padding = 4  # the paper states no augmentation; digits are not flipped

    config.model = {"name": "wide_resnet", "depth": 40, "width": 2, "dropout": 0.1, "dtype": "float32", "weights": ""}
    config.model.mean = config.model.std = ()  # measured on the training set

    config.method = art.method(args["variant"], pgd={"num_steps": 7, "step_size": "2.5/255"}, art={})

    config.train.batch_size = 256
    config.train.epochs = 200.0
    config.optimizer.update(
        {
            "learning_rate": 0.1,
            "weight_decay": 2e-4,
            "drop_epochs": (50, 80, 150),
            "drop_factors": (0.1, 0.1, 0.5),
        }
    )
    art.evaluation(config, top_k=100, attack_steps=50)

    if args["runlocal"]:
        config.model.update({"depth": 10, "width": 1})
        art.runlocal(config)
    return config
