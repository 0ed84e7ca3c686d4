"""What a person at JupyterLab has beside the cells: chapters, domains, parameters, consent."""
