"""A person in motion as files: pictures with alpha, one web page."""
