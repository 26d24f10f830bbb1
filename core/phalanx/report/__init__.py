"""Reports: one object, written as a page, as Markdown and as JSON."""
