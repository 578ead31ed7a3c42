"""FSR on CIFAR-10: Tables S3 to S7 of the paper's supplementary.

    python launch/run.py --config=configs/fsr_cifar10.py:method=at,fsr --config.data.dir=DATA --workdir=RUN

The words behind the colon (all in configs/fsr.py): method=at|trades|mart, `fsr`, model=resnet18|vgg16|wrn34_10, and for
the ablations position=, separation_loss=, mask=, separation=; `runlocal` is a size for two CPU cores. DATA holds
cifar-10-batches-bin/ (the binary archive of the authors) or TFDS' cifar10/. AutoAttack is
`python launch/evaluate.py --workdir=RUN --suite=autoattack`.

Published, Linf 8/255 (natural accuracy; accuracy under FGSM, PGD-20, PGD-100 and C&W; Ensemble, here `worst_case`;
AutoAttack, here `autoattack`), ResNet-18:

    words behind the colon                             nat   FGSM    P20   P100    C&W    Ens     AA   table
    method=at                                        85.02  56.21  48.22  46.37  47.38  45.51      -   S5
    method=at,fsr                                    81.46  58.07  52.47  51.02  49.44  48.34  46.41   S4 - S7
    method=at,fsr,position=block1                    84.58  56.41  48.29  46.28  46.96  44.89      -   S4
    method=at,fsr,position=block2                    83.76  56.34  48.86  47.03  47.32  45.28      -   S4
    method=at,fsr,position=block3                    82.60  56.62  50.43  49.11  47.84  46.33      -   S4
    method=at,fsr,position=block3+block4             82.18  56.93  50.72  49.32  48.63  46.91      -   S4
    method=at,fsr,separation_loss=uniform            85.16  58.05  50.87  48.91  49.99  47.90      -   S5
    method=at,fsr,separation_loss=entropy_max        84.69  58.35  50.66  48.93  49.90  47.88      -   S5
    method=at,fsr,separation_loss=avg_targeted       84.50  57.98  50.41  48.55  49.80  47.42      -   S5
    method=at,fsr,mask=binary                            -  55.78  49.21  47.79  48.74  46.91  44.26   S6
    method=at,fsr,separation=greedy                      -  57.75  49.48  47.59  48.36  46.42      -   S7
    method=at,fsr,separation=random                      -  56.60  50.04  48.46  49.08  46.77      -   S7
    method=at,fsr,separation=none                        -  57.51  50.71  48.98  49.32  47.60      -   S7

and WRN-34-10 (Table S3):

    method=at,model=wrn34_10                         87.49  59.47  50.72  48.75  50.42  48.52
    method=at,fsr,model=wrn34_10                     87.02  61.40  53.78  52.04  52.35  50.36
    method=trades,model=wrn34_10                     86.06  60.78  51.77  49.66  51.34  49.27
    method=trades,fsr,model=wrn34_10                 86.88  62.97  54.37  51.98  53.19  51.34
    method=mart,model=wrn34_10                       85.81  61.22  52.49  49.88  49.67  48.81
    method=mart,fsr,model=wrn34_10                   86.21  62.61  54.23  52.00  51.25  50.10

The sweeps of Figure S1 are --config.model.fsr.tau=T, --config.method.fsr.separation_weight=W and
--config.method.fsr.recalibration_weight=W. The paper's numbers for VGG16 are not known to us.

Unverified: whether the tables are of the last checkpoint (the released code keeps no other) and of AutoAttack
`standard`; how TRADES and MART were combined with FSR and with which numbers; the ablations' fine print. docs/fsr.md
lists all of it.

Hardware and time: 100 epochs of AT + FSR on ResNet-18 are about 1.3e17 FLOP: an estimate, 45 minutes on an accelerator
that sustains 50 TFLOP/s; WRN-34-10 twelve times that. Not yet measured.
"""

from configs import fsr


def get_config(argument: str = ""):
    """Return the config of one row, at full or local size."""
    args = fsr.arguments(argument)
    config = fsr.base(args)
    config.data.name = "cifar10"
    if args["runlocal"]:
        fsr.runlocal(config)
    return config
