"""Every config, at its local size, through the command of its docstring: train, evaluate, export, report.

Two steps on random pixels; what takes the time is compiling, so programs are compiled without optimisation, the
unrolled attacks are short, and ART, whose step is the largest program, trains on CIFAR-10 and the digits. The other
four differ from CIFAR-10 in data and numbers, which tests/configs checks, and CUB-200 in the mean over channels, which
tests/methods does; PGD and natural training reach them all the same. Of FSR every method has
its turn, with the module and without, and the digits every suite. Of BiasAdv every base method has its turn, and two
carry it. Of PMG-AFT, whose CLIP of one layer and whose vocabulary are written here, all of the loss and the prompts. Of
masked images, on one image in all of ImageNet's classes, the masked step, and on the shapes the plain one.
"""

import importlib
import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import pmgaft
from jrobust.data.bar import ACTIONS
from jrobust.data.imagenet_names import wnids
from jrobust.evaluation import Record
from jrobust.models.clip import CLIP
from jrobust.models.clip.architectures import Sizes
from jrobust.weights import clip_layouts
from tests import compilation
from tests.data.conftest import Layouts

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHORT = {
    "train.steps": 2,
    "train.batch_size": 4,
    "train.log_every_steps": 1,
    "train.evaluate_examples": 8,
    "evaluation.examples": 8,
    "evaluation.batch_size": 8,
}


class Case(NamedTuple):
    words: str  # behind the colon
    method: str
    suites: tuple[str, ...]
    classes: int
    changes: dict[str, object]
    data: str = ""  # name of the data set where the config's own name does not have it


CASES = {
    "art_cifar10": Case("variant=art", "art", ("accuracy",), 10, {"method.num_steps": 1}),
    "art_svhn": Case("variant=natural", "standard", ("accuracy",), 10, {}),
    "art_gtsrb": Case("variant=pgd", "adversarial", ("accuracy",), 43, {"method.num_steps": 2, "data.balance_to": 3}),
    "art_flower17": Case("variant=natural", "standard", ("accuracy",), 17, {"data.balance_to": 3}),
    "art_cub200": Case(
        "variant=natural",
        "standard",
        ("accuracy", "localization"),
        2,
        {"train.batch_size": 2, "data.image_size": 36, "data.augment.crop_size": 32},
    ),
    "art_digits": Case(
        "variant=art",
        "art",
        ("accuracy", "robustness", "attribution"),
        10,
        {
            "method.num_steps": 1,
            "evaluation.robustness.num_steps": (1,),
            "evaluation.robustness.sweep_steps": 1,
            "evaluation.attribution.num_steps": 1,
            "evaluation.attribution.num_points": 2,
            "evaluation.attribution.chunk": 2,
            "evaluation.attribution.examples": 4,
            "evaluation.attribution.batch_size": 4,
        },
    ),
    "fsr_cifar10": Case("method=trades,fsr", "trades", ("accuracy",), 10, {"method.num_steps": 1}),
    "fsr_svhn": Case("method=mart,fsr,model=vgg16", "mart", ("accuracy",), 10, {"method.num_steps": 1}),
    "fsr_cifar100": Case("method=mart,model=wrn34_10", "mart", ("accuracy",), 100, {"method.num_steps": 1}),
    "fsr_tiny_imagenet": Case("method=at", "adversarial", ("accuracy",), 2, {"method.num_steps": 1}),
    "fsr_digits": Case(
        "method=at,fsr",
        "adversarial",
        ("accuracy", "robustness", "sanity"),
        10,
        {
            "method.num_steps": 1,
            "evaluation.robustness.num_steps": (1,),
            "evaluation.robustness.cw_steps": (1,),
            "evaluation.sanity.iterations": (1,),
            "evaluation.sanity.radii": ("0.1",),
            "evaluation.sanity.num_steps": 1,
            "evaluation.sanity.queries": 2,
            "evaluation.sanity.examples": 8,
            "evaluation.sanity.batch_size": 8,
        },
    ),
}
BIASED = {"evaluation.bias.gallery": 2, "data.image_size": 16, "data.augment.crop_size": 12}
CASES |= {
    "biasadv_cifar10c": Case(
        "method=lff,biasadv", "lff", ("accuracy", "bias"), 10, {"method.biasadv.num_steps": 1}, data="corrupted_cifar10"
    ),
    "biasadv_bffhq": Case("method=erm", "standard", ("bias",), 2, {"data.image_size": 16}),
    "biasadv_bar": Case("method=jtt", "standard", ("bias",), 6, BIASED),
    "biasadv_metashift": Case("method=lff,ratio=6", "lff", ("bias",), 2, BIASED),
    "biasadv_colored_digits": Case(
        "method=erm,biasadv", "erm", ("accuracy", "bias"), 10, {"method.biasadv.num_steps": 1}
    ),
}
TOWERS = {"embed_dim": 8, "image_width": 16, "image_layers": 1, "image_heads": 1, "patch": 8}
TOWERS |= {"text_width": 16, "text_layers": 1, "text_heads": 1}
SMALL_CLIP = {f"model.sizes.{name}": value for name, value in TOWERS.items()}
SPELT = SMALL_CLIP | {"model.sizes.vocabulary": 515, "model.sizes.context": 77}  # single letters and one merge
FIRST = {f"pretrain.{name}": value for name, value in SMALL_CLIP.items()}
FIRST |= {"pretrain.train.steps": 2, "pretrain.train.batch_size": 8, "pretrain.data.options.size": 64}
CLIP_FILES = {"ViT-B-32.pt": "clip.safetensors", "bpe_simple_vocab_16e6.txt.gz": "merges.txt"}
CASES |= {
    "clip_shapes": Case("", "contrastive", ("accuracy",), 64, SMALL_CLIP | {"data.options.size": 64}),
    "pmg_aft_shapes": Case(
        "method=tecoa",
        "adversarial",
        ("zero_shot",),
        64,
        SMALL_CLIP | FIRST | {"method.num_steps": 1, "evaluation.zero_shot.num_steps": 1, "data.options.size": 64},
        data="shapes",
    ),
    "pmg_aft_tiny_imagenet": Case(
        "method=pmg_aft",
        "pmg_aft",
        ("zero_shot", "interpolation"),
        2,
        SPELT | {"method.num_steps": 1, "evaluation.zero_shot.num_steps": 1, "evaluation.interpolation.num_steps": 1},
        data="tiny_imagenet",
    ),
    "pmg_aft_cifar100": Case(
        "method=vpt_tecoa,eps=2/255",
        "adversarial",
        ("zero_shot",),
        100,
        SPELT | {"method.num_steps": 1, "evaluation.zero_shot.num_steps": 1, "evaluation.zero_shot.attacks": ("pgd",)},
        data="cifar100",
    ),
    "masked_images_shapes": Case(
        "method=ft",
        "standard",
        ("accuracy", "bias", "masking"),
        8,
        SMALL_CLIP | FIRST | {"data.options.size": 64},
        data="shapes",
    ),
    "masked_images_imagenet": Case(
        "method=masked,refilling=multi",
        "masked_images",
        ("natural_shift",),
        1000,
        SPELT | {"model.template": "a {}.", "method.groups": 1},
        data="imagenet",
    ),
}
# The words of the docstrings' commands, by paper or config. Without words the coloured digits are a study.
DOCUMENTED = {
    "art": ":variant=art",
    "fsr": ":method=at,fsr",
    "biasadv": ":method=lff,biasadv",
    "biasadv_metashift": ":method=jtt,biasadv",
    "biasadv_colored_digits": "",
    "clip": "",
    "pmg": ":method=pmg_aft",
    "pmg_aft_shapes": "",
    "masked": ":method=masked",
    "masked_images_shapes": "",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """One data folder with a few random images of every set."""
    layouts = Layouts(tmp_path_factory.mktemp("data"))
    layouts.cifar10()
    layouts.cub200()
    layouts.tiny_imagenet()
    for split in ("train", "test"):
        records = layouts.images(200, 2 + 32 * 32 * 3)
        records[:, 1] = np.arange(200) % 100  # the fine label
        (layouts.root / "cifar-100-binary").mkdir(exist_ok=True)
        (layouts.root / "cifar-100-binary" / f"{split}.bin").write_bytes(records.tobytes())
    for name, classes, size in (("svhn", 10, 32), ("gtsrb", 43, 32), ("flower17", 17, 40)):
        arrays = {}
        for split, count in (("train", 2 * classes), ("test", classes)):
            arrays[f"{split}_images"] = layouts.images(count, size, size, 3)
            arrays[f"{split}_labels"] = np.arange(count) % classes
        np.savez(layouts.root / f"{name}.npz", **arrays)
    layouts.write_text("cifar-100-binary/fine_label_names.txt", *(f"{k}th" for k in range(100)))
    write_biased(layouts)
    write_imagenet(layouts)
    write_clip(layouts)
    return layouts.root


@pytest.fixture(scope="module")
def process():
    """Runs the commands that are written to it."""
    words, pipe = [sys.executable, "-m", "tests.end_to_end.forks"], subprocess.PIPE
    with subprocess.Popen(
        words, cwd=ROOT, env=compilation.environment(), stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield process


def write_biased(layouts):
    """Write a few images of BAR, MetaShift, and of corrupted CIFAR-10 and BFFHQ as DFA lays them out."""
    for name, classes, size in (("cifar10c", 10, 32), ("bffhq", 2, 8)):
        for k in range(classes):
            other = (k + 1) % classes
            layouts.write_image(f"{name}/0.5pct/align/{k}/0_{k}_{k}.png", size, size)
            layouts.write_image(f"{name}/0.5pct/conflict/{k}/1_{k}_{other}.png", size, size)
            layouts.write_image(f"{name}/test/2_{k}_{k}.png", size, size)
            layouts.write_image(f"{name}/test/3_{k}_{other}.png", size, size)
    for action in ACTIONS:
        for i in range(2):
            layouts.write_image(f"BAR/train/{action}_{i}.jpg")
            layouts.write_image(f"BAR/test/{action}_{i}.jpg")
    groups = {}
    for split, conflicting, count in (("train", 1, 16), ("val_out_of_domain", 2, 4)):
        for pet, places in (("cat", ("indoor", "outdoor")), ("dog", ("outdoor", "indoor"))):
            for i in range(count):
                image = f"{pet}-{split}-{i}"
                groups[image] = f"{pet}({places[i < conflicting]})"
                layouts.write_image(f"MetaShift-subpopulation-shift/{split}/{pet}/{image}.jpg")
    (layouts.root / "MetaShift-subpopulation-shift" / "groups.json").write_text(json.dumps(groups))


def write_imagenet(layouts):
    """Write one image, which is in every class of both splits, twice in training: one of each class is held out."""
    layouts.write_image("image.png", 16, 24)
    for split, wnid in itertools.product(("train", "val"), wnids()):
        folder = layouts.root / "imagenet" / split / wnid
        folder.mkdir(parents=True)
        for name in ("image", "again")[: 2 if split == "train" else 1]:
            (folder / f"{name}.png").hardlink_to(layouts.root / "image.png")


def write_clip(layouts):
    """Write a CLIP of the local size of PMG-AFT, with the changes of its cases, and its vocabulary."""
    changed = {name.rpartition(".")[2]: value for name, value in SPELT.items()}
    clip = CLIP(Sizes(**pmgaft.build("runlocal", "cifar100").model.sizes.to_dict() | changed))
    clip_layouts.write(layouts.root / CLIP_FILES["ViT-B-32.pt"], clip.init(jax.random.key(0)))
    layouts.write_text(CLIP_FILES["bpe_simple_vocab_16e6.txt.gz"], "a header", "t h")


def command(name, data_dir, workdir):
    """Return the words of the docstring's command for this machine, with what the case changes."""
    case = CASES[name]
    text = importlib.import_module(f"configs.{name}").__doc__.replace("\\\n", " ")
    (line,) = re.findall(r"^ {4}python (launch/run\.py .*)$", text, re.MULTILINE)
    words = [word.replace("=DATA", f"={data_dir}").replace("=RUN", f"={workdir}") for word in shlex.split(line)]
    words = [word.strip("[]") for word in words]  # what may be left out
    for file, ours in CLIP_FILES.items():
        words = [word.replace(f"={file}", f"={data_dir / ours}") for word in words]
    # Of the other files of weights there is none here.
    words = [word for word in words if not word.startswith("--config.model.weights=") or str(data_dir) in word]
    position = next(i for i, word in enumerate(words) if word.startswith("--config="))
    documented = DOCUMENTED.get(name, DOCUMENTED[name.partition("_")[0]])
    assert words[position] == f"--config=configs/{name}.py{documented}"
    words[position] = f"--config=configs/{name}.py:{','.join(filter(None, (case.words, 'runlocal')))}"
    if f"--workdir={workdir}" not in words:
        words.append(f"--workdir={workdir}")
    changes = (
        SHORT
        | case.changes
        | ({} if name.endswith(("_digits", "_shapes")) else {"evaluation.after_training": case.suites})
    )
    return [*words, *(f"--config.{key}={value}" for key, value in changes.items())]


def test_every_config_is_here():
    assert set(CASES) == {path.stem for path in (ROOT / "configs").glob("[!_]*_*.py")}


@pytest.mark.parametrize("name", CASES)
def test_config(name, data_dir, process, tmp_path):
    case, workdir = CASES[name], tmp_path / "run"
    print(json.dumps([command(name, data_dir, workdir), str(tmp_path / "output")]), file=process.stdin, flush=True)
    status = int(process.stdout.readline())
    output = (tmp_path / "output").read_text()
    # After two steps a check of the sanity suite may well fail, which is then said and is the status.
    assert status == ("sanity failed" in output), output

    config = json.loads((workdir / "config.json").read_text())
    assert config["train"]["steps"] == 2 and config["data"]["name"] == (case.data or name.partition("_")[2])
    assert config["method"]["name"] == case.method
    assert all((part in config["method"]) == (part in case.words) for part in ("fsr", "biasadv"))
    assert (workdir / "error_set.json").exists() == case.words.startswith("method=jtt")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(losses) == [1, 2] and np.isfinite(list(losses.values())).all()
    assert any(f"{config['train']['evaluate_split']}_accuracy" in line for line in lines)
    assert (workdir / "checkpoints" / "2").is_dir()

    assert {path.stem for path in (workdir / "evaluation").glob("*.json")} == set(case.suites)
    page = (workdir / "report" / "index.html").read_text()
    for suite in case.suites:
        record = Record.read(workdir / "evaluation" / f"{suite}.json")
        assert (record.suite, record.step, record.model) == (suite, 2, "run") and record.metrics
        assert suite in page
    weights = load_file(workdir / "export" / "model.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())
    assert any(case.classes in array.shape for array in weights.values())  # the linear layer
