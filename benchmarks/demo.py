"""What the demo costs on this machine: time, memory, and how soon a cell trains.

    .venv/bin/python benchmarks/demo.py [DIR]              # `make demo` has made .venv

Runs the demo study into DIR, new, or a temporary directory, and the commands that have to answer at
once, and prints one table. Memory is the largest sum, over the scheduler and its workers, of the
memory that each holds alone plus its share of what it shares (PSS; Linux only), sampled twice a
second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

COMMAND = [sys.executable, "-m", "lightning_opt"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "demo"
        if out.exists():
            raise SystemExit(f"{out} exists: the study has to run from its beginning.")
        seconds, peak = run_watched([*COMMAND, "study", "demo", "--out", str(out)])
        records = [json.loads(path.read_text()) for path in out.glob("cells/*/record.json")]
        startup = sorted(record["cost"]["startup_seconds"] for record in records)
        rows = [
            ("runs", f"{len(records)}"),
            ("the study and its report", f"{seconds:.0f} s"),
            ("peak memory, all processes", f"{peak / 1e9:.2f} GB"),
            ("a cell's start to its first step, median", f"{median(startup):.2f} s"),
            ("the same, largest", f"{startup[-1]:.2f} s"),
            ("lightning-opt --help, median of 9", f"{timed('--help'):.3f} s"),
            ("lightning-opt report", f"{timed('report', str(out), repeats=3):.1f} s"),
            ("torch imported by them", imports_torch(out)),
        ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


def run_watched(command: list[str]) -> tuple[float, int]:
    """Seconds that a command takes, and the peak of its processes' memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(memory, descendants(process.pid))))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return time.perf_counter() - start, peak


def descendants(pid: int) -> list[int]:
    """A process and everything that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # ended meanwhile
        return []
    return [pid, *(below for child in children for below in descendants(int(child)))]


def memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def timed(*arguments: str, repeats: int = 9) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def imports_torch(out: Path) -> str:
    code = (
        "import sys; from lightning_opt.cli import main;"
        f"main(['--help']); main(['report', {str(out)!r}]); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return "yes" if run.stdout.splitlines()[-1] == "True" else "no"


if __name__ == "__main__":
    main()
