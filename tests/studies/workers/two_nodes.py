"""Runs a study on a cluster of two nodes on this machine, and kills one of them under a run; see test_ray.py.

Prints as JSON when the node was killed and which runs had begun by then.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

ADDRESS = "127.0.0.1"


def begun(output: Path) -> list[str]:
    """The runs that have been evaluated and have not ended."""
    evaluated = [file.parent for file in output.glob("runs/*/metrics.jsonl") if file.stat().st_size]
    return [folder.name for folder in evaluated if not (folder / "result.json").exists()]


def main(file: Path, output: Path) -> int:
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "node_ip_address": ADDRESS, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1, node_ip_address=ADDRESS)
    command = [sys.executable, "-m", "shiftproof", "study", "run", file, "--output", output, "--backend", "ray"]
    try:
        with subprocess.Popen([*command, "--address", cluster.address], stdout=subprocess.DEVNULL) as driver:
            while len(runs := begun(output)) < 2 and driver.poll() is None:  # a node has one CPU, so one run
                time.sleep(0.01)
            killed = time.time()
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=1, node_ip_address=ADDRESS)
        print(json.dumps({"killed": killed, "begun": runs}))
        return driver.returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
