"""The tables of a run, one file each; `tunediff.report.registry` finds them."""
