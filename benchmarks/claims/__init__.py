"""Papers' claims in miniature: one file per method, named by its key.

A file defines CLAIM, a `benchmarks.claims.shared.claim.Claim`: arms that differ only in
what the claim is about, seeds, what is measured, and the rules by which it is decided,
which are written before the run. `python -m benchmarks.claims KEY` runs it.
"""
