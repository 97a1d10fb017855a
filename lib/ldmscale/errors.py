"""The one exception that reaches a user as a sentence instead of a traceback."""

from ldmscale.text import visible


class UserError(Exception):
    """Something the user can mend: names the file, key or value, and what would be right.

    What it names may be anyone's (a file in a folder of photos): a terminal gets none of its control characters.
    """

    def __init__(self, sentence: str):
        super().__init__(visible(sentence))
