"""A process that holds a teacher with its engine: says the engine's process id, then asks on and on."""

import asyncio
import json
import sys

import numpy as np

from limbeck.interfaces import Prompt, Sampling
from limbeck.testing.teachers import completions
from limbeck_vllm.config import VllmConfig
from limbeck_vllm.teacher import VllmTeacher


async def main() -> None:
    teacher = VllmTeacher(VllmConfig.model_validate_json(sys.argv[1]))
    began = asyncio.ensure_future(teacher.start(lambda phase: print(json.dumps({"phase": phase}), flush=True)))
    while teacher._engine is None:
        await asyncio.sleep(0.01)
    print(json.dumps({"pid": teacher._engine.pid}), flush=True)
    await began
    prompts = [Prompt(i, np.array([2, 70, 71], np.int32)) for i in range(6)]
    while True:
        print(
            json.dumps({"written": len(await completions(teacher, prompts, Sampling(max_new_tokens=40)))}), flush=True
        )


asyncio.run(main())
