"""The method: a photo or a batch in, maps out. It knows no files."""
