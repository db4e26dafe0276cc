"""What the notebooks show: figures, tables, widgets, and what is worked out for them alone."""
