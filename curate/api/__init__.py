"""Commands that combine packages: clean and convert, measure and write a page."""
