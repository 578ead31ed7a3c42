"""ART on scikit-learn's handwritten digits: 8x8 scans that ship with a dependency, so nothing is downloaded.

    python launch/run.py --config=configs/art_digits.py:variant=art

variant=natural|pgd|art or any ablation of configs/art_cifar10.py; `runlocal` a few steps for tests. `make demo` trains
natural and ART networks with it and compares them.

No published numbers: this is the demonstration and the small scientific check of the method. `make demo` on two CPU
cores, jax 0.10.2, seed 0, in about three minutes (accuracy, PGD-40, IN and K at 0.1, top 16):

    natural   98.89   18.61   84.28   67.50
    art       95.56   32.50   87.72   68.14

Seed 0 flatters the method. With seeds 3 to 7, at which nobody had looked, on all test images, ART is above natural
training by 1.59 points in IN (95 % interval -1.81 to 5.00, above in four of five) and below it by 0.58 in K (-3.95 to
2.79): on these digits, with these settings, the claim does not hold (docs/results/claims.md). Seeds 0 and 1, 200
images, had given 3.2 and 3.1 in IN, 3.2 and 2.7 in K. With a lambda of 10 seed 0 learns nothing (accuracy 9.44).

    python launch/claims.py --papers=art
    python launch/study.py --config=configs/art_digits.py --rows="variant=art" --baseline="variant=natural" \\
        --seeds=0,1 --measures=IN,K,accuracy --sweep=method.attribution_weight=10

The paper's lambda of 0.5 and CIFAR-10's mask hardly align the maps of this small network in 40 epochs, and with k = 8
IN does not tell the two apart: strokes are saturated, so their pixels tie.
"""

from configs import art, common


def get_config(argument: str = ""):
    """Return the config of one row, at full or test size."""
    args = common.arguments(argument, variant="art", runlocal=False)
    config = common.base()

    config.data.name = "digits"

    config.model = {"name": "small_cnn", "width": 16, "dtype": "float32", "weights": ""}
    config.model.mean = config.model.std = ()  # measured on the training set

    # Chosen on these digits: with the lambda of 0.5 and the mask of CIFAR-10 the maps hardly align in 40 epochs.
    config.method = art.method(
        args["variant"],
        pgd={"eps": "0.1", "step_size": "0.025", "num_steps": 7},
        art={"eps": "0.1", "step_size": "0.02", "mask_size": 0, "attribution_weight": 3.0},
    )

    config.train.batch_size = 64
    config.train.epochs = 40.0
    config.train.log_every_steps = 22
    config.train.evaluate_every_epochs = 4.0
    config.train.evaluate_examples = 0
    config.checkpoint.every_epochs = 4.0
    config.optimizer.update(
        {"learning_rate": 0.1, "weight_decay": 2e-4, "drop_epochs": (20, 32), "drop_factors": (0.1, 0.1)}
    )
    # A quarter of the pixels: about the stroke.
    art.evaluation(config, top_k=16, attack_steps=50, eps="0.1", step_size="0.025")
    config.evaluation.robustness.sweep_linf = ("0.025", "0.05", "0.1", "0.15")
    config.evaluation.attribution.update(
        {"eps": "0.1", "step_size": "0.0125", "num_points": 20, "examples": 200, "batch_size": 100}
    )
    config.evaluation.attribution.sweep = ("0.025", "0.05", "0.1")

    if args["runlocal"]:
        art.runlocal(config, steps=20)
        config.checkpoint.every_steps = 10
    return config
