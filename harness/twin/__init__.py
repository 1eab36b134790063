"""One guest, run natively and live: what each run testifies, and how the two are compared."""
