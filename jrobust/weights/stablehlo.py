"""A model as one compiled-anywhere program: StableHLO with the weights inside, read by JAX alone.

    import jax
    model = jax.export.deserialize(open("model.stablehlo", "rb").read())
    logits = model.call(images)                                # images float32[any batch, H, W, C] in [0, 1]
    gradient = jax.grad(lambda x: model.call(x)[:, 0].sum())(images)

So a trained network can be attacked, explained and served where this library is not installed. JAX promises to read
such files for at least six months after they were written.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

import jrobust
from jrobust.errors import InputError
from jrobust.models.network import Network
from jrobust.weights import arrays as arrays_file

FORMAT = "jax-export-1"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
USE = (
    "import jax  # and the package flatbuffers; nothing else",
    "model = jax.export.deserialize(open('{name}', 'rb').read())",
    "logits = model.call(images)  # a float32 array of shape {shape} in [0, 1]",
    "gradient = jax.grad(lambda x: model.call(x)[:, 0].sum())(images)",
)


def write(
    path: str | pathlib.Path,
    logits: Callable[[jax.Array], jax.Array],
    classifier: Network,
    *,
    class_names: Sequence[str] = (),
    data_set: str = "",
    threat_model: str = "",
    source: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a function of images as a serialized `jax.export` program; return what its .json file says.

    The program takes any batch size, runs on CPU, NVIDIA and AMD GPUs and TPUs, and can be differentiated once. The
    file holds the weights twice, in the program and in its derivative. What the function does with batch
    norm, dropout and masks is fixed in it.

    Args:
      path: ends in .stablehlo; the description is written beside it, with .json added to the name.
      logits: float32[B, H, W, C] in [0, 1] -> float32[B, K], with the preprocessing inside; what it captures becomes
        part of the program.
      classifier: says the shape of the images and the preprocessing.
      class_names: in the order of the logits; () if they have none.
      data_set, threat_model, source, extra: as in `jrobust.weights.safetensors_file.write`.

    Raises:
      InputError: another ending, class names that are not one for each logit, the package flatbuffers is missing, or
        a folder that cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".stablehlo":
        raise InputError(f"the output {path} has the ending {path.suffix!r}: expected a name such as model.stablehlo")
    if class_names and len(class_names) != classifier.num_classes:
        raise InputError(f"{len(class_names)} class names for {classifier.num_classes} classes: expected one for each")
    try:
        import flatbuffers  # noqa: F401  of which jax.export makes the file
    except ImportError as error:
        raise InputError(
            "the format stablehlo needs the package flatbuffers, which is not installed: pip install flatbuffers"
        ) from error
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *classifier.input_shape), jnp.float32)
    program = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    content = bytes(program.serialize(vjp_order=1))
    height, width, channels = classifier.input_shape
    shape = f"(batch, {height}, {width}, {channels})"
    description = {
        "format": FORMAT,
        "use": [line.format(name=path.name, shape=shape) for line in USE],
        "input": {
            "images": f"float32, {shape}, any batch size" + (", channels RGB" if channels == 3 else ""),
            "range": [0.0, 1.0],
            "preprocessing": "inside: give pixels in [0, 1] as they are",
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "resize_to": classifier.resize_to,
        },
        "output": f"float32, (batch, {classifier.num_classes}): logits",
        "num_classes": classifier.num_classes,
        "class_names": list(class_names),
        "platforms": list(program.platforms),
        "derivatives": 1,
        "versions": {
            "jrobust": jrobust.__version__,
            "jax": jax.__version__,
            "calling_convention": program.calling_convention_version,
        },
        "data_set": data_set,
        "threat_model": threat_model,
        "source": dict(source or {}),
        "extra": dict(extra or {}),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    text = json.dumps(description, indent=1)
    arrays_file.write_bytes(path, content)
    arrays_file.write_bytes(path.with_name(path.name + ".json"), (text + "\n").encode())
    return json.loads(text)
