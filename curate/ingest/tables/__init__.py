"""Tables: CSV, Arrow and the Hub's data sets as rows, and rows as chunks of records."""
