"""A virtual environment for each peer, so that none has to agree with another about versions."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.engines import PEERS, python_of


def install(home: Path, name: str) -> None:
    """Make a peer's environment; one that is complete is left as it is.

    A source build takes the machine's own instruction set, which is what its users are told to do.
    """
    peer, python = PEERS[name], python_of(home, name)
    stamp = python.parent.parent / "installed.txt"
    wanted = "\n".join(peer.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"{name}: is there")
        return
    print(f"{name}: installing {', '.join(peer.requirements)}", flush=True)
    venv.create(python.parent.parent, with_pip=True)
    options = [f"--no-binary={package}" for package in peer.source_builds]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *options, *peer.requirements], check=True, stdout=sys.stderr
    )
    if peer.unwanted:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *peer.unwanted], check=True)
    stamp.write_text(wanted)
