from __future__ import annotations

import base64
import html.parser
import json
import pathlib
import re

import numpy as np
import PIL.Image
import pytest

from jrobust import evaluation
from jrobust.data.source import from_arrays
from jrobust.errors import InputError
from jrobust.reporting import gallery, page, run_files, tables

FIGURES = {
    "training",
    "confusion",
    "robustness",
    "sanity",
    "attribution",
    "attribution_boxes",
    "gallery",
    "localization",
    "boxes",
}


class Collector(html.parser.HTMLParser):
    """Balanced tags, sources and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.errors = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


def test_page_holds_all_figures_and_nothing_from_elsewhere(run_folder):
    path = page.write(run_folder)
    assert path == run_folder.resolve() / "report" / "index.html"
    text = path.read_text()
    found = {file.stem for file in path.parent.glob("*.png")}
    assert found == FIGURES
    parsed = Collector(text)
    assert len(parsed.links) == len(FIGURES) and not parsed.errors and not parsed.open
    pngs = {base64.b64encode(file.read_bytes()).decode() for file in path.parent.glob("*.png")}
    assert {link.removeprefix("data:image/png;base64,") for link in parsed.links} == pngs
    outside = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<link", outside)
    for file in path.parent.glob("*.png"):
        with PIL.Image.open(file) as image:
            assert min(image.size) > 200


def test_page_says_the_numbers(run_folder):
    text = page.write(run_folder).read_text()
    for expected in ("40.00", "35.00 to 45.00", "PGD-20", "12.30", "1,234,567", "2,000 images/s", "0123456789ab"):
        assert expected in text, expected
    assert text.count("images as they are") == 1  # the same accuracy is not told twice


def test_checks_say_what_passed_and_what_failed(run_folder):
    text = page.write(run_folder).read_text()
    assert '<td class=" failed">failed</td>' in text and '<td class="">passed</td>' in text
    assert "more steps &lt;never&gt; help" in text and "DI-FGSM from b" in text and "PGD-200" in text


def test_a_run_of_fsr_has_its_row_and_the_parts_of_autoattack(run_folder, make_fsr):
    assert tables.protocol(run_files.read(run_folder).records) is None
    make_fsr(run_folder)
    first, parts, *_ = tables.extras(run_files.read(run_folder).records)
    assert first.columns == ["Natural", "FGSM", "PGD-20", "PGD-100", "C&W-30", "Ensemble", "AutoAttack"]
    assert first.rows == [["90.00", "50.00", "40.00", "37.50", "36.00", "35.00", "31.00"]]
    assert first.note == "Linf 8/255, 50 images of toy test. AutoAttack on 40 images."
    assert parts.rows == [["apgd-ce", "33.50", "1,234", "12.3"], ["square", "31.00", "0", "-"]]
    assert [tables.numeric_column(parts, i) for i in range(4)] == [False, True, True, True]
    text = page.write(run_folder).read_text()
    assert "after apgd-ce" not in text  # that is in the table of the parts
    assert "C&amp;W-30" in text and '<td class="number">33.50</td>' in text
    assert not Collector(text).errors


def test_a_run_on_a_biased_set_has_its_groups_corruptions_and_pictures(run_folder, make_biased):
    make_biased(run_folder)
    records = run_files.read(run_folder).records
    groups, corruptions, *_ = tables.extras(records)
    assert groups.columns == ["class", "in", "out", "sky"]
    assert groups.rows == [["cat", "100.00", "50.00", "-"], ["<dog>", "25.00", "75.00", "100.00"]]
    assert "Worst group: <dog> / in" in groups.note
    assert corruptions.rows == [
        ["none", "73.00", "50.00", "80.00", "12.50"],
        ["jpeg", "60.00", "35.00", "70.00", "-"],
    ]
    assert corruptions.columns[3:] == ["average of other", "conflicting of other"]
    rows = {row[1]: row for row in tables.summary(records) if row[0] == "bias"}
    assert list(rows) == ["average", "conflicting", "aligned", "worst group", "mean of the groups"]
    assert rows["conflicting"][2:5] == ["50.00", "45.00 to 55.00", "8"]
    text = page.write(run_folder).read_text()
    pictures = {file.stem for file in (run_folder / "report").glob("*.png")}
    assert pictures == FIGURES | {"bias_groups", "grad_cam"}
    assert "Grad-CAM of the true class" in text and "Worst group: &lt;dog&gt; / in" in text
    assert "under jpeg" not in text and not Collector(text).errors


def test_grad_cam_lies_over_the_image_at_equal_weight(tmp_path):
    """The left half of the map is 0 (dark blue in jet), the right half 1 (dark red); the image is white."""
    cam = np.tile(np.repeat([0.0, 1.0], 4), (1, 1, 8, 1))
    arrays = {"image": np.ones((1, 8, 8, 3)), "cam": cam, "label": np.zeros(1, int), "model": np.array(["net"])}
    arrays["prediction"] = np.zeros((1, 1), int)
    assert gallery.grad_cam(arrays, ["a"], tmp_path / "cam.png")
    with PIL.Image.open(tmp_path / "cam.png") as image:
        colours = {colour for count, colour in image.convert("RGB").getcolors(2**16) if count > 2000}
    for expected in ((127, 127, 191), (191, 127, 127)):
        assert any(np.abs(np.subtract(colour, expected)).max() <= 2 for colour in colours), (expected, colours)
    assert not gallery.grad_cam({}, ["a"], tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_text_of_users_is_escaped(run_folder):
    text = page.write(run_folder).read_text()
    assert "gradients may be &lt;masked&gt;" in text and "&lt;dog&gt;" in text
    assert "<masked>" not in text and "<dog>" not in text


def test_a_run_that_has_begun_has_a_page_too(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "gallery.png").write_text("of an earlier report")
    text = page.write(tmp_path).read_text()
    assert "Nothing was evaluated yet" in text and "launch/evaluate.py" in text
    assert [file.name for file in (tmp_path / "report").glob("*.png")] == ["training.png"]


def test_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        page.write(tmp_path / "none")
    with pytest.raises(InputError, match="holds no run"):
        page.write(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(InputError, match=r"config.json is not JSON"):
        page.write(tmp_path)


def test_damaged_results_are_named(run_folder):
    (run_folder / "evaluation" / "accuracy.json").write_text("{}")
    with pytest.raises(InputError, match=r"accuracy.json is not an evaluation record"):
        page.write(run_folder)
    (run_folder / "evaluation" / "accuracy.json").unlink()
    (run_folder / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 1 is not JSON"):
        page.write(run_folder)


def test_a_line_that_is_being_written_is_left_out(run_folder):
    assert [row["step"] for row in run_files.read(run_folder).metrics] == [10, 20, 30, 30]


def test_templates_are_in_the_package():
    folder = pathlib.Path(page.__file__).parent / "templates"
    assert {file.name for file in folder.iterdir()} >= {"page.html", "compare.html", "style.html"}


def test_page_takes_what_the_suites_write(tmp_path):
    """The writer and the reader of records are two rooms; here they meet."""
    source = from_arrays(np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1) * 5, [0, 1, 1], name="toy", split="test")
    subject = evaluation.Subject(
        "mine", ["a", "b"], lambda w, x, beta=None: x.mean((1, 2)) @ w, np.array([[-1.0, 1.0]])
    )
    settings = {
        "batch_size": 3,
        "robustness": {"num_steps": (1,), "sweep_linf": ("1/255",), "sweep_steps": 1},
        "attribution": {"num_steps": 2, "num_points": 2, "chunk": 2, "top_k": 3, "sweep": ("1/255",)},
    }
    evaluation.run_suites(
        ["accuracy", "robustness", "attribution"], subject, source, settings, tmp_path, progress=False
    )
    text = page.write(tmp_path).read_text()
    assert {file.stem for file in (tmp_path / "report").glob("*.png")} >= {"confusion", "robustness", "gallery"}
    stored = json.loads((tmp_path / "evaluation" / "robustness.json").read_text())["metrics"]["pgd_1"]["value"]
    assert tables.percent(stored) in text


def test_masked_patches_have_their_curve_and_pictures(run_folder):
    rng, evaluation = np.random.default_rng(0), run_folder / "evaluation"
    names = ("image_masking_rate", "object_masking_rate", "iou")
    share = {"value": 0.25, "low": 0.2, "high": 0.3, "count": 4, "interval": "normal"}
    points = [{"label": str(t), "x": t} | dict.fromkeys(names, share) for t in (0.1, 0.2)]
    base = json.loads((evaluation / "localization.json").read_text())
    found = {"suite": "masking", "settings": {"threshold": 0.3}, "metrics": dict.fromkeys(names, share)}
    found |= {"protocols": dict.fromkeys(names, "patches"), "curves": {"threshold": points}}
    (evaluation / "masking.json").write_text(json.dumps(base | found))
    images, objects = rng.random((2, 8, 8, 3)), np.zeros((2, 8, 8), bool)
    objects[0, 2:5, 3:6] = True  # the second image has none
    arrays = {"image": images, "object": objects, "relevance": rng.random((2, 4, 4)), "filled": images}
    np.savez(evaluation / "masking.npz", **arrays)
    text = page.write(run_folder).read_text()
    assert FIGURES | {"masking", "masked"} == {file.stem for file in (run_folder / "report").glob("*.png")}
    assert "masked of the object" in text and "IoU of mask and object" in text
    assert "whose patches above 0.3 are" in text and not Collector(text).errors
