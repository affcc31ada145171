"""The same conversation in a page on this machine: the one door to nicegui, bound to the loopback address only.

What a model says is put on the page as text, never as markup. The toolkit's own files are served from here; nothing is
fetched from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.checkpoint import shown
from rlhf.data.types import RATINGS
from rlhf.errors import MissingError, RlhfError
from rlhf.reporting.text import plain
from rlhf.talk.conversation import Conversation, Reply, keep

LOOPBACK = "127.0.0.1"

# The toolkit sets a blue on the body itself that is too pale to read on white, and names no language.
STYLE = """
body { --q-primary: #00695c !important; max-width: 76rem; margin: auto }
body.body--dark { --q-primary: #6fd0c4 !important }
body.body--dark .bg-primary, body.body--dark .bg-primary * { color: #111 !important }
body .q-field__label { color: inherit }
"""
LANGUAGE = "<script>document.documentElement.lang = 'en'</script>"


def serve(conversation: Conversation, *, save_to: Path, port: int, title: str) -> None:
    """Serve the page until interrupted.

    Raises:
        MissingError: if the toolkit is not installed.
    """
    try:
        from nicegui import ui
    except ImportError:
        raise MissingError(
            "the page needs nicegui, which is not installed", hints=["pip install 'rlhf[web]'", "or leave out --web"]
        ) from None
    print(f"chat: http://{LOOPBACK}:{port}   (ctrl-c ends it)", flush=True)
    ui.run(
        lambda: Page(ui, conversation, save_to, title).build(),
        host=LOOPBACK,
        port=port,
        title=f"{title}: chat",
        show=False,
        reload=False,
        dark=None,
        show_welcome_message=False,
        uvicorn_logging_level="error",
    )


class Page:
    """What one visitor sees; all visitors of the machine share the conversation."""

    def __init__(self, ui: Any, conversation: Conversation, save_to: Path, title: str) -> None:
        self.ui, self.conversation, self.save_to, self.title = ui, conversation, save_to, title

    def build(self) -> None:
        """Lay the page out."""
        ui, conversation = self.ui, self.conversation
        ui.add_css(STYLE)
        ui.add_head_html(LANGUAGE)
        with ui.element("h1").classes("text-lg"):
            ui.label(f"{self.title}: {', '.join(voice.name for voice in conversation.voices)}")
        with ui.row().classes("w-full items-center"):
            ui.input("system prompt", value=conversation.system).bind_value(conversation, "system").classes("grow")
            ui.number("temperature", value=conversation.sampling.temperature, min=0, step=0.1).on_value_change(
                lambda event: self.set_temperature(event.value)
            )
            ui.number("seed", value=conversation.seed, min=0, precision=0).bind_value(
                conversation, "seed", forward=lambda value: int(value or 0)
            )
            self.rating = ui.select(list(RATINGS), value="better", label="how much better").classes("w-40")
        self.said = ui.column().classes("w-full")
        self.answers = ui.row().classes("w-full items-stretch")
        self.question = ui.input("your message").classes("w-full").on("keydown.enter", self.ask)
        with ui.row():
            ui.button("send", on_click=self.ask)
            ui.button("another answer", on_click=self.again).props("flat")
            ui.button("new conversation", on_click=self.begin).props("flat")
        self.draw(conversation.replies)

    def set_temperature(self, value: float | None) -> None:
        """Sample the next answers at this temperature."""
        if value is not None and value >= 0:
            self.conversation.sampling = replace(self.conversation.sampling, temperature=float(value))

    async def ask(self) -> None:
        """Send what is in the box."""
        text = str(self.question.value or "").strip()
        if text:
            self.question.value = ""
            await self.stream(self.conversation.ask(text))

    async def again(self) -> None:
        """Another answer of every policy."""
        await self.stream(self.conversation.again())

    def begin(self) -> None:
        """Forget what was said."""
        self.conversation.begin()
        self.draw([])

    async def stream(self, growing: Iterator[Sequence[Reply]]) -> None:
        """Show answers as they grow; a refused question is told and leaves no trace."""
        try:
            for replies in growing:
                self.draw(replies)
                await asyncio.sleep(0)  # lets the page be sent what was drawn
        except RlhfError as error:
            self.ui.notify(plain(str(error)), type="negative", multi_line=True)
        self.draw(self.conversation.replies)

    def draw(self, replies: Sequence[Reply]) -> None:
        """The conversation so far, and the answers to its last question side by side."""
        ui = self.ui
        self.said.clear()
        with self.said:
            for turn in self.conversation.turns:
                ui.label(f"{turn.role}: {plain(turn.content)}").style("white-space: pre-wrap")
        self.answers.clear()
        with self.answers:
            for number, reply in enumerate(replies, start=1):
                with ui.card().classes("grow").style("flex-basis: 16rem"):
                    ui.label(f"{number} {reply.policy}").classes("font-bold")
                    ui.label(plain(reply.answer.text)).style("white-space: pre-wrap; overflow-wrap: anywhere")
                    ui.label(reply.facts).classes("text-sm")
                    if reply.answer.finish_reason is not None and len(replies) > 1:
                        ui.button("prefer this", on_click=lambda _, n=number: self.prefer(n)).props("flat dense")

    def prefer(self, number: int) -> None:
        """Keep an answer as the preferred one."""
        try:
            pairs = self.conversation.prefer(number, self.rating.value)
        except RlhfError as error:
            self.ui.notify(plain(str(error)), type="negative")
            return
        keep(self.save_to, pairs)
        self.ui.notify(f"answer {number} kept as {self.rating.value} in {shown(self.save_to)}")
