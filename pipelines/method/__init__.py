"""The method: from an image or a batch to maps, without files."""
