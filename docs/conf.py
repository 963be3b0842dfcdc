"""Settings of Sphinx for the documentation site; `make docs` builds it from what scripts/site.py assembles."""

project = "flanneld-masq"
copyright = "flanneld-masq maintainers"
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "flanneld-masq"
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # "--option" stays as it is typed
