"""ART on GTSRB (WRN-28-10), classes balanced to 10,000 images each.

    python launch/run.py --config=configs/art_gtsrb.py:variant=art --config.data.dir=DATA --workdir=RUN

variant=natural|pgd|art or any ablation of configs/art_cifar10.py; `runlocal` a size for two CPU cores. DATA holds
gtsrb.npz or gtsrb/{train,test}/<class>/ with 32x32 pictures.

Expected, from memory of the main paper's Table 1 and not verified (IN and K at 8/255, test, PGD-40): natural 68.74,
76.48, 99.43, 19.9; pgd 86.13, 88.42, 98.36, 87.49; art 91.96, 89.34, 98.47, 84.66.

Hardware and time: 12 epochs of 430,000 images are about 2.3e18 FLOP for ART: an estimate, 2 hours at a sustained
300 TFLOP/s. Not yet measured.
"""

from configs import art, common


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = common.arguments(argument, variant="art", runlocal=False)
    config = common.base()

    config.data.name = "gtsrb"
    config.data.image_size = 32
    config.data.balance_to = 10_000

    config.model = {"name": "wide_resnet", "depth": 28, "width": 10, "dropout": 0.1, "dtype": "float32", "weights": ""}
    config.model.mean = config.model.std = ()  # measured on the training set

    config.method = art.method(args["variant"], pgd={"num_steps": 7, "step_size": "2/255"}, art={})

    config.train.batch_size = 128
    config.train.epochs = 12.0
    config.optimizer.update(
        {"learning_rate": 0.1, "weight_decay": 2e-4, "drop_epochs": (4, 6, 10), "drop_factors": (0.1, 0.1, 0.5)}
    )
    art.evaluation(config, top_k=100, attack_steps=50)

    if args["runlocal"]:
        config.model.update({"depth": 10, "width": 1})
        config.data.balance_to = 80
        art.runlocal(config)
    return config
