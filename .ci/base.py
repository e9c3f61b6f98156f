"""The base install, without extras: it imports, lists its plugins, reads events, serves and asks; it has no torch."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import google.protobuf

import limbeck
import limbeck.report
from limbeck.client import connect
from limbeck.errors import LimbeckError, Reason
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
serve = [LIMBECK, "serve", "--listen", "127.0.0.1:0", "--teacher", f"none={Path(__file__).with_name('teacher.yaml')}"]
with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with connect(address) as client:
            (teacher,) = client.teachers()
            assert (teacher.name, teacher.info) == ("none", None)
            reason = None
            try:
                client.teacher("other")
            except LimbeckError as error:
                reason = error.reason
            assert reason is Reason.TEACHER_UNKNOWN
    finally:
        server.terminate()
print(f"limbeck {limbeck.__version__} imports under protobuf {google.protobuf.__version__}")
