"""The built-in data generators."""

from limbeck.generators.config import PromptsConfig
from limbeck.interfaces import Generator, GeneratorPlugin


def _prompts(config: PromptsConfig) -> Generator:
    from limbeck.generators.prompts import Prompts

    return Prompts(config)


PLUGINS = (
    GeneratorPlugin(
        name="prompts",
        config=PromptsConfig,
        factory=_prompts,
        summary="A teacher's answers to prompts of a JSONL file.",
    ),
)

__all__ = ["PLUGINS", "PromptsConfig"]
