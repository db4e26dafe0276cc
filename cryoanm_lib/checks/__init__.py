"""How good an answer is: residuals, the predictive check, calibration, referees."""
