import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import jrobust
from jrobust.errors import InputError
from jrobust.models.tree import flatten, unflatten
from jrobust.weights import arrays as arrays_file
from jrobust.weights import safetensors_file
from jrobust.weights.load import load

NAMES = [str(i) for i in range(10)]


@pytest.fixture
def written(digits, tmp_path):
    section, classifier, params, stats = digits
    path = tmp_path / "out" / "digits.safetensors"
    manifest = safetensors_file.write(
        path,
        classifier,
        params,
        stats,
        model=section,
        class_names=NAMES,
        data_set="digits",
        threat_model="Linf 8/255",
        extra={"step": 3},
    )
    return path, manifest


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def rewrite(path, change):
    """Write the arrays and metadata of a file again after `change(arrays, manifest)`."""
    arrays = safetensors.numpy.load_file(path)
    manifest = json.loads(path.with_name(path.name + ".json").read_text())
    change(arrays, manifest)
    safetensors.numpy.save_file(arrays, path, metadata={"jrobust": json.dumps(manifest)})


def test_logits_of_the_file_are_equal_to_the_bit(written, digits):
    _, classifier, params, stats = digits
    images = jax.random.uniform(jax.random.key(5), (4, 8, 8, 1))
    file = safetensors_file.read(written[0])
    same((file.params, file.batch_stats), (params, stats))
    rebuilt = safetensors_file.classifier(file.manifest)
    assert rebuilt == classifier
    expected = classifier.apply(params, stats, images).logits
    np.testing.assert_array_equal(rebuilt.apply(file.params, file.batch_stats, images).logits, expected)
    fresh = jax.tree.map(np.zeros_like, (params, stats))
    np.testing.assert_array_equal(classifier.apply(*load(written[0], classifier, *fresh), images).logits, expected)


def test_any_safetensors_reader_opens_it(written, digits):
    _, classifier, params, stats = digits
    images = jax.random.uniform(jax.random.key(5), (4, 8, 8, 1))
    arrays = safetensors.numpy.load_file(written[0])
    assert set(arrays) == {f"params/{n}" for n in flatten(params)} | {f"batch_stats/{n}" for n in flatten(stats)}
    tree = unflatten(arrays)
    np.testing.assert_array_equal(
        classifier.apply(tree["params"], tree["batch_stats"], images).logits,
        classifier.apply(params, stats, images).logits,
    )


def test_the_manifest_says_all_that_is_needed(written, digits):
    path, manifest = written
    assert json.loads(path.with_name("digits.safetensors.json").read_text()) == manifest
    assert manifest["jrobust"] == jrobust.__version__
    assert manifest["model"] == {
        k: list(v) if k in ("mean", "std") else v for k, v in digits[0].items() if k != "weights"
    }
    assert manifest["class_names"] == NAMES
    assert (manifest["data_set"], manifest["threat_model"]) == ("digits", "Linf 8/255")
    assert manifest["extra"] == {"step": 3}
    preprocessing = manifest["preprocessing"]
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.3], [0.4])
    assert (preprocessing["input_shape"], preprocessing["input_range"]) == ([8, 8, 1], [0.0, 1.0])
    assert manifest["tensors"]["params/conv1/kernel"] == {"shape": [3, 3, 1, 4], "dtype": "float32"}
    assert len(manifest["sha256"]) == 64


def test_writing_twice_gives_the_same_bytes(written, digits, tmp_path):
    section, classifier, params, stats = digits
    again = tmp_path / "again.safetensors"
    settings = {"class_names": NAMES, "data_set": "digits", "threat_model": "Linf 8/255", "extra": {"step": 3}}
    safetensors_file.write(again, classifier, params, stats, model=section, **settings)
    assert again.read_bytes() == written[0].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "again.safetensors.json", "out"]


def test_metadata_of_many_entries_are_written_in_one_order(tmp_path):
    metadata = {name: f"{name} ü" for name in "gfedcba"}
    found = set()
    for i in range(5):
        arrays_file.write(tmp_path / f"{i}.safetensors", {"a": np.arange(3), "b": np.ones((2, 2))}, metadata)
        found.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(found) == 1
    arrays, read = arrays_file.read(tmp_path / "0.safetensors")
    assert read == metadata and int.from_bytes(found.pop()[:8], "little") % 8 == 0
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    np.testing.assert_array_equal(arrays["b"], np.ones((2, 2)))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_clear_line(written, share):
    content = written[0].read_bytes()
    written[0].write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"cannot be read.*again") as error:
        safetensors_file.read(written[0])
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_found(written):
    content = bytearray(written[0].read_bytes())
    content[-100] ^= 1
    written[0].write_bytes(content)
    with pytest.raises(InputError, match="damaged: its SHA-256"):
        safetensors_file.read(written[0])


def swap(arrays, manifest):
    arrays["params/bn1/scale"], arrays["params/bn1/bias"] = arrays["params/bn1/bias"], arrays["params/bn1/scale"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a.pop("params/fc/bias"), "lacks params/fc/bias"),
        (lambda a, m: a.update(surplus=np.zeros(1, np.float32)), "surplus surplus"),
        (
            lambda a, m: a.update({"params/fc/bias": np.zeros(9, np.float32)}),
            r"params/fc/bias is .*\[9\].*says.*\[10\]",
        ),
        (lambda a, m: a.update({"params/fc/bias": np.zeros(10)}), "float64.*says.*float32"),
        (lambda a, m: m.update(format="jrobust-weights-9"), "jrobust-weights-9.*reads 'jrobust-weights-1'"),
        (swap, "SHA-256"),
    ],
)
def test_a_changed_file_is_one_clear_line(written, change, message):
    rewrite(written[0], change)
    with pytest.raises(InputError, match=message):
        safetensors_file.read(written[0])


def test_a_file_without_manifest_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(2, np.float32)}, path)
    with pytest.raises(InputError, match="no manifest"):
        safetensors_file.read(path)


def test_bad_output_is_refused(digits, tmp_path):
    section, classifier, params, stats = digits
    write = lambda path, **more: safetensors_file.write(path, classifier, params, stats, model=section, **more)
    with pytest.raises(InputError, match=r"expected a name such as model.safetensors"):
        write(tmp_path / "model.npz")
    with pytest.raises(InputError, match="2 class names for 10 classes"):
        write(tmp_path / "a.safetensors", class_names=["a", "b"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another output"):
        write(tmp_path / "file" / "a.safetensors")


def test_loading_checks_preprocessing_and_structure(written, digits):
    _, classifier, params, stats = digits
    other = dataclasses.replace(classifier, mean=(0.5,))
    with pytest.raises(InputError, match=r"has mean \(0.3,\), this model has \(0.5,\).*model.mean"):
        load(written[0], other, params, stats)
    deeper = params | {"conv4": {"kernel": np.zeros(3, np.float32)}}
    with pytest.raises(InputError, match="lacks conv4/kernel"):
        load(written[0], classifier, deeper, stats)
    shallower = {k: v for k, v in params.items() if k != "conv3"}
    with pytest.raises(InputError, match="surplus conv3/kernel"):
        load(written[0], classifier, shallower, stats)


def test_a_new_head_only_when_asked(written, digits):
    _, classifier, params, stats = digits
    wider = params | {"fc": {"kernel": np.ones((8, 3), np.float32), "bias": np.ones(3, np.float32)}}
    with pytest.raises(InputError, match=r"fc.* has shape.*new head"):
        load(written[0], classifier, wider, stats)
    new, _ = load(written[0], classifier, wider, stats, replace_head=True)
    np.testing.assert_array_equal(new["fc"]["kernel"], np.ones((8, 3)))
    np.testing.assert_array_equal(new["conv1"]["kernel"], params["conv1"]["kernel"])
    # Asked for, the head is new even where the old one would fit.
    new, _ = load(written[0], classifier, jax.tree.map(np.zeros_like, params), stats, replace_head=True)
    assert not new["fc"]["kernel"].any()


def test_the_manifest_rebuilds_a_network_with_modules(variables, tmp_path):
    section = {"positions": ("block2", "block3"), "hidden": 3, "mask": "binary", "straight_through": True}
    classifier, params, stats = variables("small_cnn", width=4, fsr=section)
    model = {"name": "small_cnn", "width": 4, "fsr": section}
    path = tmp_path / "fsr.safetensors"
    safetensors_file.write(path, classifier, params, stats, model=model)
    file = safetensors_file.read(path)
    assert safetensors_file.classifier(file.manifest) == classifier
    same(file.params, params)
