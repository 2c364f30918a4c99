"""The page of a sweep: one HTML file that opens from disk, with tables, figures and examples."""
