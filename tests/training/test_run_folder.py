import json
import subprocess
import sys

import pytest

from jrobust.errors import InputError
from jrobust.training import run_folder

CONFIG = {"seed": 0, "train": {"steps": 3, "batch_size": 4}, "model": {"mean": (0.1, 0.2)}}


@pytest.fixture
def folder(tmp_path):
    run_folder.write_json(tmp_path / "config.json", CONFIG)
    return tmp_path


def test_a_new_folder_and_the_same_config(tmp_path, folder):
    for path in (tmp_path / "a" / "run", folder):
        with run_folder.opened(path, CONFIG) as opened:
            assert opened == path and path.is_dir()


def test_another_config_is_named(folder):
    before = (folder / "config.json").read_bytes()
    other = CONFIG | {"train": {"steps": 3, "batch_size": 8}, "new": 1}
    with (
        pytest.raises(InputError, match=r"new is 'not set' there and 1 here; train.batch_size is 4 there and 8 here"),
        run_folder.opened(folder, other),
    ):
        pass
    assert (folder / "config.json").read_bytes() == before


def test_a_run_may_be_made_longer(folder):
    with run_folder.opened(folder, CONFIG | {"train": {"steps": 6, "batch_size": 4}, "evaluation": {"examples": 3}}):
        pass


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_a_run_whose_rates_depend_on_its_length_may_not(tmp_path, name):
    run_folder.write_json(tmp_path / "config.json", CONFIG | {"optimizer": {"schedule": name}})
    longer = CONFIG | {"train": {"steps": 6, "batch_size": 4}, "optimizer": {"schedule": name}}
    with pytest.raises(InputError, match=r"train.steps is 3 there and 6 here"):
        run_folder.check_config(tmp_path, longer)


def test_what_earlier_versions_had_no_key_for(tmp_path):
    """It is what they did; also where a config is a part of what is compared."""
    saved = {"optimizer": {"name": "sgd"}, "stage": {"optimizer": {"name": "sgd"}}}
    added = {"name": "sgd", "schedule": "steps", "warmup_steps": 0, "cycle_beta1": True, "clip_norm": 0.0}
    assert run_folder.differences(saved, {"optimizer": added, "stage": {"optimizer": added}}) == []
    assert run_folder.differences({"optimizer": added}, {"optimizer": {"name": "sgd"}}) == []
    found = run_folder.differences(saved, {"optimizer": added | {"clip_norm": 1.0}, "stage": {"optimizer": added}})
    assert found == ["optimizer.clip_norm is 0.0 there and 1.0 here"]


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"), run_folder.opened(folder, CONFIG):
        pass


def test_one_process_at_a_time(tmp_path):
    script = (
        "import sys; from jrobust.training import run_folder\n"
        "with run_folder.opened(sys.argv[1], {}): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=r"another process is training in"), run_folder.opened(tmp_path, {}):
            pass
        other.stdin.close()
        other.wait()
    with run_folder.opened(tmp_path, {}):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to"), run_folder.opened(tmp_path / "file" / "run", {}):
        pass


def test_environment(tmp_path):
    run_folder.record_environment(tmp_path, 5, step=0)
    first = json.loads((tmp_path / "environment.json").read_text())
    assert first["seed"] == 5 and first["devices"]["count"] == 8 and first["versions"]["jax"]
    run_folder.record_environment(tmp_path, 5, step=20)
    second = json.loads((tmp_path / "environment.json").read_text())
    assert second.pop("resumed") == [{"step": 20} | first]
    assert second == first
