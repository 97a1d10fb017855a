"""The one exception that reaches a user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: names the file, key or value, and what would be right."""
