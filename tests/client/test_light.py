"""The client imports nothing heavy, also while it works."""

from __future__ import annotations

import subprocess
import sys

from .scripted import Scripted, serving

CODE = """
import sys
import numpy as np
from limbeck.client import ScoreItem, Want, connect
with connect(sys.argv[1]) as client:
    item = ScoreItem(7, np.array([1, 2, 3], np.int32), 0, 2)
    (item_id, signal), = client.score("t", [item], Want(target=True))
    print(item_id, signal.target.tolist())
heavy = {"torch", "transformers", "tokenizers", "jinja2", "limbeck.service"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_a_client_in_another_process_needs_no_torch():
    with serving(Scripted()) as address:
        done = subprocess.run([sys.executable, "-c", CODE, address], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 [-8.0, -9.0]\n", "")
