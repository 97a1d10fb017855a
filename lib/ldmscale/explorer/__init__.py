"""The study as one page that answers ``ldmscale advise``'s question in a browser, without a network."""

from ldmscale.explorer.page import explorer_page

__all__ = ["explorer_page"]
