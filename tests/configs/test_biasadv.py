"""Every cell of the tables of BiasAdv's supplementary is the value of a config field. Sources: docs/biasadv.md."""

import importlib
import pathlib
import re

import pytest

from jrobust import data, methods, units
from jrobust.data import corruptions, registry
from jrobust.errors import InputError
from jrobust.evaluation import suites
from jrobust.models import zoo
from jrobust.training import optimizers

METHODS = ("erm", "jtt", "lff")
# Tables 1 to 4 of the supplementary as they are printed: ERM, JTT and LfF, each with BiasAdv.
CELLS = """
               cifar10c          | bffhq             | bar            | metashift
pretrained     no no no          | no no no          | yes yes yes    | yes yes yes
theta epochs   200 50 200        | 150 50 150        | 20 20 20       | 10 1 10
phi epochs     200 20 200        | 150 9 150         | 20 10 20       | 10 1 10
lambda         1 1 0.5           | 0.5 1 0.5         | 1 1 0.5        | 1 0.5 1
eps            1 0.5 0.5         | 0.3 0.5 0.3       | 0.1 0.1 0.3    | 0.5 0.7 0.5
S              5 5 5             | 5 5 5             | 9 3 7          | 3 1 3
beta           2 1 1             | 0.5 1 0.5         | 1.5 0.5 0.5    | 0.5 1.5 0.5
N_up           - 50 -            | - 20 -            | - 10 -         | - 10 -
batch size     128 128 128       | 64 64 64          | 64 64 64       | 32 32 32
learning rate  1e-3 1e-3 1e-3    | 1e-4 1e-4 1e-4    | 1e-3 1e-3 1e-3 | 2e-5 2e-5 2e-5
weight decay   1e-4 1e-4 1e-4    | 1e-4 1e-4 1e-4    | 1e-4 1e-4 1e-4 | 1e-4 0 1e-4
StepLR epochs  40 10 40          | 30 10 30          | 10 10 10       | - - -
StepLR factor  0.5 0.5 0.5       | 0.5 0.5 0.5       | 0.5 0.5 0.5    | - - -
"""
# Of the main paper, for all methods.
MAIN_CELLS = """
        cifar10c | bffhq | bar | metashift
lambda  1        | 0.5   | 0.5 | 0.5
eps     0.7      | 0.3   | 0.3 | 0.5
S       5        | 5     | 7   | 3
beta    1.5      | 0.5   | 0.5 | 1
"""
RATIOS = {"cifar10c": (0.5, 1, 2, 5), "bffhq": (0.5,), "bar": (1, 5), "metashift": (1, 6, 12)}
ROWS = tuple(f"method={name}{more}" for name in METHODS for more in ("", ",biasadv"))
ABLATIONS = tuple(f"method={m},biasadv,ablation={a}" for m in ("erm", "lff") for a in ("random", "advprop", "lam0"))
PRESETS = {
    "linf_pixel_fixed": ("linf", "pixel", 2 / 255),
    "linf_norm": ("linf", "normalized", 0.3 / 5),
    "l2_pixel": ("l2", "pixel", 2.5 * 0.3 / 5),
}


def get(name, words):
    return importlib.import_module(f"configs.biasadv_{name}").get_config(words).lock()


def cells(table):
    """{(row, data set): the words of its cells}"""
    header, *rows = [re.split(r" *\| *", line) for line in table.strip("\n").splitlines()]
    names = [header[0].strip(), *header[1:]]
    found = {}
    for first, *rest in rows:
        row, first = re.fullmatch(r"(\w+(?: \w+)?) {2,}(\S.*?) *", first).groups()
        found |= {(row, name): cell.split() for name, cell in zip(names, [first, *rest], strict=True)}
    return found


def number(word):
    return None if word == "-" else float(word)


def rate(config, epoch):
    return optimizers.build(config.optimizer, {"w": 0.0}, steps_per_epoch=1, total_steps=100).learning_rate(epoch)


def parts(config):
    """The network and the method, as the command makes them, without data."""
    side = config.data.augment.crop_size or config.data.image_size or 32
    classifier = zoo.build(config.model, num_classes=6, input_shape=(side, side, 3))
    return classifier, methods.build(config.method, classifier, num_examples=7)


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("column", range(3))
def test_every_cell(name, column):
    config = get(name, f"method={METHODS[column]},biasadv")
    expected = {row: words[column] for (row, of), words in cells(CELLS).items() if of == name}
    assert len(expected) == 13
    attack, jtt = config.method.biasadv, config.get("jtt")
    found = {
        "pretrained": "yes" if config.model.get("new_head") else "no",
        "theta epochs": config.train.epochs,
        "phi epochs": jtt.epochs if jtt else config.train.epochs,
        "lambda": attack.debiased_weight,
        "eps": units.number(attack.eps),
        "S": attack.num_steps,
        "beta": attack.adv_weight,
        "N_up": jtt.copies if jtt else None,
        "batch size": config.train.batch_size,
        "learning rate": config.optimizer.learning_rate,
        "weight decay": config.optimizer.weight_decay,
    }
    every, factor = number(expected.pop("StepLR epochs")), number(expected.pop("StepLR factor"))
    assert found == {row: word if row == "pretrained" else number(word) for row, word in expected.items()}
    for epoch in range(int(config.train.epochs)):
        drops = epoch // every if every else 0
        assert rate(config, epoch) == pytest.approx(config.optimizer.learning_rate * (factor or 1.0) ** drops)
    assert config.method.name == METHODS[column] and ("jtt" in config) == (METHODS[column] == "jtt")
    gce = (config.method.get("q"), config.method.get("gce_form"))
    assert gce == ((None, None) if METHODS[column] == "jtt" else (0.7, "lff"))


@pytest.mark.parametrize("name", RATIOS)
def test_the_main_papers_numbers(name):
    expected = {row: number(words[0]) for (row, of), words in cells(MAIN_CELLS).items() if of == name}
    for method in METHODS:
        config = get(name, f"method={method},biasadv,numbers=main")
        attack, usual = config.method.biasadv, get(name, f"method={method},biasadv").to_dict()
        found = (attack.debiased_weight, units.number(attack.eps), attack.num_steps, attack.adv_weight)
        assert found == (expected["lambda"], expected["eps"], expected["S"], expected["beta"])
        usual["method"]["biasadv"] = attack.to_dict()  # and nothing else differs
        assert config.to_dict() == usual


@pytest.mark.parametrize("name", RATIOS)
def test_what_all_rows_share(name):
    image_size, crop, padding = {
        "cifar10c": (0, 0, 4),
        "bffhq": (224, 0, 4),
        "bar": (246, 224, 0),
        "metashift": (256, 224, 0),
    }[name]
    imagenet = name in ("bar", "metashift")
    mean = (0.485, 0.456, 0.406) if imagenet else (0.4914, 0.4822, 0.4465)
    std = (0.229, 0.224, 0.225) if imagenet else (0.2023, 0.1994, 0.2010)
    for row in ROWS:
        config = get(name, row)
        assert (config.model.name, config.model.weights) == ("resnet18", "")
        assert (tuple(config.model.mean), tuple(config.model.std)) == (mean, std)
        o = config.optimizer
        assert (o.name, o.betas, o.epsilon, o.fast_layers) == ("adam", (0.9, 0.999), 1e-8, ())
        augment = config.data.augment
        assert (config.data.image_size, augment.crop_size, augment.crop_padding) == (image_size, crop, padding)
        assert (augment.flip, augment.resized_crop) == (True, imagenet)
        assert config.data.options.get("fit") == ("crop" if imagenet else None)
        assert config.data.options.ratio == RATIOS[name][0]
        assert config.evaluation.after_training == ("accuracy", "bias")
        assert (config.train.evaluate_split, config.train.evaluate_examples) == ("test", 0)


@pytest.mark.parametrize("name", RATIOS)
def test_a_baseline_is_its_row_without_the_attack(name):
    for method in METHODS:
        base, row = get(name, f"method={method}").to_dict(), get(name, f"method={method},biasadv").to_dict()
        assert row["method"].pop("biasadv")
        if method != "lff":
            row["method"] = {"name": "standard"}
        assert base == row


@pytest.mark.parametrize("name", (*RATIOS, "colored_digits"))
def test_every_row_is_a_command_at_both_sizes(name):
    words = [*ROWS, *ABLATIONS, *(f"method=lff,biasadv,preset={preset}" for preset in PRESETS)]
    for row in words:
        for more in ("", ",runlocal"):
            config = get(name, row + more)
            _, method = parts(config)
            assert isinstance(method, methods.BiasAdv) == ("biasadv" in row.split(","))
            assert set(config.data.options) == set(registry.DATA_SETS[config.data.name].options)
            data.Augmentation.of(config.data.augment)
            suites.settings_of("bias", config.evaluation.bias)
            assert (config.train.steps > 0) == bool(more)
            assert not more or config.model.name == "small_cnn"
            assert "study" not in config


def test_ratios():
    for name, ratios in RATIOS.items():
        for ratio in ratios:
            assert get(name, f"method=lff,ratio={ratio}").data.options.ratio == ratio
        with pytest.raises(InputError, match=f"expected one of {ratios[0]}"):
            get(name, "ratio=3")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    config = get("bffhq", f"method=lff,biasadv,preset={preset}")
    _, method = parts(config)
    section, (norm, space, step) = config.method.biasadv, PRESETS[preset]
    assert (section.norm, section.space, section.eps, section.num_steps) == (norm, space, "0.3", 5)
    assert (method.step_size or method.step_ratio * method.eps / method.num_steps) == pytest.approx(step)
    assert (section.random_start, section.batch_norm) == (False, "eval")
    assert (section.auxiliary_norm, section.attack_norm, section.objective) == (True, "auxiliary", "biasadv")


def test_an_ablation_changes_its_field_alone():
    for word, field, value in (
        ("random", "objective", "random"),
        ("advprop", "objective", "advprop"),
        ("lam0", "debiased_weight", 0.0),
    ):
        changed = get("bffhq", f"method=lff,biasadv,ablation={word}").to_dict()
        plain = get("bffhq", "method=lff,biasadv").to_dict()
        assert changed["method"]["biasadv"].pop(field) == value != plain["method"]["biasadv"].pop(field)
        assert changed == plain


def test_lff_and_jtt_count_as_their_papers():
    section = get("cifar10c", "method=lff").method
    assert (section.weight, section.alpha, section.q, section.gce_form) == ("ema_classmax", 0.7, 0.7, "lff")
    section = get("cifar10c", "method=jtt").jtt
    assert (section.count, section.error_set) == ("total", "eval_pass")


def test_table_6_is_measured_on_bffhq():
    assert get("bffhq", "").evaluation.bias.corruptions == corruptions.CORRUPTIONS
    assert get("cifar10c", "").evaluation.bias.corruptions == ()


def test_without_a_row_colored_digits_is_a_study_of_three():
    study = get("colored_digits", "").study
    assert study.rows == ("method=erm", "method=lff", "method=lff,biasadv")
    assert study.seeds == (0, 1, 2) and study.measures[0] == "conflicting"


NUMBER = r"\d\d\.\d\d \+- \d\.\d\d"
PUBLISHED = re.compile(rf"^ {{4}}(method=\S+) +({NUMBER}.*)$", re.M)


@pytest.mark.parametrize("name", RATIOS)
def test_the_docstring_has_every_row_and_the_page_its_numbers(name):
    lines = PUBLISHED.findall(importlib.import_module(f"configs.biasadv_{name}").__doc__)
    rows = ROWS + (ABLATIONS if name == "bffhq" else ())
    assert [words for words, _ in lines] == list(rows) * (2 if name == "metashift" else 1)
    columns = {"bffhq": 2, "cifar10c": 3, "bar": 2, "metashift": 3}[name]
    page = (pathlib.Path(__file__).parents[2] / "docs" / "biasadv.md").read_text(encoding="utf-8")
    for _, numbers in lines:
        numbers = re.findall(NUMBER, numbers)
        assert len(numbers) == columns
        assert all(number in page for number in numbers)


def test_misspelt_arguments():
    for words, message in {
        "method=lfff": "did you mean 'lff'",
        "method=lff,biasad": "did you mean 'biasadv'",
        "biasadv=1": "of the form 'biasadv'",
        "biasadv,preset=linf_nrm": "did you mean 'linf_norm'",
        "biasadv,numbers=mian": "did you mean 'main'",
        "biasadv,ablation=lam": "did you mean 'lam0'",
        "ratio=half": "expected one of 0.5, 1, 2, 5",
        "method=lff,preset=l2_pixel": "there is none: write biasadv,preset=l2_pixel",
        "method=lff,ablation=lam0": "there is none",
        "numbers=main": "there is none",
    }.items():
        with pytest.raises(InputError, match=message):
            get("cifar10c", words)
    with pytest.raises(InputError, match="main paper has no such data set"):
        get("colored_digits", "method=lff,biasadv,numbers=main")
