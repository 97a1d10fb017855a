"""The one exception that reaches a user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: names the file, key or value, and what would be right."""


def printable(text: str) -> str:
    """``text``, which others wrote, in one line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
