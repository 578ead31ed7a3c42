"""What --dry_run prints: that it is what a run compiles, and that nothing comes of it."""

import os
import re
import subprocess
import sys

import assembly
import command
import dry_run
import grid
import jax
import pytest
import session

from benchmarks import training
from jrobust import methods
from jrobust.errors import InputError
from jrobust.training import collectives, cost, loop, parallel

RATES = cost.Rates(1e9, 1e9)


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A device of 1 GFLOP/s and 1 GB/s."""
    monkeypatch.setattr(dry_run, "_rates", lambda dtype: RATES)


@pytest.fixture(scope="module")
def found(read):
    return dry_run.plan(assembly.build(read()), parallel.make_mesh(1))


def test_the_plan_is_that_of_the_program_that_the_run_compiles(found, read, tmp_path, monkeypatch):
    compiled, mesh = [], parallel.make_mesh(1)
    original = parallel.Parallel.compile

    def compile(self, *arguments):
        compiled.append(original(self, *arguments))
        return compiled[-1]

    monkeypatch.setattr(parallel.Parallel, "compile", compile)
    monkeypatch.setattr(session, "evaluate", lambda *_: [])
    parts = assembly.build(read())
    summary = session.train(parts, tmp_path / "run", mesh, None, loop.Progress)
    analysis, memory = compiled[0].memory_analysis(), found.cost.memory
    assert memory.arguments == analysis.argument_size_in_bytes
    assert memory.temporaries == analysis.temp_size_in_bytes > 0
    assert memory.outputs - memory.aliased == analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    assert found.cost.bytes == compiled[0].cost_analysis()["bytes accessed"]
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(summary.train_state))
    images = len(parts.train) * (8 * 8 + 4)  # uint8 images and int32 labels
    assert (dry_run.bytes_of(found.state), found.resident, found.batch) == (state, images, 4 * 128)
    assert 0 <= memory.arguments - (state + images + 4 * 128) < 256  # the key, and rounding up
    assert found.steps == summary.total_steps == 4


def test_flops_are_those_of_the_benchmark(found, read):
    config, parts = read(), assembly.build(read())
    program = training.compile_step(
        config,
        methods.build(config.method, parts.classifier),
        128,
        shape=(8, 8, 1),
        num_classes=10,
    )
    assert found.cost.flops == pytest.approx(program.fields["flops"], rel=1e-3)
    assert 2 < found.cost.flops / found.forward_flops < 4


def test_what_is_printed_and_that_nothing_is_written(found, read, tmp_path, capsys):
    assert dry_run.start(read(), tmp_path / "run", 1) == 0
    printed = capsys.readouterr().out
    seconds = max(found.cost.flops, found.cost.bytes) / 1e9
    for text in (
        "method   standard",
        "digits: 1,437 training and 360 test images 8x8x1",
        r"steps    4 of 128 images",
        f"trained      {8 * 8 * 4 + 4 + 4 * 10 + 10:,} parameters, 1.2 kB",
        "optimizer    sgd, 1.2 kB of state",
        "batch        128 images on each device",
        f"memory       {dry_run.decimal(found.cost.memory.peak)} on each device",
        f"temporaries {dry_run.decimal(found.cost.memory.temporaries)}",
        f"step         {found.cost.flops / 1e9:.4g} GFLOP",
        "1 GFLOP/s in matrix products, 1 GB/s",
        f"step time    at least {seconds:.2g} s",
        f"length       4 steps: at least {4 * seconds:.2g} s",
        "a loose floor",
        f"the whole run: at least {4 * seconds:.2g} s",
    ):
        assert text in printed, (text, printed)
    assert "collectives" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", parallel.MODES)
def test_devices_share_the_work_and_send_each_other_the_gradients(found, read, mode):
    parts, mesh = assembly.build(read("", f"--config.train.parallelism={mode}")), parallel.make_mesh(4)
    shared = dry_run.plan(parts, mesh)
    assert shared.cost.flops == pytest.approx(found.cost.flops, rel=1e-6)
    assert shared.batch == found.batch // 4
    gradients = dry_run.bytes_of(found.state.params)
    moved = sum(traffic.bytes for traffic in shared.traffic.values())
    assert gradients <= moved <= gradients + 100  # and the means of some metrics
    lines = "\n".join(dry_run.report(shared, mesh, parts.config, RATES))
    assert "collectives" in lines and "the 4 devices are simulated" in lines
    seconds = max(shared.cost.flops, shared.cost.bytes) / 4e9
    assert f"step time    at least {seconds:.2g} s" in lines


def test_more_devices_than_there_are(config_file, tmp_path):
    script = [sys.executable, str(command.ROOT / "launch" / "run.py"), f"--config={config_file}", "--dry_run"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [*script, "--devices=16"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert "devices  16 x cpu, jit" in done.stdout and "batch        8 images on each device" in done.stdout
    assert re.search(r"collectives  1\.\d kB in \d+ all-reduce on each device", done.stdout)
    assert "the 16 devices are simulated" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_study_tells_of_its_first_run_and_counts_the_others(config_file, tmp_path, capsys, found):
    section = {"rows": ("width=4", "width=5"), "seeds": (0, 1)}
    arguments = f"{config_file}:study", [], section, str(tmp_path / "study")
    assert dry_run.start_study(*arguments, 1) == 0
    printed = capsys.readouterr().out
    assert "2 rows, 4 runs, 0 of them done" in printed and "first    width=4-seed0" in printed
    total = 4 * 4 * RATES.seconds(found.cost)
    assert f"3 runs follow: all 4 at least {total:.2g} s" in printed
    assert not list(tmp_path.iterdir())
    assert len(grid.of_section(*arguments)[1]) == 4


def test_both_stages_of_jtt(read, tmp_path, capsys):
    dry_run.start(read("method=jtt"), tmp_path / "run", 1)
    printed = capsys.readouterr().out
    first, second = printed.index("stage 1 of 2: identification"), printed.index("stage 2 of 2")
    assert "method   identification" in printed[first:second] and "method   standard" in printed[second:]
    assert "stage 2 repeats it 3 times and is longer" in printed
    assert not list(tmp_path.iterdir())


def test_what_cannot_be(read, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"a batch of 128 does not divide by 3 devices"):
        dry_run.start(read(), tmp_path / "run", 3)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("too late"))
    for dry, devices, message in ((True, -1, "--devices=-1: expected"), (False, 8, "--devices goes with --dry_run")):
        with pytest.raises(InputError, match=message):
            dry_run.prepare(dry, devices)


def test_collectives_of_a_text():
    text = """
      %a = f32[8,2]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
      %b = (f32[], bf16[3]{0}) all-reduce(%x, %y), to_apply=%add
      %c = (f32[2]{0}, f32[4]{0}) all-gather-start(%x), dimensions={0}
      %d = f32[4]{0} all-gather-done(%c)
      %e = f32[4]{0} add(%d, %d), metadata={op_name="all-reduce(x)"}
    """
    found = collectives.of_text(text)
    assert found == {"all-reduce": (2, 64 + 4 + 6), "all-gather": (1, 16)}
