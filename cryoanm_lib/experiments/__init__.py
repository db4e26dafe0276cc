"""From a profile to artifacts: configuration, fits, assessments, and what is kept of them."""
