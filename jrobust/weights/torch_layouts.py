"""PyTorch's names and axis orders for the networks of `jrobust.models`, both ways.

| layout | networks | differs from torchvision's names in |
|---|---|---|
| torchvision | ResNet-18, ResNet-50 | - |
| torchvision_vgg | VGG16 without batch norm | `features.2` for layer1/conv2, `classifier.3` for fc2 |
| cifar_resnet | akamaster's CIFAR ResNets, kuangliu's ResNet-18 | `linear` for fc, `shortcut` for downsample |
| wide_resnet | WRN-d-k of ART, TRADES, RobustBench | `block1.layer.0` for layer1/0, `convShortcut` for shortcut |
| vgg | VGG16 of FSR's released code | `block0.3` for layer1/conv2, `classifier.4` for fc |

The FSR module at its place in the released code (block4, of a wide ResNet block3) is `separation.sep_net`,
`recalibration.rec_net` and `aux.0` as there; one elsewhere, which no released code has, puts `fsr_block<i>.` before.
Wide ResNets of TRADES and their descendants carry a second copy of the first group that is never called,
`sub_block1`: it is passed over in reading and not written.

torchvision's file of VGG16's features alone (`vgg16_features-amdegroot`) has no usable numbers for the three linear
layers: it serves where these are to be new.

Convolutions are OIHW in PyTorch and HWIO here, linear weights (out, in) and (in, out).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jrobust.errors import InputError, unknown
from jrobust.models.classifier import Classifier
from jrobust.models.resnet import ResNet
from jrobust.models.small_cnn import MLP
from jrobust.models.tree import flatten, unflatten
from jrobust.models.vgg import VGG
from jrobust.models.wide_resnet import WideResNet
from jrobust.weights import arrays as arrays_file
from jrobust.weights.arrays import some

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
NEW_HEAD = "; to start with a new head of this model's classes, ask for it (replace_head, model.new_head)"
# An own leaf's axes in PyTorch's order, by name and rank.
AXES = {("kernel", 4): (3, 2, 0, 1), ("kernel", 2): (1, 0)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A naming: regular expressions that turn own dotted names, such as layer1.0.conv1, into foreign ones."""

    name: str
    rules: tuple[tuple[str, str], ...]
    marks: tuple[str, ...]  # a file with a key that starts with one of these has this layout
    unused: tuple[str, ...] = ()  # keys that start with one of these are passed over in reading

    def foreign(self, path: str) -> str:
        """Return the PyTorch name of an own path.

        >>> LAYOUTS["wide_resnet"].foreign("layer1/0/shortcut/kernel")
        'block1.layer.0.convShortcut.weight'
        >>> LAYOUTS["vgg"].foreign("layer1/conv2/kernel"), LAYOUTS["vgg"].foreign("fsr_block4/sep/bn1/mean")
        ('block0.3.weight', 'separation.sep_net.4.running_mean')
        """
        module, _, leaf = path.rpartition("/")
        module = module.replace("/", ".")
        for pattern, replacement in self.rules:
            module = re.sub(pattern, replacement, module)
        return f"{module}.{LEAVES[leaf]}"


# Layers of a Sequential, whose numbers count activations too: conv0 bn0 - conv1 bn1 - conv2.
FSR = (
    *(
        (rf"^(fsr_block\d)\.{own}\.{layer}{i}$", rf"\1.{foreign}.{3 * i + j}")
        for own, foreign in (("sep", "separation.sep_net"), ("rec", "recalibration.rec_net"))
        for j, layer in enumerate(("conv", "bn"))
        for i in range(3)
    ),
    (r"^(fsr_block\d)\.aux$", r"\1.aux.0"),
)
BLOCK3, BLOCK4 = ((*FSR, (rf"^fsr_{block}\.", "")) for block in ("block3", "block4"))
VGG_NAMES = (
    *(
        (rf"^layer(\d)\.{layer}{i + 1}$", rf"layer\1.{3 * i + j}")
        for j, layer in enumerate(("conv", "bn"))
        for i in range(3)
    ),
    *((f"^layer{i + 1}", f"block{i}") for i in range(5)),
    *((f"^{name}$", f"classifier.{2 * i}") for i, name in enumerate(("fc1", "fc2", "fc"))),
)
# Places of VGG16's convolutions, one tuple a group: between them are activations and max-pools.
VGG_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
TORCHVISION_VGG = (
    *(
        (rf"^layer{i}\.conv{j}$", f"features.{place}")
        for i, places in enumerate(VGG_PLACES, start=1)
        for j, place in enumerate(places, start=1)
    ),
    *((f"^{name}$", f"classifier.{3 * i}") for i, name in enumerate(("fc1", "fc2", "fc"))),
)
WIDE_NAMES = ((r"^layer(\d)\.(\d+)", r"block\1.layer.\2"), ("shortcut", "convShortcut"))

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("wide_resnet", WIDE_NAMES + BLOCK3, ("block1.layer.",), ("sub_block1.",)),
        Layout("torchvision_vgg", TORCHVISION_VGG + BLOCK4, ("features.",)),
        Layout("vgg", VGG_NAMES + BLOCK4, ("block0.",)),
        Layout("cifar_resnet", ((r"\bdownsample\b", "shortcut"), (r"^fc$", "linear"), *BLOCK4), ("linear.",)),
        Layout("torchvision", BLOCK4, ("conv1.", "layer1.", "fc.")),
    )
}


def detect(names: list[str]) -> Layout | None:
    """Return the layout of a file by its keys, or None."""
    for layout in LAYOUTS.values():
        if any(name.startswith(layout.marks) for name in names):
            return layout
    return None


def to_torch(params: Any, batch_stats: Any, layout: str = "torchvision") -> dict[str, np.ndarray]:
    """Return variables under PyTorch's names and axis orders: a state_dict but for `num_batches_tracked`.

    Raises:
      InputError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("layout of weights", layout, LAYOUTS)
    result = {}
    for path, leaf in (flatten(params) | flatten(batch_stats)).items():
        array = np.asarray(leaf)
        axes = AXES.get((path.rpartition("/")[2], array.ndim))
        result[LAYOUTS[layout].foreign(path)] = np.ascontiguousarray(array.transpose(axes) if axes else array)
    return result


def layout_of(classifier: Classifier) -> str:
    """Return the name of the layout that a network is written in: the one its PyTorch originals have."""
    module = classifier.module
    if isinstance(module, ResNet):
        return "cifar_resnet" if module.stem == "cifar" else "torchvision"
    if isinstance(module, VGG):
        return "vgg" if module.batch_norm else "torchvision_vgg"
    return "wide_resnet" if isinstance(module, WideResNet) else "torchvision"


def is_head(path: str) -> bool:
    """Return whether an own path is of a layer whose width is the number of classes, or of a CLIP's texts of classes.

    >>> [is_head(path) for path in ("fc/kernel", "fsr_block4/aux/bias", "text", "fc1/kernel")]
    [True, True, True, False]
    """
    return re.match(r"(fc|fsr_\w+/aux)/|text$", path) is not None


def write(path: str | pathlib.Path, classifier: Classifier, params: Any, batch_stats: Any) -> Layout:
    """Write a state_dict as .safetensors, for `load_state_dict` in PyTorch; return its layout.

    The file's metadata says what the network must be given: mean, std, size and range of the images.

    Raises:
      InputError: another ending, a network that PyTorch knows in no layout, or a folder that cannot be written.
    """
    path = pathlib.Path(path)
    if isinstance(classifier.module, MLP):
        raise InputError(
            "an mlp has no PyTorch layout (its first layer reads pixels in another order): use safetensors"
        )
    layout = LAYOUTS[layout_of(classifier)]
    needs = {"mean": classifier.mean, "std": classifier.std, "resize_to": classifier.resize_to, "range": (0, 1)}
    metadata = {"format": "pt", "layout": layout.name, "input": json.dumps(needs | {"shape": classifier.input_shape})}
    arrays_file.write(path, to_torch(params, batch_stats, layout.name), metadata)
    return layout


def from_torch(
    arrays: Mapping[str, np.ndarray], params: Any, batch_stats: Any, *, source: str, replace_head: bool = False
) -> tuple[Any, Any]:
    """Return `(params, batch_stats)` with the numbers of a PyTorch state_dict; every name and shape must fit.

    Args:
      arrays: by PyTorch's names; a prefix `module.` (DataParallel) and `num_batches_tracked` are passed over.
      params, batch_stats: fix the structure, shapes and dtypes; only a kept head gives numbers.
      source: the file's name, for messages.
      replace_head: keep the linear layer `fc` of `params` and the auxiliary heads, for other classes than the file's;
        of a VGG16 all linear layers, where the file has features alone.

    Raises:
      InputError: an unknown layout; missing or surplus names; a shape that differs; or no finite numbers of floating
        point.
    """
    names = {name.removeprefix("module."): name for name in arrays if not name.endswith("num_batches_tracked")}
    layout = detect(list(names))
    if layout is None:
        raise InputError(
            f"{source} has keys such as {some(sorted(names))}: expected one of the layouts {', '.join(LAYOUTS)}"
        )
    names = {name: full for name, full in names.items() if not name.startswith(layout.unused)}
    linear = [arrays[full] for name, full in names.items() if name.startswith("classifier.")]
    hollow = layout.name == "torchvision_vgg" and not any(np.isfinite(array).any() for array in linear)
    new: dict[str, dict[str, Any]] = {}
    expected = set()
    missing = []
    for collection, tree in (("params", params), ("batch_stats", batch_stats)):
        new[collection] = {}
        for path, old in flatten(tree).items():
            name = layout.foreign(path)
            expected.add(name)
            if replace_head and (is_head(path) or (hollow and path.startswith("fc"))):
                new[collection][path] = old
            elif name not in names:
                missing.append(name)
            else:
                new[collection][path] = _own(path, arrays[names[name]], old, f"{source}: {names[name]}")
    check_names(source, missing, sorted(set(names) - expected), layout.name)
    return unflatten(new["params"]), unflatten(new["batch_stats"])


def check_names(source: str, missing: list[str], surplus: list[str], layout: str) -> None:
    """Raise the InputError that names what a file lacks or has too much."""
    if missing or surplus:
        found = [f"lacks {some(missing)}"] if missing else []
        found += [f"has the surplus {some(surplus)}"] if surplus else []
        raise InputError(
            f"{source} ({layout} layout) {' and '.join(found)}: expected exactly this model's arrays; "
            "check model.name, depth and width"
        )


def fit(array: np.ndarray, old: Any, what: str, hint: str = NEW_HEAD) -> np.ndarray:
    """Return `array` in the dtype of `old`; InputError where shapes differ or it is not finite floating point.

    `hint` is what to do where shapes differ in the number of rows or of columns alone, as for other classes.
    """
    if array.shape != old.shape:
        raise InputError(
            f"{what} has shape {array.shape}, expected {tuple(old.shape)}: the file is of another model"
            f"{hint if array.shape[1:] == old.shape[1:] or array.shape[:-1] == old.shape[:-1] else ''}"
        )
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise InputError(f"{what} has dtype {array.dtype}, expected floating point: the file is of another kind")
    array = array.astype(old.dtype)
    if not np.isfinite(array).all():
        raise InputError(f"{what} has numbers that are not finite: the file is of other layers or of a failed training")
    return array


def _own(path: str, array: np.ndarray, old: Any, what: str) -> np.ndarray:
    """Return a foreign array in own axis order."""
    axes = AXES.get((path.rpartition("/")[2], array.ndim))
    return fit(array.transpose(np.argsort(axes)) if axes else array, old, what)
