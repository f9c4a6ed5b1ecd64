"""Sphinx's configuration of the documentation site; docs/site/build.py runs it on a copy of the pages."""

project = "diskcast"
author = copyright = "the diskcast developers"  # noqa: A001  Sphinx's name for it
html_title = "diskcast"
extensions = ["myst_parser"]
myst_heading_anchors = 4
"""Links to headings down to this level are checked."""
myst_enable_extensions = ["attrs_inline"]
root_doc = "index"
html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# Example blocks hold placeholders and output that no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]
