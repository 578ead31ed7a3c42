"""Every number of the appendix and of the released code is the value of a config field; docs/masked_images.md."""

import importlib
import itertools
import pathlib
import re

import jax
import pytest

from configs import clip_shapes, masked_images_imagenet
from jrobust import methods
from jrobust.data.class_prompts import prompts
from jrobust.data.imagenet_names import wnids
from jrobust.data.images import Fit
from jrobust.errors import InputError
from jrobust.evaluation import natural_shift, suites
from jrobust.models import zoo
from jrobust.models.clip.architectures import ARCHITECTURES, Sizes
from jrobust.training import durations, optimizers

ROWS = ("ft", "fd", "masked", "wise_kd", "kd", "masked_kd", "lp")
K = 24_820  # steps of the released code: 4 x 128 images of the 1,270,927 that are not held out, ten times
IMAGES = 1_281_167  # of ImageNet's training set
# Settings of the released examples.
RELEASED = {
    "random": {"none": 0.75, "single": 0.5, "multi": 0.5},
    "object": {"none": 0.3, "single": 0.3, "multi": 0.6},
    "context": {"none": 0.6, "single": 0.5, "multi": 0.3},
}
MICROBATCHES = {"b32": 1, "b16": 4, "l14": 16}  # equal parts of a batch
WAYS = list(itertools.product(RELEASED, ("none", "single", "multi")))


def get(words="", name="imagenet"):
    return importlib.import_module(f"configs.masked_images_{name}").get_config(words).lock()


def parts(config, classes=1000):
    """The network and the method, as the command makes them, without data."""
    side = config.data.image_size or 32
    classifier = zoo.build(config.model, num_classes=classes, input_shape=(side, side, 3))
    return classifier, methods.build(config.method, classifier)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_command_at_both_sizes(row):
    for words in (f"method={row}", f"method={row},vit=l14,schedule=released", f"method={row},runlocal"):
        config = get(words)
        classifier, method = parts(config)
        jax.eval_shape(method.init, jax.random.key(0), {})
        assert (config.train.steps > 0) == ("runlocal" in words)
        assert suites.settings_of("natural_shift", config.evaluation.natural_shift).missing == "error"
        assert suites.settings_of("masking", config.evaluation.masking).threshold == 0.3
        assert set(config.evaluation.after_training) == {"accuracy", "natural_shift"}
        assert "study" not in config and classifier.input_shape[0] == config.data.options.resize
        with pytest.raises(AttributeError, match="epochs"):
            config.train.epoch = 3


def test_methods():
    distilled = {"name": "masked_images", "masking": "none", "feature_weight": 30.0, "logit_weight": 0.0}
    distilled |= {"temperature": 10.0}
    masked = distilled | {"masking": "object", "refilling": "single", "threshold": 0.3, "groups": 4}
    expected = {"ft": {"name": "standard"}, "fd": distilled, "masked": masked}
    expected["wise_kd"] = masked | {"logit_weight": 1.0}
    of_logits = {"feature_weight": 0.0, "logit_weight": 30.0, "logit_teacher": "pretrained"}
    expected |= {"kd": distilled | of_logits, "masked_kd": masked | of_logits | {"logit_images": "masked"}}
    expected["lp"] = {"name": "linear_probe"}
    assert {row: get(f"method={row}").method.to_dict() for row in ROWS} == expected
    words = "method=masked,masking=object,refilling=single,threshold=0.3,vit=b32,schedule=appendix"
    assert get().to_dict() == get(words).to_dict()
    _, method = parts(get("method=wise_kd"))
    assert (method.masking, method.refilling, method.threshold, method.groups) == ("object", "single", 0.3, 4)
    assert (method.feature_weight, method.logit_weight, method.temperature) == (30, 1, 10)
    assert (method.logit_teacher, method.logit_images) == ("file", "clean")


@pytest.mark.parametrize(("masking", "refilling"), WAYS)
def test_thresholds_are_those_of_the_released_examples_unless_given(masking, refilling):
    words, field = f"masking={masking},refilling={refilling}", "rate" if masking == "random" else "threshold"
    for more, value in (("", RELEASED[masking][refilling]), (",threshold=0.45", 0.45)):
        config = get(words + more)
        _, method = parts(config)
        assert (method.masking, method.refilling, getattr(method, field)) == (masking, refilling, value)
        plain = get().to_dict()
        assert {key for key in plain if config.to_dict()[key] != plain[key]} <= {"method"}


def test_training():
    config = get()
    o, t = config.optimizer, config.train
    assert (o.name, o.betas, o.epsilon, o.weight_decay, o.clip_norm) == ("adamw", (0.9, 0.999), 1e-8, 0.1, 1.0)
    assert (o.learning_rate, o.schedule, o.warmup_steps, o.fast_layers) == (3e-5, "cosine", 500, ())
    assert (t.batch_size, t.epochs, t.steps, t.examples) == (512, 10.0, 0, 0)
    assert (config.data.held_out, config.data.held_out_seed) == (10_240, -1)  # the run's seed
    assert (t.evaluate_split, t.evaluate_every_epochs, t.evaluate_examples) == ("validation", 1.0, 0)
    assert t.batch_size == 4 * 128 and IMAGES - config.data.held_out == 1_270_927
    epoch = (IMAGES - config.data.held_out) // t.batch_size
    assert durations.total_steps(t, steps_per_epoch=epoch, batch_size=t.batch_size) == epoch * 10 == K
    build = lambda section: optimizers.build(section, {"w": 0.0}, steps_per_epoch=K // 10, total_steps=K).learning_rate
    rate = build(o)
    assert [rate(0), rate(499), rate(500)] == pytest.approx([3e-5 / 500, 3e-5, 3e-5])
    assert rate((500 + K) // 2) == pytest.approx(1.5e-5) and 0 < rate(K - 1) < 1e-12
    released = get("schedule=released").optimizer
    assert released.schedule == "one_cycle" and released.cycle_beta1
    rate = build(released)
    assert [rate(0), rate(K - 1)] == pytest.approx([3e-5 / 25, 3e-5 / 25 / 1e4], rel=1e-4)
    assert max(range(1000), key=rate) in (495, 496) and rate(495) == pytest.approx(3e-5, rel=1e-5)  # 2% of the run
    same = get("schedule=released").to_dict() | {"optimizer": config.optimizer.to_dict()}
    assert same == config.to_dict()
    assert {vit: get(f"vit={vit}").train.microbatches for vit in MICROBATCHES} == MICROBATCHES
    assert {vit: get(f"vit={vit}").method.groups for vit in MICROBATCHES} == {"b32": 4, "b16": 1, "l14": 1}
    assert get("vit=l14,runlocal").train.microbatches == 1
    for row in ROWS:
        other = get(f"method={row}")
        decay = {"weight_decay": 0.0} if row == "lp" else {}
        assert (other.train, other.data) == (t, config.data)
        assert other.optimizer.to_dict() == o.to_dict() | decay


def test_images():
    config = get()
    assert Fit(**config.data.options) == Fit("crop", 224, "bicubic") and config.data.image_size == 224
    augment = config.data.augment.to_dict()
    assert not any(augment.values())  # nothing random
    assert not config.data.resident  # 190 GB


def test_the_model():
    config = get()
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assert (config.model.mean, config.model.std, config.model.dtype) == (mean, std, "float32")
    for vit, name in (("b32", "ViT-B/32"), ("b16", "ViT-B/16"), ("l14", "ViT-L/14")):
        assert parts(get(f"vit={vit}"))[0].clip.sizes == ARCHITECTURES[name]
    classifier, _ = parts(config)
    params = jax.eval_shape(classifier.init, jax.random.key(0))[0]
    assert zoo.count(params) == 87_849_216 + 513 * 1000  # the tower and the head
    assert (config.model.weights, config.model.vocabulary, config.model.teacher) == ("", "", "")
    texts = prompts("imagenet", wnids(), config.model.template)
    assert len(texts) == 1000 and {len(each) for each in texts} == {80}


def test_evaluation_and_studies():
    evaluation = get().evaluation
    shifts = suites.settings_of("natural_shift", evaluation.natural_shift)
    assert shifts.sets == natural_shift.SETS
    assert suites.settings_of("masking", evaluation.masking).thresholds == pytest.approx([k / 10 for k in range(1, 10)])
    assert evaluation.step == "best"
    assert set(get("study=methods").study.rows) == {"method=ft", "method=fd", "method=masked"}
    grid = get("study=grid").study
    assert len(grid.rows) == len(set(grid.rows)) == 2 * 3 * 3 + 3 * 2
    assert (grid.seeds, grid.measures) == ((0, 1, 2), ("imagenet", "average_shift"))
    found = {tuple(parts(get(row))[1].__dict__.items())[1:] for row in grid.rows}
    assert len(found) == len(grid.rows)
    for masking, refilling in WAYS:
        assert f"masking={masking},refilling={refilling},threshold={RELEASED[masking][refilling]}" in grid.rows


def test_local_models_are_those_of_clip_shapes_with_the_vocabulary_of_clip():
    classifier, _ = parts(get("runlocal"))
    assert classifier.clip.sizes == Sizes(**clip_shapes.SIZES | {"vocabulary": 49408, "context": 77})
    assert get("runlocal").evaluation.natural_shift.sets == ("imagenet",)
    assert get("runlocal,schedule=released").optimizer.warmup_steps == 0


def test_the_shapes():
    study = get(name="shapes")
    assert study.study.rows == ("method=ft", "method=fd", "method=masked") and study.study.seeds == (0, 1, 2)
    assert study.study.measures[:2] == ("conflicting", "aligned")
    names = {"ft": ("standard", None), "fd": ("masked_images", "none"), "masked": ("masked_images", "object")}
    for row, (name, masking) in names.items():
        for words in (f"method={row}", f"method={row},runlocal"):
            config = get(words, "shapes")
            _, method = parts(config, classes=8)
            assert config.method.name == name and getattr(method, "masking", None) == masking
            assert config.data.options.task == "color" and config.data.options.ratio == 1
            assert config.model.head == "linear" and config.pretrain.seed == 0
            assert config.pretrain.data.options.ratio == 87.5 and "study" not in config
            assert config.pretrain.data.options.seed != config.data.options.seed
            settings = [suites.settings_of(name, config.evaluation[name]) for name in ("bias", "masking")]
            assert (settings[0].shares[0], settings[0].shares[-1], settings[1].threshold) == (0, 1, 0.3)
            assert len(settings[0].shares) == (2 if "runlocal" in words else 11)
    rest = [get(f"method={row}", "shapes").to_dict() | {"method": 0} for row in ("ft", "fd", "masked")]
    assert rest[0] == rest[1] == rest[2]
    fd, masked = (parts(get(f"method={row}", "shapes"), classes=8)[1] for row in ("fd", "masked"))
    assert fd.feature_weight == masked.feature_weight and (masked.refilling, masked.threshold) == ("single", 0.3)


def test_the_page_has_the_thresholds():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "masked_images.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (random|object|context), \w+ \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert {way: dict(zip(("none", "single", "multi"), map(float, v), strict=True)) for way, *v in rows} == RELEASED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method=mask", "did you mean 'masked'"),
        ("method=wisekd", "did you mean 'wise_kd'"),
        ("masking=objects", "did you mean 'object'"),
        ("refilling=singel", "did you mean 'single'"),
        ("vit=b23", "did you mean 'b32'"),
        ("schedule=release", "did you mean 'released'"),
        ("study=gird", "did you mean 'grid'"),
        ("threshold=x", "threshold=x: expected a number in"),
        ("threshold=1.5", "threshold=1.5: expected a number in"),
        ("threshold=nan", "threshold=nan: expected a number in"),
        ("method=fd,refilling=multi", "does not have: write method=masked,refilling=multi"),
        ("method=ft,threshold=0.3", "does not have: write method=masked,threshold=0.3"),
        ("runlocal=1", "of the form 'runlocal'"),
    ],
)
def test_misspelt_arguments(words, message):
    with pytest.raises(InputError, match=message) as error:
        masked_images_imagenet.get_config(words)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="did you mean 'masked'"):
        get("method=maskd", "shapes")
