"""Instruments: each written for one model, run over all checkpoints, scored against truth."""
