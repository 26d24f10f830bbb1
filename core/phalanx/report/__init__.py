"""Reports: one object, written as a page, as Markdown, LaTeX, JSON and comma-separated values."""
