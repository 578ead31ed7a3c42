"""PMG-AFT on the `shapes` world: a small CLIP is trained, fine-tuned by three methods, and tried on tasks it never saw.

    python launch/run.py --config=configs/pmg_aft_shapes.py

One CLIP is trained (configs/clip_shapes.py) in a folder beside the runs. Three methods fine-tune its image tower to
tell 64 pairs of a color and a background, each with three seeds, and suite `zero_shot` asks for colors, textures,
backgrounds and two other pairs (`zero_shot_average`), clean and under PGD-10. `method=ft|tecoa|pmg_aft` behind the
colon is one run; `runlocal` is for tests. The CLIP before fine-tuning:

    python launch/evaluate.py --config=configs/pmg_aft_shapes.py:method=pmg_aft --suite=zero_shot \\
        --workdir=runs/pmg_aft_shapes-study/clip

No published numbers: this is a demonstration that runs on a laptop. Eleven minutes on two CPU cores with jax 0.10.2,
the CLIP three of them. Accuracy (%), mean +- standard deviation (ddof = 0) over seeds 0, 1, 2 of fine-tuning:

                     zero-shot clean   zero-shot PGD-10   trained-on clean   trained-on PGD-10
    CLIP                  72.03              21.88              99.22              32.81
    method=ft         69.74 +- 0.07      22.06 +- 0.07      99.22 +- 0.00      36.33 +- 0.84
    method=tecoa      69.84 +- 0.33      30.96 +- 0.43      98.05 +- 0.00      56.25 +- 0.84
    method=pmg_aft    66.61 +- 0.30      33.88 +- 0.13      97.40 +- 0.18      59.64 +- 1.29

Under attack PMG-AFT is above FT-TeCoA with every seed, as in the paper. Clean it is below, other than there. Term by
term, seed 0, weights (alpha, beta), zero-shot clean and PGD-10: TeCoA is (0, 0) 69.61, 31.56; the generalisation branch
alone (1, 0) 71.64, 28.83; both (1, 1) 67.03, 34.06; (2, 1) 68.75, 32.03; (4, 1) 70.16, 29.61. As in the paper's Table 4
that branch raises the clean accuracy, and the regulariser pays clean for robust accuracy; other than there, the branch
alone does not raise the robust one. Why is not tested; so short a fine-tuning of TeCoA costs this CLIP two points of
clean accuracy and not thirteen, which leaves less to be kept.

    python launch/study.py --config=configs/pmg_aft_shapes.py --rows="method=pmg_aft" --seeds=0 \\
        --sweep=method.general_weight=2,4 --sweep=method.clean_weight=0

The radius, the rates and the lengths were chosen by looking at seed 0 with CLIPs of other sizes; alpha, beta and two
steps are the paper's. Another CLIP and seeds 3, 4, at which nobody had looked, zero-shot clean and PGD-10: TeCoA 66.02,
30.63 and 66.48, 30.63; PMG-AFT 63.75, 32.97 and 63.20, 32.73.

    python launch/study.py --config=configs/pmg_aft_shapes.py --config.pretrain.seed=1 --seeds=3,4 \\
        --rows="method=tecoa;method=pmg_aft"
"""

from configs import clip_shapes, common
from jrobust.data import shapes

EPS = "8/255"  # where the small CLIP gives way as the large one does at 1/255
ATTACK = {"eps": EPS, "step_size": "4/255", "num_steps": 2}
METHODS = {
    "ft": {"name": "standard"},
    "tecoa": {"name": "adversarial", **ATTACK},
    "pmg_aft": {
        "name": "pmg_aft",
        **ATTACK,
        "general_weight": 1.0,
        "clean_weight": 1.0,
        "distance": "kl",
        "kl_direction": "ori_adv",
        "reduction": "batchmean",  # the preset `scaled`: logits have the model's own scale
        "detach_clean": False,
        "original_prompts": "none",
    },
}
SOURCE = "shapes:color_background"
# Not with shapes, which so small a tower hardly tells apart: see configs/clip_shapes.py.
HELD_OUT = ("color", "texture", "background", "color_texture", "texture_background")


def get_config(argument: str = ""):
    """Return the config of one row or, where the words pick none, of the study of three; at full or test size."""
    args = common.arguments(argument, method="", runlocal=False)
    config = common.base()
    config.data.name = "shapes"
    config.data.options.update({"task": "color_background", "size": 2048, "ratio": shapes.UNRELATED, "seed": 1})
    config.pretrain = clip_shapes.get_config("runlocal" if args["runlocal"] else "")
    config.pretrain.seed = 0  # one CLIP for all
    config.model = clip_shapes.model()
    config.method = dict(common.choose("method", args["method"] or "pmg_aft", METHODS))
    config.train.batch_size = 64
    config.train.epochs = 5.0
    config.train.evaluate_every_epochs = 0.0
    config.train.log_every_steps = 16
    config.checkpoint.every_epochs = 4.0
    config.optimizer.update({"learning_rate": 3e-3, "nesterov": False, "schedule": "cosine", "warmup_steps": 25})
    config.evaluation.after_training = ("zero_shot",)
    config.evaluation.zero_shot = {
        "sets": (SOURCE, *(f"shapes:{task}" for task in HELD_OUT)),
        "source": SOURCE,
        "eps": EPS,
        "step_size": "2/255",
        "num_steps": 10,
        "attacks": ("pgd",),
        "examples": 256,
    }
    if not args["method"]:
        config.study = {
            "rows": ("method=ft", "method=tecoa", "method=pmg_aft"),
            "seeds": (0, 1, 2),
            "measures": (
                "zero_shot_average.clean",
                "zero_shot_average.pgd_10",
                f"{SOURCE}.clean",
                f"{SOURCE}.pgd_10",
            ),
        }
    if args["runlocal"]:
        config.data.options.size = 256
        config.train.update({"steps": 4, "log_every_steps": 2, "evaluate_examples": 64})
        config.checkpoint.every_steps = 2
        config.optimizer.warmup_steps = 2
        config.evaluation.zero_shot.update({"sets": (SOURCE, "shapes:texture"), "num_steps": 2, "examples": 64})
    return config
