"""The viewer: Gaussians in the browser, posed by sliders and tracks; the live picture beside them (extra `viewer`)."""
