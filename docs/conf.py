"""The docs as a site: `make docs` builds site/ with Sphinx. Every warning fails the build, broken links included."""

project = "Steel"
copyright = "Steel's authors, Apache-2.0"
extensions = ["myst_parser"]
# the source folder is the repository's root, so that links between docs/ and CONTRIBUTING.md are what they are on GitHub
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**"]
exclude_patterns = ["docs/conf.py"]
myst_heading_anchors = 4  # named as on GitHub
html_theme = "furo"
html_title = "Steel"
html_show_sourcelink = False
suppress_warnings = ["myst.xref_ambiguous"]
