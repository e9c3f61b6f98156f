"""The base install, without extras: it imports, lists its plugins and reads events, and has no torch."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import google.protobuf

import limbeck
import limbeck.report
from limbeck.v1.event_pb2 import Event

LIMBECK = str(Path(sys.executable).with_name("limbeck"))

assert find_spec("torch") is None
assert find_spec("transformers") is None
event = Event(sequence=1, stage="train")
event.metrics.values["loss"] = float("nan")
assert Event.FromString(event.SerializeToString()).stage == "train"
listed = subprocess.run([LIMBECK, "plugins"], capture_output=True, text=True, check=True).stdout
assert "forward_kl" in listed, listed
subprocess.run([LIMBECK, "--help"], stdout=subprocess.DEVNULL, check=True)
print(f"limbeck {limbeck.__version__} imports under protobuf {google.protobuf.__version__}")
