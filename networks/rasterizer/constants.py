"""Cut-offs and conventions shared by every backend: those of gsplat 1.5."""

EPS_2D = 0.3  # px^2, added to the diagonal of the projected covariance: no Gaussian is thinner than about a pixel
ALPHA_THRESHOLD = 1.0 / 255.0  # contributions below it are dropped
ALPHA_CAP = 0.999  # larger alphas are cut to it and pass no gradient to opacity and shape
STOP_TRANSMITTANCE = 1e-4  # the Gaussian that would take a pixel to it or below is dropped, and all behind it
FIELD_OF_VIEW_MARGIN = 0.3  # of the half field of view: how far off screen the projection's Jacobian still follows
MIN_ALPHA = 1e-10  # floor of the divisor of the expected depth
