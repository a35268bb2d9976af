"""What stage stats counts, and how it shows it."""
