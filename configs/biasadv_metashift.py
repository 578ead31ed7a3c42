"""BiasAdv on MetaShift's cats and dogs, indoors and outdoors (ResNet-18 from ImageNet weights): Table 4 of the paper.

    python launch/run.py --config=configs/biasadv_metashift.py:method=jtt,biasadv --config.data.dir=DATA \\
        --config.model.weights=resnet18.pth --workdir=RUN

The words behind the colon (all in configs/biasadv.py): method=erm|jtt|lff, `biasadv`, ratio=1|6|12, and with `biasadv`
preset=, numbers=, ablation=; `runlocal` is a size for two CPU cores. DATA holds what MetaShift's own script for
subpopulation shifts writes (Liang and Zou, ICLR 2022); docs/biasadv.md says how to run it. The table starts from
torchvision's ImageNet ResNet-18: give the file of its state_dict, .pth, .safetensors or .npz; the linear layer starts
fresh. Without a file the networks start from random weights.

Published, mean and standard deviation of three trials (accuracy on all test images, then that of the worst of the four
groups of class and place, `average` and `worst_group` of suite bias, each at a ratio of 1, 6 and 12 %):

    words behind the colon        1              6              12
    method=erm              76.91 +- 0.93  79.69 +- 0.86  80.56 +- 0.14
    method=erm,biasadv      77.26 +- 1.12  78.70 +- 1.71  80.96 +- 1.99
    method=jtt              76.97 +- 0.71  78.65 +- 0.49  80.38 +- 0.99
    method=jtt,biasadv      78.01 +- 0.72  79.34 +- 1.07  80.79 +- 0.43
    method=lff              75.06 +- 0.79  79.28 +- 0.45  80.85 +- 0.14
    method=lff,biasadv      76.91 +- 1.48  79.92 +- 0.74  81.42 +- 1.33

    method=erm              51.85 +- 3.42  57.41 +- 2.29  61.34 +- 2.29
    method=erm,biasadv      53.94 +- 2.40  58.33 +- 3.46  63.89 +- 1.59
    method=jtt              53.47 +- 1.13  56.48 +- 1.82  60.65 +- 1.43
    method=jtt,biasadv      55.09 +- 0.87  61.34 +- 2.80  65.51 +- 2.34
    method=lff              52.78 +- 2.04  57.17 +- 1.99  62.73 +- 2.29
    method=lff,biasadv      53.47 +- 2.91  58.10 +- 1.43  64.35 +- 1.45

These are claims of the paper. Unverified: sizes and crops, whether batch norm was frozen, the attack and the
checkpoint; docs/biasadv.md lists all of it.

Hardware and time: not yet measured.
"""

from configs import biasadv

RATIOS = (1, 6, 12)
# Table 4 of the supplementary. Three numbers are those of ERM, JTT and LfF, each with BiasAdv.
TABLE = {
    "pretrained": True,
    "epochs": (10, 1, 10),
    "biased_epochs": (10, 1, 10),
    "lambda": (1, 0.5, 1),
    "eps": (0.5, 0.7, 0.5),
    "steps": (3, 1, 3),
    "beta": (0.5, 1.5, 0.5),
    "copies": (None, 10, None),
    "batch_size": 32,
    "learning_rate": 2e-5,
    "weight_decay": (1e-4, 0.0, 1e-4),
    "decay_every": 0,  # the rate is constant
    "decay_factor": 1.0,
}
MAIN = {"lambda": 0.5, "eps": 0.5, "steps": 3, "beta": 1}  # the main paper's, for all methods


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = biasadv.arguments(argument, RATIOS)
    config = biasadv.base(args, TABLE, MAIN)
    config.data.name = "metashift"
    biasadv.crop_of_larger(config, image_size=256, crop_size=224)
    biasadv.normalize(config, biasadv.IMAGENET)
    config.evaluation.bias.gallery = 8
    if args["runlocal"]:
        biasadv.runlocal(config)
    return config
