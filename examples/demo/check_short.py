"""What must be true after the short demo: the loss fell, the report is there, the student needs no Limbeck.

python examples/demo/check_short.py runs/gemma-short
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# In an interpreter of its own, in which `import limbeck` fails.
LOAD = """
import sys
sys.modules["limbeck"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
ids = tokenizer("The museum is open", return_tensors="pt").input_ids
assert ids[0].tolist().count(2) == 1, "the text is not led by exactly one <bos>"
with torch.no_grad():
    logits = model(ids).logits
assert torch.isfinite(logits).all(), "a logit is not finite"
layers = model.config.num_hidden_layers
assert layers == 9 and len(model.model.layers) == 9, f"the student has {layers} layers, not 9"
assert not [name for name, _ in model.named_parameters() if "limbeck" in name]
made = model.generate(ids, max_new_tokens=4, do_sample=False)
count = sum(parameter.numel() for parameter in model.parameters())
print(f"transformers alone: {count:,} parameters, says {tokenizer.decode(made[0])!r}")
"""


def main() -> None:
    """Check the folder given on the command line; a word and exit code 1 where something is wrong."""
    folder = Path(sys.argv[1])
    page = (folder / "report" / "index.html").read_text("utf-8")
    if "<svg" not in page:
        sys.exit("the report has no curve")
    report = json.loads((folder / "report" / "report.json").read_text("utf-8"))
    for stage, name in (("train", "losses.forward_kl"), ("train", "loss"), ("twin", "loss")):
        values = [float(value) for value in report["history"]["series"][stage][name]["values"]]
        if not sum(values[-2:]) / 2 < 0.9 * values[0]:
            sys.exit(f"{name} of the stage {stage} did not fall: {values}")
        print(f"{stage}: {name} fell from {values[0]:.3f} to {values[-1]:.3f}")
    models = report["evaluation"]["models"]
    for name in ("teacher", "untrained", "twin", "student"):
        print(f"{name}: KL {models[name]['forward_kl']:.3f}, top-1 {models[name]['top1_agreement']:.3f}")
    if not models["student"]["forward_kl"] < models["untrained"]["forward_kl"]:
        sys.exit("the student is no nearer to its teacher than before training")
    subprocess.run([sys.executable, "-c", LOAD, str(folder / "student")], check=True)


if __name__ == "__main__":
    main()
