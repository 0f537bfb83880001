"""Two real processes of four simulated devices each: how a test starts them, and what they do.

Run as a script it is one of them: ``python processes.py JOB PORT INDEX FOLDER ARGUMENTS``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
COUNT, DEVICES = 2, 4
STRAIGHT = {"data": 2, "fsdp": 2, "context": 2}
MIXED = (0, 4, 1, 2, 5, 6, 3, 7)
MESHES = {"straight": (STRAIGHT, None), "crossing": ({"context": 8}, None), "mixed": (STRAIGHT, MIXED)}
"""Axes and an order of devices. Straight: each process has half of the rows, whole. Crossing: each has half
of the chunks of all rows. Mixed: of four pairs of rows the first and the last lie half in each process, the
second in the first process and the third in the other, so that each feeds rows which are no neighbours."""


GLOO = re.compile(r"\[Gloo\]|Rank|is connected to|Expected number of connected|peer ranks|is :|[.]|\d+")
"""What Gloo writes to standard output by itself, in pieces that its threads may mix."""


def said(out: str) -> list[str]:
    """Lines of standard output, without those that are Gloo's alone."""
    return [line for line in out.splitlines() if GLOO.sub("", line).strip()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(command: list[str], folder: Path, *, timeout: float = 1800, env=None) -> list[tuple[int, str, str]]:
    """Run a command as two processes and wait for both: status, stdout and stderr of each.

    ``{port}`` and ``{index}`` in the command are filled in. Whatever happens, no process is left.
    """
    port, children = free_port(), []
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WORLDSIM_", "SLURM_", "OMPI_"))}
    clean |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        "PYTHONUNBUFFERED": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{i}.log").open("w+")) for i in range(2 * COUNT)]
        try:
            for i in range(COUNT):
                words = [word.format(port=port, index=i) for word in command]
                out, err = files[2 * i : 2 * i + 2]
                children.append(
                    subprocess.Popen(
                        [sys.executable, *words], env={**clean, **(env or {})}, stdout=out, stderr=err
                    )
                )
            until = time.monotonic() + timeout
            while any(child.poll() is None for child in children) and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            late = [child.poll() is None for child in children]
            for child in children:
                child.kill()
                child.wait()
        for file in files:
            file.seek(0)
        texts = [file.read() for file in files]
    ends = [(c.returncode, texts[2 * i], texts[2 * i + 1]) for i, c in enumerate(children)]
    assert not any(late), f"not done after {timeout} s:\n" + report(ends)
    return ends


def job(name: str, folder: Path, *args: str, status: int | None = 0, **options) -> list[tuple[int, str, str]]:
    """Run one of this file's jobs as two processes, both of which should end with this status, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(HERE / "processes.py"), name, "{port}", "{index}", str(folder), *args]
    ends = run(command, folder, **options)
    assert status is None or [end[0] for end in ends] == [status] * COUNT, report(ends)
    return ends


def report(ends: list[tuple[int, str, str]]) -> str:
    return "\n".join(
        f"--- process {i}: status {status}\n{out[-1000:]}\n{err[-4000:]}"
        for i, (status, out, err) in enumerate(ends)
    )


# What follows runs in the processes themselves.


def small(folder: Path) -> None:
    """What they agree on; then a toy training in which the second process gets SIGTERM."""
    import jax
    from fake_stage import make_stage

    from worldsim.config import TrainConfig
    from worldsim.parallel import mesh, placement
    from worldsim.train.loop import train_stage

    (folder / f"agreed_{jax.process_index()}.json").write_text(json.dumps(agreed(folder)))
    place = mesh.make_mesh(STRAIGHT, devices=[jax.devices()[i] for i in MIXED])
    mine = list(placement.local_rows(place, 4))
    stage = make_stage(hook=lambda _, batch: {name: array[mine] for name, array in batch.items()})
    at = {1} if jax.process_index() == 1 else set()
    train_stage(signalled(stage, at), folder / "work", seed=3, config=TrainConfig(), mesh=place)


def agreed(folder: Path) -> dict:
    """What the functions of agreement say in this process."""
    import jax
    import numpy as np

    from worldsim.parallel import agreement, mesh, placement, shares
    from worldsim.train.loop import end_if_asked, termination

    index, whole = jax.process_index(), mesh.make_mesh(STRAIGHT)
    mixed = mesh.make_mesh(STRAIGHT, devices=[jax.devices()[i] for i in MIXED])

    def refused(call, *args, **kwargs) -> str:
        try:
            call(*args, **kwargs)
        except ValueError as error:
            return str(error)
        return ""

    def made(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows / 3, np.full(len(rows), index)], axis=1)  # float64, which JAX would round

    asked, votes = threading.Event(), []
    stops = agreement.stop_requests(asked, whole)
    for step in range(6):
        if step == 3 and index == 1:
            asked.set()
        votes.append(next(stops))
    ended = []
    for due in (False, True):
        with termination() as heard, contextlib.suppress(SystemExit):
            if due and index == 1:
                signal.raise_signal(signal.SIGTERM)
            ended.append(143)
            end_if_asked(heard, whole)
            ended[-1] = 0
    return {
        "ended": ended,
        "votes": votes,
        "lead": np.asarray(agreement.from_lead(np.int32(index + 7))).tolist(),
        "text": agreement.text_from_lead("größer" if index == 0 else "-"),
        "shares": [shares.in_shares(count, made).tolist() for count in (5, 1)],
        "rows": placement.local_rows(mixed, 8, sequence=True),
        "idle": refused(mesh.training_mesh, mesh.make_mesh({"data": 4})),
        "none": refused(mesh.training_mesh, None),
        "alike": refused(agreement.check_alike, {"a": 1, "b": {"c": 2}}, what="x"),
        "unlike": refused(agreement.check_alike, {"a": 1, "b": {"c": index}}, what="Stage 'x'"),
        "shared": refused(agreement.check_shared, folder / "both"),
        "apart": refused(agreement.check_shared, folder / str(index)),
        "left": sorted(path.name for path in (folder / "both").iterdir()),
    }


def gradients(folder: Path, *names: str) -> None:
    """The first step of the dynamics on meshes that lie across both."""
    import jax
    import numpy as np
    from test_law_mesh import first_step

    for name in names:
        loss, grads, _ = first_step(tuple(MESHES[name][0].items()), order=MESHES[name][1])
        np.savez(folder / f"{name}_{jax.process_index()}.npz", loss=loss, **grads)


def train(folder: Path, name: str, *stops: str) -> None:
    """Twenty steps, or until SIGTERM comes: ``0:5`` sends it to process 0 at the batch of step 6."""
    import jax
    from test_law_mesh import VECTORS, some_codes, some_config

    from worldsim.parallel.mesh import make_mesh
    from worldsim.train.loop import train_stage
    from worldsim.train.stages import dynamics_stage

    mesh, config = make_mesh(MESHES[name][0]), some_config()
    stage = dynamics_stage(config, some_codes(), vectors=VECTORS, mesh=mesh)
    at = {int(stop.split(":")[1]) for stop in stops if int(stop.split(":")[0]) == jax.process_index()}
    train_stage(signalled(stage, at), folder, seed=3, config=config, mesh=mesh)


def signalled(stage, at: set[int]):
    """The stage, whose process gets SIGTERM when the batches of some steps are made."""

    def batches(start: int) -> Iterator[dict]:
        for step, batch in enumerate(stage.batches(start), start):
            if step in at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return dataclasses.replace(stage, batches=batches)


def fail(folder: Path) -> None:
    """The second process has a fault while the first one waits for it."""
    import jax
    from fake_stage import make_stage

    from worldsim.config import TrainConfig
    from worldsim.parallel.mesh import make_mesh
    from worldsim.train.loop import train_stage

    def hook(step, batch):
        if step == 2 and jax.process_index() == 1:
            raise ValueError("a record that can't be read")
        return batch

    train_stage(make_stage(hook=hook), folder, seed=3, config=TrainConfig(), mesh=make_mesh({"context": 8}))


def unshared(folder: Path) -> None:
    """The second process can't do its share."""
    import jax

    from worldsim.parallel import agreement, shares

    def work(rows):
        if jax.process_index() == 1:
            raise ValueError(f"a window that can't be read, for {folder}")
        return rows

    agreement.meet("before")
    shares.in_shares(3, work)


def main(name: str, port: str, index: str, folder: str, *args: str) -> None:
    from worldsim.parallel import distributed

    distributed.PATIENCE = 10 if name in ("fail", "unshared") else distributed.PATIENCE
    distributed.start(f"127.0.0.1:{port}", processes=COUNT, index=int(index))
    jobs = {"small": small, "gradients": gradients, "train": train, "fail": fail, "unshared": unshared}
    jobs[name](Path(folder), *args)


if __name__ == "__main__":
    main(*sys.argv[1:])
