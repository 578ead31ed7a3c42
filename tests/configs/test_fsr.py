"""Every number of the paper's tables and of its released code is the value of a config field. Sources: docs/fsr.md."""

import importlib
import re

import jax
import pytest

from jrobust import methods
from jrobust.data import registry
from jrobust.errors import InputError
from jrobust.evaluation import suites
from jrobust.models import zoo
from jrobust.training import optimizers

DATA_SETS = ("cifar10", "svhn", "cifar100", "tiny_imagenet", "digits")
BASES = tuple(f"method={name}{more}" for name in ("at", "trades", "mart") for more in ("", ",fsr"))
AT_FSR = "method=at,fsr"
# The rows of a table by the words of their commands.
TABLES = {
    "S1": ("cifar100", BASES),
    "S2": ("tiny_imagenet", BASES),
    "S3": ("cifar10", tuple(f"{row},model=wrn34_10" for row in BASES)),
    "S4": ("cifar10", (AT_FSR, *(f"{AT_FSR},position={p}" for p in ("block1", "block2", "block3", "block3+block4")))),
    "S5": (
        "cifar10",
        ("method=at", AT_FSR, *(f"{AT_FSR},separation_loss={f}" for f in ("uniform", "entropy_max", "avg_targeted"))),
    ),
    "S6": ("cifar10", (AT_FSR, f"{AT_FSR},mask=binary")),
    "S7": ("cifar10", (AT_FSR, *(f"{AT_FSR},separation={kind}" for kind in ("greedy", "random", "none")))),
}
ROWS = {f"{name}:{row}" for name, rows in TABLES.values() for row in rows} | {
    f"{name}:{row}{model}" for name in ("cifar10", "svhn") for row in BASES for model in ("", ",model=vgg16")
}


def get(name, words=AT_FSR):
    return importlib.import_module(f"configs.fsr_{name}").get_config(words).lock()


def parts(config):
    """The network and the method, as the command makes them, without data."""
    data_set = registry.DATA_SETS[config.data.name]
    classifier = zoo.build(config.model, num_classes=data_set.num_classes, input_shape=data_set.image_shape)
    return classifier, methods.build(config.method, classifier)


@pytest.mark.parametrize("row", sorted(ROWS) + [f"digits:{row}" for row in BASES])
def test_every_row_is_a_command_at_both_sizes(row):
    name, _, words = row.partition(":")
    for more in ("", ",runlocal"):
        config = get(name, words + more)
        classifier, method = parts(config)
        assert isinstance(method, methods.FSR) == ("fsr" in words.split(","))
        if isinstance(method, methods.FSR):
            classifier.module.fsr.check_positions(classifier.module.blocks)
        assert (config.train.steps > 0) == bool(more)
        for suite, section in config.evaluation.items():
            if suite in suites.SUITES:
                suites.settings_of(suite, section)
        with pytest.raises(AttributeError, match="epochs"):
            config.train.epoch = 3


@pytest.mark.parametrize("table", TABLES)
def test_the_docstring_has_the_rows_of_the_table(table):
    name, rows = TABLES[table]
    lines = re.findall(
        r"^ {4}(method=\S+)((?: +(?:-|\d\d\.\d\d)){6,7})", importlib.import_module(f"configs.fsr_{name}").__doc__, re.M
    )
    documented = {words: numbers.split() for words, numbers in lines}
    assert set(rows) <= set(documented)
    for row in rows:
        numbers = [float(number) for number in documented[row][1:6] if number != "-"]
        assert len(numbers) == 5 and numbers[-1] == min(numbers)  # the Ensemble counts what withstands all others


@pytest.mark.parametrize("name", ("cifar10", "svhn", "cifar100", "tiny_imagenet"))
def test_training(name):
    config = get(name)
    m, o = config.method, config.optimizer
    step, rate, augmented = ("1/255", 0.01, False) if name == "svhn" else ("2/255", 0.1, True)
    assert (m.name, m.eps, m.step_size, m.num_steps, m.batch_norm) == ("adversarial", "8/255", step, 10, "eval")
    assert (o.learning_rate, o.momentum, o.nesterov, o.weight_decay) == (rate, 0.9, False, 5e-4)
    assert (config.train.batch_size, config.train.epochs) == (128, 100.0)
    augment = config.data.augment
    assert (augment.crop_padding, augment.flip) == ((4, True) if augmented else (0, False))
    assert (augment.crop_size, augment.jitter, augment.rotation) == (0, 0.0, 0.0)
    assert set(config.model.mean) == {0.0} and set(config.model.std) == {1.0}  # no normalisation
    assert config.data.balance_to == 0
    for words in BASES:  # one schedule for all rows
        assert get(name, words).optimizer == o and get(name, words).train == config.train


def test_epochs_1_to_74_have_the_whole_rate():
    section, per_epoch = get("cifar10").optimizer, 390
    rate = optimizers.build(section, {"w": 0.0}, steps_per_epoch=per_epoch, total_steps=100 * per_epoch).learning_rate
    last, first = [74 * per_epoch - 1, 89 * per_epoch - 1], [74 * per_epoch, 89 * per_epoch]
    assert [rate(step) for step in (0, *last, *first)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_base_methods():
    trades, mart = (get("cifar10", f"method={name}").method for name in ("trades", "mart"))
    for section in (trades, mart):
        assert (section.eps, section.step_size, section.num_steps, section.start_noise) == ("0.031", "0.007", 10, 0.001)
    assert (trades.kl_weight, trades.bn_updates, mart.kl_weight) == (6.0, "two", 5.0)


def test_the_module_and_its_losses():
    config = get("cifar10")
    _, method = parts(config)
    assert config.model.fsr.to_dict() == {
        "positions": ("block4",),
        "hidden": 64,
        "tau": 0.1,
        "mask": "gumbel",
        "straight_through": False,
        "separation": "learned",
        "recalibrated_fraction": 0.5,
        "noise": "two_gumbel",
    }
    assert (method.separation_weight, method.recalibration_weight) == (1.0, 1.0)
    assert (method.separation_loss, method.auxiliary_on, method.auxiliary_kl) == ("mispredicted", "adv", False)
    assert get("cifar10", f"{AT_FSR},model=vgg16").model.fsr.positions == ("block4",)
    assert get("cifar10", f"{AT_FSR},model=wrn34_10").model.fsr.positions == ("block3",)


def test_an_ablation_changes_its_field_alone():
    plain = get("cifar10").to_dict()
    for word, path, value in (
        ("position=block3+block4", ("model", "positions"), ("block3", "block4")),
        ("separation_loss=uniform", ("method", "separation_loss"), "uniform"),
        ("mask=binary", ("model", "mask"), "binary"),
        ("separation=greedy", ("model", "separation"), "greedy"),
    ):
        changed = get("cifar10", f"{AT_FSR},{word}").to_dict()
        section, field = path
        assert changed[section]["fsr"].pop(field) == value
        expected = get("cifar10").to_dict()
        expected[section]["fsr"].pop(field)
        assert changed == expected != plain


@pytest.mark.parametrize(
    ("words", "parameters"),
    {
        "method=at": 11_173_962,
        "method=at,fsr": 11_173_962 + 1_259_018,
        "method=at,model=vgg16": 15_253_578,
        "method=at,fsr,model=vgg16": 15_253_578 + 1_259_018,
        "method=at,model=wrn34_10": 46_160_474,
        "method=at,fsr,model=wrn34_10": 46_160_474 + 1_555_210,
    }.items(),
)
def test_parameters(words, parameters):
    classifier, _ = parts(get("cifar10", words))
    assert zoo.count(jax.eval_shape(classifier.init, jax.random.key(0))[0]) == parameters


def test_evaluation():
    evaluation = get("cifar10").evaluation
    assert evaluation.after_training == ("accuracy", "robustness", "sanity")
    r = evaluation.robustness
    assert (r.eps, r.step_size, r.num_steps, r.random_start) == ("8/255", "0.8/255", (20, 100), False)
    assert (r.cw_steps, r.cw_confidence) == ((30,), 50.0)
    a = evaluation.autoattack
    assert (a.norm, a.eps, a.version, a.examples) == ("linf", "8/255", "standard", 0)
    s = evaluation.sanity
    assert (s.eps, s.step_size, s.examples, s.iterations[-1], s.radii[-1]) == ("8/255", "0.8/255", 64, 200, "255/255")
    assert get("digits").evaluation.robustness.eps == get("digits").method.eps == "0.1"


def test_local_networks_are_small_and_keep_the_last_position():
    for model, positions in {"resnet18": ("block3",), "vgg16": ("block3",), "wrn34_10": ("block3",)}.items():
        config = get("cifar10", f"{AT_FSR},model={model},runlocal")
        classifier, _ = parts(config)
        assert zoo.count(jax.eval_shape(classifier.init, jax.random.key(0))[0]) < 130_000
        assert config.model.fsr.positions == positions
    assert get("cifar10", f"{AT_FSR},position=block3+block4,runlocal").model.fsr.positions == ("block2", "block3")
    assert get("digits", f"{AT_FSR},runlocal").model.fsr.positions == ("block3",)


def test_misspelt_arguments():
    for words, message in {
        "method=trade": "did you mean 'trades'",
        "model=resnet": "did you mean 'resnet18'",
        "fsr,separation_los=uniform": "did you mean 'separation_loss'",
        "fsr=1": "of the form 'fsr'",
        "mask=binary": "there is none: write fsr,mask=binary",
    }.items():
        with pytest.raises(InputError, match=message):
            get("cifar10", words)
    for word, message in {
        "position=block5": "did you mean",
        "mask=binray": "binary",
        "separation=random2": "random",
    }.items():
        with pytest.raises(InputError, match=message):
            classifier, _ = parts(get("cifar10", f"{AT_FSR},{word}"))
            classifier.module.fsr.check_positions(classifier.module.blocks)
