"""The HTML pages: report, comparison, quality control."""
