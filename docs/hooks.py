"""Docstrings carry types as TRL writes them, "name (`type`, *optional*)": as text, not as Markdown in a code span."""

import re


def on_page_content(html: str, **_: object) -> str:
    """Take backticks, stars and links of the Hugging Face builder out of what is code already."""
    html = re.sub(r"<code>(\[?`[^<]*|\*optional\*[^<]*)</code>", lambda code: f"<code>{_plain(code[1])}</code>", html)
    # What is optional names its default there, or has None.
    html = re.sub(r"(<code>[^<]*optional[^<]*</code>), default:\s*<code>.*?</code>", r"\1", html)
    return re.sub(r"\[<code>~?([^<]*)</code>\]", r"<code>\1</code>", html)


def _plain(code: str) -> str:
    return re.sub(r"\[`~?([^`]*)`\]|`([^`]*)`|\*(optional)\*", lambda found: found[1] or found[2] or found[3], code)
