"""A Slurm job array: which runs, the script of its jobs, and what each job does on its node.

Near the time limit Slurm warns the shell of a job, which tells the training to stop; that saves at that very step, and
the job goes back into the queue. `se_core.lab.slurm` submits arrays and watches them.
"""

import platform
import shlex
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import se_core
from se_core.errors import SmoothEncoderError
from se_core.lab.config import EvaluationConfig, RunConfig, digest
from se_core.lab.executors import configure_process
from se_core.lab.experiments import train_and_evaluate
from se_core.lab.storage import read_json, write_atomically, write_json
from se_core.lab.training import Interrupted

WARNING_S = 120  # seconds between Slurm's warning and the time limit, in which a step ends and is saved
_GO_ON_LATER = 75  # EX_TEMPFAIL of sysexits.h

_SCRIPT = """\
#!/usr/bin/env bash
# One run. Near the time limit it is saved at that very step, and comes back into the queue.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}
trap 'signalled=1; kill -INT $!' USR1   # the warning, by --signal
trap 'signalled=1; kill -TERM $!' TERM  # scancel, preemption
{python} -P -m se_core.lab.slurm_array {file} "$SLURM_ARRAY_TASK_ID" &
while signalled=; wait $!; status=$?; [ "$signalled" ]; do :; done  # a signal ends the first wait
[ $status != {later} ] || exec scontrol requeue "$SLURM_JOB_ID"
[ $status -le 128 ] || echo "the training was killed by SIG$(kill -l $status) (too little memory?)"
exit $status
"""


@dataclass(frozen=True)
class Array:
    """Runs that are submitted together, to be evaluated alike: task n of the array does `configs[n]`."""

    runs: str  # the folder of the runs, the same absolute path on every node
    evaluation: EvaluationConfig
    configs: tuple[RunConfig, ...]

    @classmethod
    def read(cls, file: Path) -> "Array":
        """The array that `write` has written. Raises CheckpointError."""
        content = read_json(file)
        configs = tuple(RunConfig(**config) for config in content["configs"])
        return cls(content["runs"], EvaluationConfig(**content["evaluation"]), configs)

    @property
    def name(self) -> str:
        """The name of its jobs: of the same runs in the same folder, the same."""
        return f"se-core-{digest(self)}"

    @property
    def script(self) -> str:
        """What each job executes."""
        root = Path(se_core.__file__).absolute().parents[1]
        python, path, file = (shlex.quote(str(part)) for part in (sys.executable, root, self._beside(".json")))
        return _SCRIPT.format(python=python, path=path, file=file, later=_GO_ON_LATER)

    def command(self, options: list[str], at_once: int) -> list[str]:
        """The `sbatch` that submits it: `options` are the user's, `at_once` the number of jobs at a time."""
        tasks, log = f"0-{len(self.configs) - 1}%{at_once}", self.log("%A", "%a")
        own = ["--parsable", f"--job-name={self.name}", f"--array={tasks}", "--requeue", "--open-mode=append"]
        return ["sbatch", f"--signal=B:USR1@{WARNING_S}", *options, *own, f"--output={log}", str(self._beside(".sh"))]

    def log(self, number: str, task: int | str) -> Path:
        """What task `task` of the array that Slurm calls `number` prints, and what Slurm says of it."""
        return self._beside(f"-{number}_{task}.log")

    def write(self) -> None:
        """Write what its jobs need. Raises StorageError."""
        write_json(self._beside(".json"), asdict(self))
        write_atomically(self._beside(".sh"), self.script.encode())

    def _beside(self, suffix: str) -> Path:
        return Path(self.runs) / "slurm" / (self.name + suffix)


def work(array: Array, task: int) -> int:
    """Do one run of the array; the status for its script. Where it fails, what it printed last says why."""
    config, reports, told_to_end = array.configs[task], 0, False

    def progress(steps: int) -> None:
        nonlocal reports
        reports += 1

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal told_to_end
        if not told_to_end:  # Slurm tells both the shell and this process, and the shell passes it on
            told_to_end = True
            signal.raise_signal(signal.SIGINT)

    configure_process()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background process begins deaf to it
    signal.signal(signal.SIGTERM, end)
    print(f"{config.name} on {platform.node()}", flush=True)
    try:
        train_and_evaluate(config, array.evaluation, Path(array.runs), progress)
        return 0
    except (Interrupted, KeyboardInterrupt) as stop:
        if told_to_end:
            print(f"ended by Slurm (scancel, preemption): {str(stop) or 'in its evaluation'}")
        elif reports > 1:  # the first one tells where an earlier job has left it
            print(f"the time limit is near: {str(stop) or 'trained; the evaluation begins again'}")
            return _GO_ON_LATER
        else:  # and it would not another time
            print("a whole time limit was not enough for one step or for the evaluation; raise --time in --slurm")
    except SmoothEncoderError as error:
        print(f"{type(error).__name__}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(work(Array.read(Path(sys.argv[1])), int(sys.argv[2])))
