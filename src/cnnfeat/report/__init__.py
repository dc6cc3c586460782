"""Pictures and pages: what a run made, to look at. matplotlib lives here and nowhere else."""
