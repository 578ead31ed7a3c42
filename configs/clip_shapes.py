"""A small CLIP, trained on the `shapes` world from nothing: what the fine-tuning demonstrations begin with.

    python launch/run.py --config=configs/clip_shapes.py [--workdir=RUN]

Images of coloured, textured shapes on backgrounds find their captions within the batch. All of the model, both towers,
is exported as RUN/export/clip.safetensors under the names of OpenAI's files, which `model.weights` of another config
takes. Accuracy during training is zero-shot, on the task of `data.options`.

Three minutes on two CPU cores with jax 0.10.2. In the end 13.2 % of the pairs of a color and a shape are right, of 64:
colors are learnt, shapes are hardly better than chance. Of colors alone, backgrounds and textures the model of
configs/pmg_aft_shapes.py, which is this one, gets 98.8, 100.0 and 50.8 % (of 4 textures).
"""

from configs import common
from jrobust.data import shapes

SIZES = {
    "embed_dim": 64,
    "image_size": 32,
    "image_width": 128,
    "image_layers": 4,
    "image_heads": 2,
    "patch": 8,
    "text_width": 64,
    "text_layers": 2,
    "text_heads": 2,
    "vocabulary": shapes.VOCABULARY,
    "context": 16,
}


def model() -> dict:
    """Return the section of the model."""
    return {
        "name": "clip",
        "architecture": "",
        "sizes": dict(SIZES),
        "activation": "quick_gelu",
        "interpolation": "bicubic",
        "scaled": True,
        "template": "",  # the data set's own
        "vocabulary": "shapes",
        "dtype": "float32",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "weights": "",
    }


def get_config(argument: str = ""):
    """Return the config at full or test size."""
    args = common.arguments(argument, runlocal=False)
    config = common.base()
    config.data.name = "shapes"
    config.data.options.update({"task": "color_shape", "size": 5120, "ratio": shapes.UNRELATED, "seed": 0})
    config.data.captions = 16  # of each image; every step draws one
    config.model = model()
    config.method = {"name": "contrastive"}
    config.train.batch_size = 128
    config.train.epochs = 18.0
    config.train.evaluate_every_epochs = 5.0
    config.train.log_every_steps = 20
    config.checkpoint.every_epochs = 5.0
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": 1.5e-3,
            "betas": (0.9, 0.98),
            "epsilon": 1e-6,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "schedule": "cosine",
            "warmup_steps": 40,
        }
    )
    if args["runlocal"]:
        config.data.options.size = 512
        config.train.update({"steps": 20, "batch_size": 64, "evaluate_examples": 128, "log_every_steps": 5})
        config.checkpoint.every_steps = 10
        config.evaluation.examples = 128
        config.optimizer.warmup_steps = 5
    return config
