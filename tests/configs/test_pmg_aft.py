"""Every number of PMG-AFT and of its released code is the value of a config field. Sources: docs/pmg_aft.md."""

import importlib
import itertools
import pathlib
import re

import jax
import pytest

from configs import clip_shapes, pmgaft
from jrobust import data, methods
from jrobust.data.catalogue import DATA_SETS
from jrobust.data.class_prompts import WORDINGS
from jrobust.errors import InputError
from jrobust.evaluation import suites
from jrobust.models import zoo
from jrobust.models.clip.architectures import ARCHITECTURES, Sizes
from jrobust.training import optimizers

SOURCES = {"tiny_imagenet": (100_000, (64, 64, 3), 200), "cifar100": (50_000, (32, 32, 3), 100)}
ROWS = ("clip", "ft", "tecoa", "pmg_aft", "vpt_tecoa", "vpt_pmg_aft")
NAMES = dict(zip(ROWS, ("standard", "standard", "adversarial", "pmg_aft", "adversarial", "pmg_aft"), strict=True))
# Columns of the paper's tables, in their order.
SIXTEEN = ["cifar10", "cifar100", "stl10", "sun397", "food101", "oxford_pets", "flowers102", "dtd", "eurosat"]
SIXTEEN += ["fgvc_aircraft", "tiny_imagenet", "imagenet", "caltech101", "caltech256", "stanford_cars", "pcam"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OWN = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def get(words="", name="tiny_imagenet"):
    return importlib.import_module(f"configs.pmg_aft_{name}").get_config(words).lock()


def parts(config):
    """The network and the method, as the command makes them, without data."""
    _, shape, classes = SOURCES[config.data.name]
    seen = data.output_shape(shape, data.Augmentation.of(config.data.augment))
    classifier = zoo.build(config.model, num_classes=classes, input_shape=seen)
    return classifier, methods.build(config.method, classifier)


def changes(words, *against):
    """{path: value} of what words change in the config."""
    plain, changed = get(*against).to_dict(), get(words).to_dict()

    def flat(tree, path=""):
        if not isinstance(tree, dict):
            return {path[1:]: tree}
        return {k: v for name, below in tree.items() for k, v in flat(below, f"{path}.{name}").items()}

    before, after = flat(plain), flat(changed)
    return {path: after.get(path) for path in before | after if before.get(path) != after.get(path)}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_command_at_both_sizes(name, row):
    for words in (f"method={row}", f"method={row},preset=scaled", f"method={row},runlocal"):
        config = get(words, name)
        classifier, method = parts(config)
        assert config.method.name == NAMES[row]
        assert (classifier.prompts is not None) == row.startswith("vpt_")
        jax.eval_shape(method.init, jax.random.key(0), {})  # prompts fit the tower
        assert (config.train.steps > 0) == ("runlocal" in words or row == "clip")
        for suite in ("zero_shot", "interpolation"):
            settings = suites.settings_of(suite, config.evaluation[suite])
            assert settings.source == name
        assert set(config.evaluation.after_training) <= set(suites.SUITES)
        assert "study" not in config
        with pytest.raises(AttributeError, match="epochs"):
            config.train.epoch = 3


@pytest.mark.parametrize(("name", "steps"), [("tiny_imagenet", 3900), ("cifar100", 1950)])
def test_training(name, steps):
    config = get(name=name)
    o, t = config.optimizer, config.train
    assert (o.name, o.learning_rate, o.momentum, o.nesterov, o.weight_decay) == ("sgd", 5e-5, 0.9, False, 0.0)
    assert (o.schedule, o.warmup_steps, o.clip_norm) == ("cosine", 1000, 0.0)
    assert (t.batch_size, t.epochs, t.steps, t.examples, config.seed) == (256, 10.0, 0, 0, 0)
    per_epoch = SOURCES[name][0] // 256
    rate = optimizers.build(o, {"w": 0.0}, steps_per_epoch=per_epoch, total_steps=10 * per_epoch).learning_rate
    assert [10 * per_epoch, rate(0), rate(999), rate(1000)] == pytest.approx([steps, 5e-8, 5e-5, 5e-5])
    assert rate((1000 + steps) // 2) == pytest.approx(2.5e-5) and rate(steps - 1) < 2e-10
    for row in ROWS[1:]:  # all rows alike, but for the rate of prompts
        other = get(f"method={row}", name)
        assert other.train == t
        with other.unlocked():
            assert other.optimizer.learning_rate == (40.0 if row.startswith("vpt_") else 5e-5)
            other.optimizer.learning_rate = 5e-5
        assert other.optimizer == o


@pytest.mark.parametrize("name", SOURCES)
def test_images(name):
    augment = data.Augmentation.of(get(name=name).data.augment)
    assert augment == data.Augmentation(resize=256, crop_size=224, center_crop=True)  # nothing random
    classifier, _ = parts(get(name=name))
    assert classifier.input_shape == (224, 224, 3)  # where the perturbation lives
    assert classifier.clip.interpolation == "bicubic"


def test_methods():
    attack = {"eps": "1/255", "step_size": "1/255", "num_steps": 2, "batch_norm": "eval"}
    loss = {"general_weight": 1.0, "clean_weight": 1.0, "distance": "kl", "kl_direction": "ori_adv"}
    loss |= {"reduction": "sum", "detach_clean": False, "original_prompts": "pixels"}
    expected = {
        "standard": {"name": "standard"},
        "adversarial": {"name": "adversarial", **attack},
        "pmg_aft": {"name": "pmg_aft", **attack, **loss},
    }
    for row, name in NAMES.items():
        assert get(f"method={row}").method.to_dict() == expected[name]
    assert get().to_dict() == get("method=pmg_aft,preset=released,eps=1/255,distance=kl,alpha=1,beta=1").to_dict()


def test_the_model():
    config = get()
    classifier, _ = parts(config)
    assert classifier.clip.sizes == ARCHITECTURES["ViT-B/32"]
    assert zoo.count(jax.eval_shape(classifier.init, jax.random.key(0))[0]) == 87_849_216
    assert (config.model.weights, config.model.vocabulary, config.model.template) == ("", "", "")
    classifier, _ = parts(get("method=vpt_tecoa"))
    prompts = jax.eval_shape(classifier.init, jax.random.key(0))[0]
    assert prompts.tokens.shape == (100, 768)
    assert [part.shape for part in prompts.pixels] == [(30, 224, 3), (30, 224, 3), (164, 30, 3), (164, 30, 3)]


def test_presets():
    for preset, scaled, (mean, std), reduction, sample in (
        ("released", False, IMAGENET, "sum", "strided20"),
        ("scaled", True, OWN, "batchmean", "full"),
    ):
        config = get(f"preset={preset}")
        assert (config.model.scaled, config.model.mean, config.model.std) == (scaled, mean, std)
        assert config.method.reduction == reduction
        assert {config.evaluation[suite].sample for suite in ("zero_shot", "interpolation")} == {sample}
        assert parts(config)[0].scaled is scaled
    assert set(changes("preset=scaled")) == {
        "model.scaled",
        "model.mean",
        "model.std",
        "method.reduction",
        "evaluation.zero_shot.sample",
        "evaluation.interpolation.sample",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eps=4/255", {f"{at}.eps": "4/255" for at in ("method", "evaluation.zero_shot", "evaluation.interpolation")}),
        ("distance=feature_l2", {"method.distance": "feature_l2"}),
        ("alpha=0.5", {"method.general_weight": 0.5}),
        ("beta=2", {"method.clean_weight": 2.0}),
    ],
)
def test_a_word_changes_its_fields_alone(words, expected):
    assert changes(words) == expected


def test_clip_is_the_model_as_it_is():
    config = get("method=clip")
    section = config.optimizer
    built = optimizers.build(section, {"w": 0.0}, steps_per_epoch=1, total_steps=1)
    assert config.train.steps == 1 and built.learning_rate(0) == 0.0
    w = {"w": jax.numpy.float32([-0.1, 3.0])}
    updates, _ = built.tx.update({"w": jax.numpy.float32([1e8, -5.0])}, built.tx.init(w), w)
    assert (w["w"] + updates["w"] == w["w"]).all()
    assert get("method=clip,runlocal").train.steps == 1


def test_evaluation():
    evaluation = get().evaluation
    assert evaluation.after_training == ("accuracy", "zero_shot")
    z, i = (suites.settings_of(suite, evaluation[suite]) for suite in ("zero_shot", "interpolation"))
    for s in (z, i):
        assert list(s.sets) == SIXTEEN and s.missing == "error"
        assert (s.eps, s.step_size, s.num_steps, s.random_start) == ("1/255", "1/255", 10, True)
    assert (z.attacks, z.cw_confidence, z.autoattack, z.sweep) == (("pgd", "cw"), 50.0, False, ())
    assert (z.apgd_steps, z.fab_steps, z.square_queries) == (100, 100, 5000)
    assert i.shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert evaluation.batch_size == 256 and evaluation.examples == 0


def test_studies():
    rows = {
        "paper": {f"method={row}" for row in ROWS},
        "eps": {f"method={m},eps={r}/255" for m in ("tecoa", "pmg_aft") for r in (1, 2, 4)},
        "alpha_beta": {f"alpha={a},beta={b}" for a, b in itertools.product(("0", "0.5", "1", "2"), repeat=2)},
        "distance": {f"distance={d}" for d in ("kl", "l2", "feature_l2", "feature_cosine")},
    }
    assert set(pmgaft.STUDIES) == set(rows)
    for name, words in rows.items():
        study = get(f"study={name}").study
        assert set(study.rows) == words and len(study.rows) == len(words)
        assert (study.seeds, study.measures) == ((0,), ("average.clean", "average.pgd_10"))
        configs = [get(f"study={name},runlocal,{row}").to_dict() for row in study.rows]
        for one, other in itertools.combinations(configs, 2):
            assert one != other
            assert one["evaluation"]["zero_shot"]["sets"] == other["evaluation"]["zero_shot"]["sets"]


def test_local_models_are_those_of_clip_shapes_with_the_vocabulary_of_clip():
    config = get("method=vpt_pmg_aft,runlocal")
    classifier, _ = parts(config)
    expected = clip_shapes.get_config().model.sizes.to_dict() | {"vocabulary": 49408}
    assert classifier.clip.sizes == Sizes(**expected)
    assert classifier.input_shape == (32, 32, 3)
    assert config.evaluation.zero_shot.sets == ("tiny_imagenet",)


# Means that the paper prints, robust and clean.
MEANS = {
    "tiny_imagenet": ("17.38 13.79 26.96 31.95 18.27 22.74", "59.98 54.76 46.99 55.71 28.50 36.03"),
    "cifar100": ("17.75 14.05 21.35 26.06 15.81 18.71", "59.98 57.15 55.95 56.68 35.36 42.42"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_docstring_has_the_rows_of_the_tables(name):
    text = importlib.import_module(f"configs.pmg_aft_{name}").__doc__
    lines = re.findall(r"^ {4}method=(\w+)((?: +\d+\.\d\d){8})$", text, re.M)
    assert [row for row, _ in lines] == 2 * list(ROWS)
    means = [numbers.split()[0] for _, numbers in lines]
    assert means == " ".join(MEANS[name]).split()


def test_the_docstring_has_the_rows_of_the_ablations():
    text = importlib.import_module("configs.pmg_aft_tiny_imagenet").__doc__
    rows = re.findall(r"^ {4}(\S+) +(\d\d\.\d\d) +(\d\d\.\d\d)$", text, re.M)
    assert len(rows) == 3 + 4 + 6
    studies = set(itertools.chain(*pmgaft.STUDIES.values()))
    for words, clean, robust in rows:
        assert words in studies and float(clean) > float(robust)
        assert get(words).method.name in ("pmg_aft", "adversarial")


def test_the_page_has_the_sets_with_their_prompts_and_the_presets():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "pmg_aft.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*) \|$", page, re.M)
    assert [name for name, *_ in rows] == SIXTEEN
    for name, classes, template in rows:
        assert int(classes) == DATA_SETS[name].num_classes
        assert name == "pcam" or template == WORDINGS[name].template
    for section, field, released, scaled in (
        ("model", "scaled", "no", "s = exp"),
        ("method", "reduction", "`sum`", "`batchmean`"),
        ("method", "kl_direction", "`ori_adv`", "`ori_adv`"),
        ("method", "detach_clean", "no", "no"),
    ):
        assert field in get()[section]
        assert re.search(rf"^\| `{section}\.{field}` \| {released}.* \| {re.escape(scaled)}.* \|", page, re.M)


def test_misspelt_arguments():
    for words, message in {
        "method=pmgaft": "did you mean 'pmg_aft'",
        "method=vpt_teco": "did you mean 'vpt_tecoa'",
        "preset=release": "did you mean 'released'",
        "distance=feature_cos": "did you mean 'feature_cosine'",
        "study=alpha": "did you mean 'alpha_beta'",
        "eps=3/255": "expected one of 1/255, 2/255, 4/255",
        "alpha=x": "alpha=x: expected a number of at least 0",
        "beta=-1": "beta=-1: expected a number",
        "alpha=nan": "expected a number",
        "method=tecoa,alpha=2": "does not have: write method=pmg_aft,alpha=2",
        "method=vpt_tecoa,distance=l2": "does not have",
        "runlocal=1": "of the form 'runlocal'",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            get(words)
        assert "\n" not in str(error.value)
