"""FSR on Tiny ImageNet (ResNet-18, 64x64): Table S2 of the paper's supplementary.

    python launch/run.py --config=configs/fsr_tiny_imagenet.py:method=at,fsr --config.data.dir=DATA --workdir=RUN

The words behind the colon are those of configs/fsr.py: method=at|trades|mart, `fsr`, model=, the ablations, `runlocal`.
DATA holds tiny-imagenet-200/; its validation images are the test split, for the official test images have no labels.

Published, Linf 8/255 (natural accuracy; accuracy under FGSM, PGD-20, PGD-100 and C&W; Ensemble, here `worst_case`):

    method=at              51.13  22.54  18.69  17.87  17.83  16.34
    method=at,fsr          51.77  24.19  20.95  20.06  19.32  18.02
    method=trades          50.41  23.79  21.16  20.72  17.24  17.02
    method=trades,fsr      49.53  24.87  23.22  23.09  19.22  19.04
    method=mart            46.21  23.84  21.75  21.35  18.34  17.71
    method=mart,fsr        46.02  26.02  24.05  23.82  20.63  20.24

Unverified: the whole training recipe. The released code has no Tiny ImageNet; the numbers here, the padding of 4 pixels
and the stem without pooling are its CIFAR-10's.

Hardware and time: 100 epochs of AT + FSR are about 1.0e18 FLOP: an estimate, six hours on an accelerator that sustains
50 TFLOP/s. Not yet measured.
"""

from configs import fsr


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = fsr.arguments(argument)
    config = fsr.base(args)
    config.data.name = "tiny_imagenet"
    if args["runlocal"]:
        fsr.runlocal(config)
    return config
