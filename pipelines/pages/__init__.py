"""HTML pages: their templates, style and script, charts, and small copies of pictures."""
