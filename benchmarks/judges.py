"""Finished runs before a second judge: our attack beside AutoAttack, and the checks for hidden gradients.

    .venv/bin/python benchmarks/judges.py runs/study/* --out runs/judged

Writes a judgement for each run into the folder `--out`, and at the end all of them into `judges.json` beside them. The
same command continues after an interruption. Attacks are transferred between the runs that are named together. An MLP
takes about six minutes of CPU time at 1,000 images and three radii, a ConvNET twice as long, most of it AutoAttack's.
"""

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from se_core.lab.config import EvaluationConfig
from se_core.lab.executors import configure_process
from se_core.lab.judges import JudgeConfig, judge
from se_core.lab.storage import write_json


def rows(judgement: dict[str, Any]) -> list[str]:
    """What a judgement says, a line for each task and for each check that does not hold."""
    lines = []
    for task in judgement["tasks"]:
        name = f"{task['dataset']} {task['architecture']} {task['method']} seed {task['seed']}, {task['task']}"
        lines.append(f"{name} ({judgement['run']}, {sum(task['seconds'].values()):.0f} s)")
        for radius, ours, theirs in zip(task["radii"], task["ours"], task["autoattack"], strict=True):
            difference = f"{100 * (ours - theirs):+.1f}"
            lines.append(
                f"  radius {radius:<5g} ours {100 * ours:5.1f} %, AutoAttack {100 * theirs:5.1f} %, {difference}"
            )
        for row in task["masking"]["rows"]:
            verdict = "holds" if row["holds"] else "FAILS"
            accuracies = f"{100 * row['accuracy']:5.1f} % against {100 * row['reference']:5.1f} %"
            lines.append(f"  {verdict}: {row['check']:60s} {accuracies}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--masking-radius", type=float, default=0.1)
    parser.add_argument("--masking-images", type=int, default=500)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    configure_process()
    evaluation = EvaluationConfig(radii=tuple(arguments.radii), test_images=arguments.images, split=arguments.split)
    config = JudgeConfig(evaluation, arguments.masking_radius, arguments.masking_images)
    with tqdm(total=len(arguments.folders), desc="runs judged") as bar:

        def tell(judgement: dict[str, Any]) -> None:
            bar.write("\n".join(rows(judgement)))
            bar.update()

        result = judge(arguments.folders, config, arguments.out, arguments.device, tell)
    write_json(arguments.out / "judges.json", result)


if __name__ == "__main__":
    main()
