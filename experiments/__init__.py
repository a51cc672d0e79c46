"""One file for each claim: what is measured, the rule that judges it, and its figures."""
