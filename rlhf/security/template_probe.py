"""A chat template of others, rendered once in a process of its own with little memory and time. Reads it from stdin.

Started as a file, with nothing of ours imported. The environment is the one that transformers renders in. Exit code 0:
harmless as far as it was seen, also where the template refused the dialogue; else one of the codes below.
"""

import json
import resource
import sys
from datetime import datetime

ESCAPES, TOO_MUCH = 3, 4
MEMORY, SECONDS, LONGEST = 2**30, 2, 2**20


def render(source: str) -> int:
    """Render two dialogues, the second with a system message, and say what happened."""
    import jinja2
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's tokens, and leaves the text as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    try:
        template = environment.from_string(source)
        for messages in (turns, [{"role": "system", "content": "s"}, *turns]):
            length = 0
            values = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
            for piece in template.generate(**values, tools=None, documents=None):
                length += len(piece)
                if length > LONGEST:
                    return TOO_MUCH
    except SecurityError:
        return ESCAPES
    except (MemoryError, OverflowError, RecursionError):
        return TOO_MUCH
    except Exception:
        return 0  # it does not like the dialogue, which is said where one is encoded
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    sys.exit(render(sys.stdin.read()))
