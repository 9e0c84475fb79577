"""Containers of text: compressed streams, zip archives and Parquet files, read past damage."""
