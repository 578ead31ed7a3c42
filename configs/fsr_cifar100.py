"""FSR on CIFAR-100 (ResNet-18): Table S1 of the paper's supplementary.

    python launch/run.py --config=configs/fsr_cifar100.py:method=at,fsr --config.data.dir=DATA --workdir=RUN

The words behind the colon are those of configs/fsr.py: method=at|trades|mart, `fsr`, model=, the ablations, `runlocal`.
DATA holds cifar-100-binary/ (the binary archive of the authors) or TFDS' cifar100/.

Published, Linf 8/255 (natural accuracy; accuracy under FGSM, PGD-20, PGD-100 and C&W; Ensemble, here `worst_case`):

    method=at              59.25  28.80  24.39  23.43  23.92  22.46
    method=at,fsr          58.23  29.58  25.33  24.30  24.54  22.95
    method=trades          61.87  30.77  26.37  25.76  24.08  23.45
    method=trades,fsr      57.27  31.66  27.70  27.27  24.82  24.40
    method=mart            57.13  31.32  27.40  26.80  25.24  24.42
    method=mart,fsr        56.51  32.08  27.90  27.28  25.91  24.98

Unverified: the whole training recipe. The released code has no CIFAR-100; the numbers here are its CIFAR-10's.

Hardware and time: as configs/fsr_cifar10.py.
"""

from configs import fsr


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = fsr.arguments(argument)
    config = fsr.base(args)
    config.data.name = "cifar100"
    if args["runlocal"]:
        fsr.runlocal(config)
    return config
