"""The tidy scores table turned into findings: guidance selection, cost frontier, the paper's claims with intervals."""
