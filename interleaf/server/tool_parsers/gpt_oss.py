"""OpenAI's harmony format (gpt-oss): messages that name their channel, and calls their recipient.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...
<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{...}<|call|>
"""

from __future__ import annotations

import re

from interleaf.server.text_reader import Steps, TextReader
from interleaf.server.tool_parsers.parser import ToolParser

CHANNEL, START, MESSAGE = "<|channel|>", "<|start|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
RECIPIENT = re.compile(r"\bto=([^\s<]+)")
CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


def read_header(reader: TextReader) -> Steps[tuple[str, str]]:
    """The channel and the recipient (each "" where there is none) of the message that follows, up to its text.

    Raises:
        MalformedError: there is no message.
    """
    parts: list[str] = []
    if (yield from reader.until(MESSAGE, *ENDS, emit=parts.append)) != MESSAGE:
        reader.malformed()
    yield from reader.expect(MESSAGE)
    header = "".join(parts)
    channel, recipient = CHANNEL_NAME.search(header), RECIPIENT.search(header)
    return channel[1] if channel else "", recipient[1] if recipient else ""


class GptOssParser(ToolParser):
    markers = (CHANNEL, START, *ENDS)

    def read_call(self) -> Steps[None]:
        if (yield from self.literal(*ENDS)):
            return
        _, recipient = yield from read_header(self)
        if recipient:
            yield from self.space()
            if (yield from self.peek(1)) != "{":
                self.malformed()
            self.begin_call(recipient.removeprefix("functions."))
            yield from self.read_arguments()
            self.end_call()
            yield from self.space()
