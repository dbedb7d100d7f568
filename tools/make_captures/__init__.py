"""Rendered captures of many people: upper-body clips with exact tracks and masks (Mitsuba, extra `capture`)."""
