"""Parts of the export stage."""
