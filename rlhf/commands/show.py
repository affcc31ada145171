"""`rlhf show`: every setting, its value, and where the value came from."""

from __future__ import annotations

from rlhf.commands.request import Request
from rlhf.commands.text import table
from rlhf.errors import ConfigError, did_you_mean


def main(request: Request) -> int:
    """rlhf show."""
    from rlhf.provenance.origins import settings
    from rlhf.provenance.origins import show as text

    loaded = request.load()
    rows = [[name, text(value), loaded.origins[name]] for name, value, _ in settings(loaded.recipe)]
    if request.stage:
        sections = {name.partition(".")[0] for name, *_ in rows if "." in name}
        wanted = [word.rpartition("-")[0] if word[-1:].isdigit() else word for word in request.stage.split(",")]
        for section in wanted:
            if section not in sections:
                hints = [did_you_mean(section, sections), f"sections: {', '.join(sorted(sections))}"]
                raise ConfigError(f"no settings for stage {section}", hints=[hint for hint in hints if hint])
        rows = [row for row in rows if row[0].partition(".")[0] in wanted and "." in row[0]]
    table(rows)
    return 0
