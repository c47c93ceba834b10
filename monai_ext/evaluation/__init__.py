"""From masks to numbers that can be rerun: rows per case, summaries over cases, comparisons of methods."""
