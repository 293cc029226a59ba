"""The whole house on one machine: a cloud process, an edge process, and a question."""

import subprocess
import sys
import tempfile
from contextlib import ExitStack

from outrider import Client

OUTRIDER = [sys.executable, "-c", "from outrider.cli import main; main()"]


def start(house: ExitStack, *words: str) -> str:
    """Start a server on a free port; its address, from what it says on standard error."""
    process = subprocess.Popen([*OUTRIDER, *words], stderr=subprocess.PIPE, text=True)
    house.callback(process.communicate)
    house.callback(process.terminate)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if " serves " in line:
            return line.rstrip().rpartition(" at ")[2] if words[0] == "cloud" else line.split()[3]
    raise SystemExit("".join(said))


with ExitStack() as house:
    runtime = ("--runtime-dir", house.enter_context(tempfile.TemporaryDirectory()))
    cloud = start(house, "cloud", "--listen", "127.0.0.1:0", *runtime)
    edge = start(house, "edge", "--listen", "127.0.0.1:0", "--cloud", cloud, *runtime)
    client = house.enter_context(Client(edge.rstrip(",")))
    for placement in ("cloud", "draft"):
        answer = client.complete("class Stack:", max_tokens=32, temperature=0, placement=placement)
        print(f"--- {answer.placement}: {answer.choices[0].done.speculation.passes} passes")
        print(answer.text)
