"""`two_processes.py first|second FOLDER FLAGS`: one of the processes of test_two_processes.py, and what they train."""

import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def settings(*overrides):
    import command

    return command.read_config(str(ROOT / "tests" / "end_to_end" / "tiny_digits.py"), overrides)


def train(workdir, *overrides, mesh=None):
    import assembly
    import session

    from jrobust.training import parallel
    from jrobust.training.progress import Progress

    return session.train(assembly.build(settings(*overrides)), workdir, mesh or parallel.make_mesh(), None, Progress)


def interrupt(process, at, number, saved=None):
    """Send a process a signal as batch number `at` is asked for, but not before the folder `saved` is there."""
    import jax

    from jrobust import data

    following = data.TrainBatches.__next__

    def interrupted(batches):
        step = batches.get_state()["step"]
        if jax.process_index() == process and step >= at:
            while step == at and saved is not None and not saved.is_dir():
                time.sleep(0.05)
            if step == at:
                os.kill(os.getpid(), number)
            time.sleep(0.5)  # JAX looks for SIGTERM once a second
        return following(batches)

    data.TrainBatches.__next__ = interrupted


def main():
    phase, folder = sys.argv.pop(1), pathlib.Path(sys.argv.pop(1))
    sys.path[:0] = [str(ROOT), str(ROOT / "launch")]
    import command
    import distributed

    def first():
        train(folder / "whole")
        interrupt(1, 8, signal.SIGKILL, saved=folder / "killed" / "checkpoints" / "6")
        train(folder / "killed", "--config.data.resident=False")
        return 0

    def second():
        import session

        session.run_one(settings(), folder / "killed")
        interrupt(1, 3, signal.SIGTERM)
        stopped = train(folder / "stopped")
        print(f"stopped at {stopped.step} by {stopped.signal}", file=sys.stderr)
        return 0

    command.run(distributed.joined({"first": first, "second": second}[phase]))


if __name__ == "__main__":
    main()
