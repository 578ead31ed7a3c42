"""`two_processes.py first|second FOLDER FLAGS`: one of the processes of test_two_processes.py, and what they train."""

import functools
import io
import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Interrupted:
    """Batches that send the process a signal as number `at` is asked for, and are slow from then on."""

    def __init__(self, batches, at, number):
        self.batches, self.at, self.number = batches, at, number

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __next__(self):
        if self.batches.get_state()["step"] == self.at:
            os.kill(os.getpid(), self.number)
        if self.batches.get_state()["step"] >= self.at:
            time.sleep(0.5)  # JAX looks for a signal once a second
        return next(self.batches)


def train(workdir, *, resident=True, interrupt=None, stream=None, mesh=None):
    """Train the toy network on this process's part of the toy images; `interrupt` is (process, batch, signal)."""
    import jax

    from jrobust import data
    from jrobust.training import loop
    from jrobust.training.progress import Progress
    from tests.training import toy

    arrays = toy.data()
    source = data.from_arrays(arrays["image"], arrays["label"])
    batches = data.TrainBatches(
        source,
        16,
        seed=3,
        resident=resident,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if interrupt and interrupt[0] == jax.process_index():
        batches = Interrupted(batches, *interrupt[1:])
    return loop.train(
        toy.ToyMethod(),
        toy.config(),
        workdir,
        batches=batches,
        prepare=data.make_prepare({"flip": True}),
        test_batches=lambda: toy.evaluation_batches(toy.data(40, seed=1)),
        mesh=mesh,
        progress=functools.partial(Progress, stream=stream or io.StringIO()),
    )


def main():
    phase, folder = sys.argv.pop(1), pathlib.Path(sys.argv.pop(1))
    sys.path[:0] = [str(ROOT), str(ROOT / "launch")]
    import command
    import distributed

    def first():
        train(folder / "whole")
        train(folder / "killed", resident=False, interrupt=(1, 8, signal.SIGKILL))
        return 0

    def second():
        resumed = train(folder / "killed")
        print(f"resumed from {resumed.resumed_from}")
        stopped = train(folder / "stopped", interrupt=(1, 3, signal.SIGTERM))
        print(f"stopped at {stopped.step} by {stopped.signal}", file=sys.stderr)
        return 0

    command.run(distributed.joined({"first": first, "second": second}[phase]))


if __name__ == "__main__":
    main()
