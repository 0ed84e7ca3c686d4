"""How the pages are made: Sphinx with MyST-NB, offline, from executed chapters."""

project = "xenlab"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "xenlab"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["xenlab.css"]
# what is in made/ is a part of another page
exclude_patterns = ["_build", "made"]
# the chapters were executed on a machine; here they are only shown
nb_execution_mode = "off"
# a widget needs a running kernel, and its script a network
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_merge_streams = True
nb_code_prompt_show = "parameters and opening"
nb_code_prompt_hide = "parameters and opening"
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
