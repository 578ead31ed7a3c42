"""Every number of the paper's tables is the value of a config field. Sources: docs/art.md."""

import importlib

import pytest

from jrobust.errors import InputError
from jrobust.evaluation import suites

DATA_SETS = ("cifar10", "svhn", "gtsrb", "flower17", "cub200", "digits")
VARIANTS = ("natural", "pgd", "art", "argmin", "equation2", "equation4_l2", "equation4_cosine", "attr_ce")


def get(name, variant="art", more=""):
    return importlib.import_module(f"configs.art_{name}").get_config(f"variant={variant}{more}")


# Natural training: network, input, rate, batch, weight decay, epochs, drops.
NATURAL = {
    "svhn": ("wide_resnet", 40, 2, 32, 0.1, 256, 2e-4, 200, (50, 80, 150), (0.1, 0.1, 0.5)),
    "cifar10": ("wide_resnet", 28, 10, 32, 0.1, 256, 2e-4, 100, (50, 80, 150), (0.1, 0.1, 0.5)),
    "gtsrb": ("wide_resnet", 28, 10, 32, 0.1, 128, 2e-4, 12, (4, 6, 10), (0.1, 0.1, 0.5)),
    "flower17": ("wide_resnet", 28, 10, 128, 0.1, 128, 2e-4, 68, (15, 35, 50), (0.1, 0.1, 0.5)),
    "cub200": ("resnet50", None, None, 224, 0.01, 128, 1e-4, 200, (60, 120, 180), (0.1, 0.1, 0.1)),
}
# ART: eps, step size, steps, lambda, beta, K, reduction, batch, drops.
ART = {
    "svhn": ("8/255", "1.5/255", 3, 0.5, 50, 1000, "none", 256, (50, 80, 150)),
    "cifar10": ("8/255", "1.5/255", 3, 0.5, 50, 1000, "none", 256, (50, 80, 150)),
    "gtsrb": ("8/255", "1.5/255", 3, 0.5, 50, 1000, "none", 128, (4, 6, 10)),
    "flower17": ("8/255", "1.5/255", 3, 0.5, 50, 16000, "none", 128, (15, 35, 50)),
    "cub200": ("2/255", "1.5/255", 3, 0.5, 50, 15000, "absmean", 90, (40, 80, 120, 160)),
}
# The PGD baseline: steps, eps, step size, batch.
PGD = {
    "svhn": (7, "8/255", "2.5/255", 256),
    "cifar10": (10, "8/255", "2/255", 256),
    "gtsrb": (7, "8/255", "2/255", 128),
    "flower17": (7, "8/255", "2.5/255", 128),
    "cub200": (7, "2/255", "0.5/255", 128),
}


@pytest.mark.parametrize("name", NATURAL)
def test_natural_training(name):
    config = get(name, "natural")
    model, data, optimizer = config.model, config.data, config.optimizer
    side = data.augment.crop_size or data.image_size or 32
    found = (
        model.name,
        model.get("depth"),
        model.get("width"),
        side,
        optimizer.learning_rate,
        config.train.batch_size,
        optimizer.weight_decay,
        config.train.epochs,
        optimizer.drop_epochs,
        optimizer.drop_factors,
    )
    assert found == NATURAL[name]
    assert (optimizer.momentum, optimizer.nesterov, config.method.name) == (0.9, True, "standard")


@pytest.mark.parametrize("name", ART)
def test_art(name):
    config = get(name)
    m = config.method
    found = (m.eps, m.step_size, m.num_steps, m.attribution_weight, m.beta, m.mask_size, m.reduction)
    assert (*found, config.train.batch_size, config.optimizer.drop_epochs) == ART[name]
    assert (m.objective, m.negative_class, m.outer, m.bn_update) == ("equation5", "runner_up", "pair_hard", "all")
    natural = get(name, "natural")
    assert (config.train.epochs, config.optimizer.learning_rate) == (
        natural.train.epochs,
        natural.optimizer.learning_rate,
    )


@pytest.mark.parametrize("name", PGD)
def test_pgd_baseline(name):
    config = get(name, "pgd")
    m = config.method
    assert (m.num_steps, m.eps, m.step_size, config.train.batch_size) == PGD[name]
    assert m.batch_norm == ("train" if name == "cub200" else "eval")


def test_ablations_differ_from_art_in_what_they_say():
    assert get("cifar10", "argmin").method.negative_class == "argmin"
    assert get("cifar10", "attr_ce").method.inner_cross_entropy is True
    for row in ("equation2", "equation4_l2", "equation4_cosine"):
        m = get("cifar10", row).method
        assert (m.objective, m.outer, m.mask_size, m.attribution_weight) == (row, "adv_only", 0, 0.5)


def test_cifar10_augmentation_and_normalisation():
    config = get("cifar10")
    assert config.data.augment.to_dict() == {
        "crop_padding": 4,
        "resize": 0,
        "crop_size": 0,
        "center_crop": False,
        "resized_crop": False,
        "flip": True,
        "jitter": 0.25,
        "rotation": 2.0,
    }
    assert config.model.mean == (0.4914, 0.4822, 0.4465)
    assert config.model.std == (0.2023, 0.1994, 0.2010)
    assert config.model.dropout == 0.1


def test_the_other_data_sets():
    assert (get("gtsrb").data.balance_to, get("flower17").data.balance_to) == (10_000, 1_000)
    assert not get("svhn").data.augment.flip
    cub = get("cub200")
    assert (cub.optimizer.fast_layers, cub.optimizer.fast_factor, cub.model.last_stride) == (("layer4", "fc"), 10.0, 1)
    assert cub.data.image_size == 256


def test_evaluation():
    config = get("cifar10").evaluation
    assert (config.robustness.eps, config.robustness.step_size, config.robustness.num_steps) == (
        "8/255",
        "2/255",
        (20, 40),
    )
    a = config.attribution
    assert (a.top_k, a.eps, a.num_steps, a.step_size, a.num_points, a.examples) == (
        100,
        "8/255",
        50,
        "1/255",
        100,
        1000,
    )
    assert a.sweep == ("2/255", "4/255", "8/255", "12/255")
    flower = get("flower17").evaluation.attribution
    assert (flower.top_k, flower.num_steps) == (1000, 100)


@pytest.mark.parametrize("name", DATA_SETS)
def test_images_are_transferred_at_the_radius_of_the_robustness_suite(name):
    evaluation = get(name).evaluation
    assert evaluation.transfer.eps == evaluation.robustness.eps
    assert evaluation.transfer.step_size == evaluation.robustness.step_size
    assert suites.settings_of("transfer", evaluation.transfer.to_dict()).crafting().num_steps == 40
    assert (get("digits").evaluation.transfer.eps, get("digits").evaluation.transfer.step_size) == ("0.1", "0.025")


def test_the_schedule_of_cifar10_challenge():
    config = get("cifar10", "pgd_madry")
    assert [round(epoch * (50_000 // 128)) for epoch in config.optimizer.drop_epochs] == [40_000, 60_000]
    assert (config.train.steps, config.train.batch_size, config.optimizer.nesterov) == (80_000, 128, False)


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_exists_at_both_sizes(name, variant):
    for more in ("", ",runlocal"):
        config = get(name, variant, more).lock()
        assert config.train.steps == 0 or more
        with pytest.raises(AttributeError, match="epochs"):
            config.train.epoch = 3


def test_misspelt_arguments():
    with pytest.raises(InputError, match="did you mean 'natural'"):
        get("cifar10", "naturel")
    with pytest.raises(InputError, match="did you mean 'runlocal'"):
        get("cifar10", "art", ",runlocl")
    with pytest.raises(InputError, match="runlocal"):
        get("cifar10", "art", ",runlocal=1")
